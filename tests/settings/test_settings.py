"""Settings: one grammar for every command; an error names its origin."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from vicur.cli.command import Argument, Arguments, Command
from vicur.cli.help import settings_help
from vicur.cli.options import Option, canonical
from vicur.cuebench.generate import MakeSettings
from vicur.cues.settings import AuditSettings, BuildConfig, WorthSettings
from vicur.evaluation.settings import EvaluationSettings
from vicur.run.recipe import Recipe, load_recipe
from vicur.settings.familiar import ABSENT, RENAMED, answer_for
from vicur.settings.reference import settings_of
from vicur.settings.schema import Layer, as_yaml, schema_of, setting_types
from vicur.settings.section import Count, NonNegative, PathText, SettingsError, section
from vicur.wording import printable

COMMANDS = {"train": Recipe, "eval": EvaluationSettings}


@section
class Inner:
    """Inner settings."""

    rate: NonNegative = 1.0
    """A rate."""
    kind: Literal["a", "b"] = "a"
    """A kind."""
    low: Count | None = None
    """A lower bound."""
    high: Count | None = None
    """An upper bound."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A share."""
    on: bool = False
    """A switch."""
    limit: float | Literal["all"] = "all"
    """A limit."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low}) must be at most high ({self.high}).")


@section
class Outer:
    """Outer settings."""

    inner: Inner = field(default_factory=Inner)
    """The inner ones."""
    count: int = 3
    """A count."""
    place: PathText = "here"
    """A path."""
    places: list[PathText] | None = None
    """Paths."""
    words: str | None = None
    """No path."""
    names: dict[str, str] = field(default_factory=dict)
    """Texts by name."""


SCHEMA = schema_of(Outer, "train")


def test_later_layers_win_and_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = Layer("own.yaml", SCHEMA.flatten({"inner": {"rate": 2.0}, "place": "~/a", "words": "~/b"}))
    result = SCHEMA.load([file, *SCHEMA.overrides(["--inner.rate=3", "inner.kind=b", "places=[~/c, d]"])])
    assert result == Outer(Inner(3.0, "b"), 3, f"{tmp_path}/a", [f"{tmp_path}/c", "d"], "~/b")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inner.rate=-1", "count=4"], r"^inner\.rate=-1: inner\.rate must be 0 or more, not -1\.$"),
        (["inner.rate=.nan"], r"^inner\.rate=\.nan: inner\.rate must be a finite number, not nan\.$"),
        (["inner.rate=.inf"], r"inner\.rate must be a finite number, not inf\.$"),
        (["inner.rate=true"], r"^inner\.rate=true: inner\.rate must not be true\.$"),
        (["inner.low=0"], r"inner\.low must be at least 1, not 0\.$"),
        (["inner.share=0"], r"inner\.share must be above 0, not 0\.$"),
        (["inner.share=2"], r"inner\.share must be at most 1, not 2\.$"),
        (["inner.on=perhaps"], r"^inner\.on=perhaps: inner\.on must be true or false, not 'perhaps'\.$"),
        (["inner.limit=most"], r"inner\.limit must be a number or one of all, not 'most'\.$"),
        (["names={a: 3}"], r"^names=\{a: 3\}: names\.a must be a string, not 3\.$"),
        (["inner=3"], r"^inner=3: inner must be a section: \{\} for its defaults"),
        (["places=3"], r"^places=3: places must be a list, not 3\.$"),
        (
            ["inner.low=3", "count=2", "inner.high=2"],
            r"^inner\.high=2: low \(3\) must be at most high",
        ),
        (["count=4", "count=x"], r"^count=x: count must be an integer, not 'x'\.$"),
        (["count=x", "inner.rate=2"], r"^count=x: "),
        (["inner.kind=c"], r"^inner\.kind=c: inner\.kind must be one of a, b"),
        (["inner.rat=1"], r"^inner\.rat: there is no setting 'inner\.rat'; did you mean 'inner\.rate'\?$"),
        (["rate=1"], r"^rate: there is no setting 'rate': it is inner\.rate here\.$"),
    ],
)
def test_an_override_is_blamed_for_its_own_mistake(overrides, message):
    file = Layer("own.yaml", {"inner.rate": 5.0})
    with pytest.raises(SettingsError, match=message):
        SCHEMA.load([file, *SCHEMA.overrides(overrides)])


@pytest.mark.parametrize("flat", [{"inner.rate": -2.0}, {"count": "x"}, {"colour": 1}])
def test_a_file_is_blamed_for_its_own_mistake(flat):
    with pytest.raises(SettingsError, match=r"^own\.yaml: "):
        SCHEMA.load([Layer("own.yaml", flat), *SCHEMA.overrides(["inner.kind=b"])])


def test_a_required_setting_is_asked_for_and_nothing_else_is_blamed():
    schema = schema_of(MakeSettings, "cuebench make")
    with pytest.raises(SettingsError, match=r"^output is required\.$"):
        schema.load(schema.overrides(["n=3"]))
    assert schema.load(schema.overrides(["n=3", "output=x.parquet"])) == MakeSettings(3, "x.parquet")
    with pytest.raises(SettingsError, match=r"^output is required\.$"):
        MakeSettings(3)


def test_a_base_is_blamed_for_its_own_mistake_and_no_packaged_path_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("optimizer: {learning_rate: quick}")
    (tmp_path / "own.yaml").write_text("base: base.yaml\ntraining: {steps: 3}")
    with pytest.raises(SettingsError, match=r"^base\.yaml: optimizer\.learning_rate must be a number"):
        load_recipe("own.yaml")
    with pytest.raises(SettingsError) as caught:
        load_recipe("cuebench/opsd_cue", ["teacher.model=self", "teacher.privilege=none"])
    assert str(caught.value).startswith("teacher.privilege=none: The teacher is the student before training")
    assert os.sep + "src" not in str(caught.value)


def test_options_are_settings_under_a_shorter_name():
    count, places = Option("--count", "count", "a count"), Option("--places", "places", "paths", many=True)
    command = Command(
        "own", "", "", "", argument=Argument("PLACE", "a path", "place"), options=(count, places)
    )

    def typed(values, word=None, overrides=()):
        return Arguments(
            command, () if word is None else (word,), values, (), tuple(overrides), frozenset()
        ).load(Outer)

    assert typed({count: "7", places: ["a", "b"]}, "there", ["inner.kind=b"]) == Outer(
        Inner(1.0, "b"), 7, "there", ["a", "b"]
    )
    with pytest.raises(SettingsError, match=r"^--count many: count must be an integer"):
        typed({count: "many"})


def test_entries_of_a_table_are_texts_and_add_up():
    file = Layer("own.yaml", SCHEMA.flatten({"names": {"a": "x", "b": "y"}}))
    table = SCHEMA.load([file, *SCHEMA.overrides(["names.b=", "names.c=5"])]).names
    assert table == {"a": "x", "b": "", "c": "5"}


def test_values_of_dotted_names_are_never_taken_for_arguments():
    words = [
        "train",
        "--a.b",
        "5",
        "r.yaml",
        "--max_new_tokens",
        "3",
        "--c.d_e=x_y",
        "f_g=h",
        "--print_config",
    ]
    options = ["train", "r.yaml", "--max-new-tokens", "3", "--print-config"]
    assert canonical(words) == (options, ["--a.b=5", "--c.d_e=x_y", "f_g=h"])
    assert canonical(["x", "--a.b"]) == (["x", "--a.b"], [])
    assert canonical(["data/part=1.parquet"]) == (["data/part=1.parquet"], [])
    assert canonical(["--column", "answer=label", "x=1"]) == (["--column", "answer=label"], ["x=1"])
    assert canonical(["--column=answer=label"]) == (["--column=answer=label"], [])
    assert canonical(["--column"]) == (["--column"], [])


@given(st.lists(st.text(max_size=6)))
def test_any_text_survives(words):
    options, settings = canonical(words)
    assert len(options) + len(settings) <= len(words)


@pytest.mark.parametrize("component", [Recipe, EvaluationSettings, AuditSettings, WorthSettings])
def test_settings_written_out_read_back(component):
    schema = schema_of(component)
    default = component()
    assert schema.load([Layer("written", schema.flatten(yaml.safe_load(as_yaml(default))))]) == default


def test_every_setting_has_a_help_text():
    for component in (EvaluationSettings, AuditSettings, WorthSettings, BuildConfig):
        text = " ".join(settings_help(component).split())
        for setting in settings_of(component):
            assert f"{setting.name} (" in text and setting.text in text


@pytest.mark.parametrize("command", ["train", "eval"])
def test_familiar_names_lead_to_settings_that_exist(command):
    known = setting_types(COMMANDS[command])
    for name, ours in RENAMED[command].items():
        assert ours in known, f"{name} leads to {ours}, which does not exist"
    both = set(RENAMED[command]) & set(ABSENT[command])
    assert not both, f"named twice: {both}"
    for name in (*RENAMED[command], *ABSENT[command]):
        assert name not in known or name in ("model", "dtype"), f"{name} is a setting itself"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("batch_size", "training.prompts_per_step"),
        ("per_device_train_batch_size", "optimizer.prompts_per_micro_batch"),
        ("num_generations", "rollout.group_size"),
        ("actor_rollout_ref.rollout.n", "rollout.group_size"),
        ("actor_rollout_ref.actor.optim.lr", "optimizer.learning_rate"),
        ("--max-completion-length", "rollout.sampling.max_new_tokens"),
        ("lr", "optimizer.learning_rate"),
        ("output_dir", "training.output"),
        ("lora_r", "student.lora.rank"),
        ("bf16", "student.dtype"),
        ("load_in_4bit", "student.lora.quantize"),
        ("actor_rollout_ref.actor.fsdp_config.param_offload", "training.offload"),
        ("actor_rollout_ref.ref.fsdp_config.param_offload", "teacher.offload"),
        ("trainer.total_epochs", "training.epochs"),
        ("objective.vgs", "objective.visual_steering"),
        ("objective.opd", "objective.divergence"),
    ],
)
def test_names_of_other_libraries_are_answered(name, ours):
    assert answer_for(name, "train") == f"it is {ours} here."


def test_other_optimizers_lead_to_8_bit_states():
    assert "optimizer.states=8bit" in answer_for("optim", "train")
    assert "student.lora.quantize=nf4" in answer_for("load_in_8bit", "train")


@pytest.mark.parametrize(
    "name", ["save_steps", "--resume", "beta", "trainer.save_freq", "eval_steps", "use_sglang"]
)
def test_unknown_settings_are_reported(name):
    answer = answer_for(name, "train")
    assert answer is not None and not answer.startswith("it is")
    with pytest.raises(SettingsError, match="there is no setting"):
        load_recipe("cuebench/opsd_cue", [f"{name.removeprefix('--')}=1"])


@section
class Texts:
    text: str = ""
    table: dict[str, str] = field(default_factory=dict)


@given(st.text(st.characters(codec=None) | st.sampled_from("\u202e\u061c\u200e\u2066\x85\x9b\x1b\u2028é\n ")))
@example("right \u202e left é")
def test_settings_are_written_without_characters_that_act_on_a_terminal(text):
    written = as_yaml(Texts(text, {text: text}))
    assert printable(written) == written
    assert yaml.safe_load(written) == {"text": text, "table": {text: text}}


def test_other_characters_are_written_as_they_are():
    assert as_yaml(Texts("Größe: 深い 🙂")) == "text: 'Größe: 深い 🙂'\ntable: {}\n"
