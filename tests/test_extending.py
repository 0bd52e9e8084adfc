"""What researchers add from outside the package: an objective, a view, and a kind of privilege."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.data.columns import ALIASES
from vicur.data.sample import TEXT_KINDS, Privilege
from vicur.data.views import PRIVILEGED, Hinted, teacher_view
from vicur.objectives.mixture import ObjectiveConfig
from vicur.run.recipe import load_recipe
from vicur.settings.schema import SettingsError

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_objective.py"
RECIPE = {
    "student": {"model": "vicur:tiny-student"},
    "teacher": {"privilege": "column:sketch"},
    "data": {"train": "train.parquet"},
    "objective": {"custom": {"path": "own_objective.py:SharpTokens", "radius": 3}},
    "rollout": {"sampling": {"max_new_tokens": 4}},
    "training": {"steps": 2, "prompts_per_step": 2, "save_model": False, "device": "cpu"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the example, a recipe that uses it, and problems with a column of hints of one's own."""
    monkeypatch.chdir(tmp_path)
    write_parquet("segments", "train", 4, tmp_path / "train.parquet")
    table = pq.read_table("train.parquet")
    sketch = pa.array([f"a sketch of problem {i}" for i in range(len(table))])
    pq.write_table(table.append_column("sketch", sketch), "train.parquet")
    shutil.copy(EXAMPLE, "own_objective.py")
    Path("mine.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def words_of(capsys):
    """Standard error without line breaks."""
    return " ".join(capsys.readouterr().err.split())


def steps_of(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_objective_view_and_privilege_from_outside_train_two_steps(here):
    """The view is the example's `Blurred`, the privilege the column `sketch`."""
    assert main(["train", "mine.yaml", "training.output=a"]) == 0
    first, second = steps_of("a")
    assert first["kl"] > 0 and first["grad_norm"] > 0 and "fall_top10_mass" in first
    assert second["kl"] != first["kl"]
    # Each counts: without a blur no log-prob falls, and without a hint the teacher is the student.
    assert main(["train", "mine.yaml", "training.output=b", "objective.custom.radius=0"]) == 0
    assert steps_of("b")[0]["fall"] == 0 < first["fall"]
    assert main(["train", "mine.yaml", "training.output=c", "teacher.privilege=none"]) == 0
    assert steps_of("c")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert main(["train", "a/recipe.yaml", "training.output=d"]) == 0
    assert steps_of("d")[0]["loss"] == first["loss"]


def test_an_own_objective_is_one_part_of_a_sum(here):
    assert main(["train", "mine.yaml", "training.output=a", "objective.divergence.weight=0.5"]) == 0
    assert {"loss_custom/kl", "loss_divergence/reverse_kl"} <= set(steps_of("a")[0])


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "objective.custom.radus=3",
            "in objective.custom, there is no setting 'radus'; did you mean 'radius'",
        ),
        ("objective.custom.radius=wide", "radius must be a number, not 'wide'"),
        ("objective.custom.weight=0", "custom.weight must be above 0"),
        ("objective.custom.path=own_objective.py:Sharp", "own_objective.py has no 'Sharp'"),
        (
            "objective.custom.path=own_objective.py:Blurred",
            "has no needs, no weigh, no weight: .* = 1.0",
        ),
        ("objective.custom.path=own_objective.py:teacher_kl", "is not a dataclass"),
        ("objective.custom.path=none.py:Sharp", "there is no file .*none.py"),
        ("objective.custom.path=SharpTokens", "'path/to/file.py:name', not 'SharpTokens'"),
        ("objective.custom={radius: 3}", None),
    ],
)
def test_mistakes_in_the_settings_of_an_own_objective(here, override, message):
    if message is None:  # a table is added to that of the recipe
        assert load_recipe("mine.yaml", [override]).objective.custom["path"]
        return
    with pytest.raises(SettingsError, match=message) as raised:
        load_recipe("mine.yaml", [override])
    assert str(raised.value).startswith(override.split(":")[0])


def test_an_objective_without_a_path():
    with pytest.raises(ValueError, match=r"objective.custom needs a path, e.g. objective.custom.path="):
        ObjectiveConfig(custom={"radius": 3})


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "        fall = (",
            "        fall = missing + (",
            r"raised NameError: .*own_objective.py, line 51\)",
        ),
        ("return reverse_kl(", "return reverse(", r"raised NameError: .* \(own_objective.py, line 5\d\)"),
        ("        return Weighed(", "        return list(", "raised TypeError"),
        ("weights, reads", "weights[1:], reads", r"the weights of the term kl of shape \(\d+,\)"),
        ("        return Needs(", "        return dict(", "returned a dict from needs, not a Needs"),
        (
            "@dataclass(frozen=True)\nclass Blurred",
            "@dataclass\nclass Blurred",
            "of the look blurred .* is not a view",
        ),
        ("from dataclasses", "import nothing_such\nfrom dataclasses", r"cannot be loaded: .* line 1\d\)"),
        (
            "from dataclasses",
            "raise SystemExit(3)\nfrom dataclasses",
            r"loaded: SystemExit: 3 \(.* line 1\d\)",
        ),
    ],
)
def test_errors_of_an_own_objective_name_its_line(here, capsys, old, new, message):
    text = Path("own_objective.py").read_text()
    assert text.count(old) == 1
    Path("own_objective.py").write_text(text.replace(old, new))
    assert main(["train", "mine.yaml", "training.output=a"]) == 1
    error = words_of(capsys)
    assert re.search(message, error) and "own_objective.py:SharpTokens" in error


def test_a_column_that_cannot_be_a_hint(here, capsys):
    assert main(["train", "mine.yaml", "teacher.privilege=column:skech"]) == 1
    error = words_of(capsys)
    assert "has the privilege column:skech" in error and "or column:sketch" in error
    assert main(["train", "mine.yaml", "teacher.privilege=column:rationale"]) == 1
    assert "the column rationale is read as the rationale" in words_of(capsys)


def test_a_column_is_a_hint_for_the_teacher_alone(here):
    source = load_recipe("mine.yaml").data.open()
    view = teacher_view("column:sketch")
    shown = view.show(source[1]).messages[-1]["content"][-1]
    assert shown == {"type": "text", "text": "\n[Hint]: a sketch of problem 1"}
    assert source.applies(view) == [True] * 4 and source.applies(Hinted("column:other")) == [False] * 4


def test_the_kinds_of_privilege_are_listed_once():
    """A kind is a name in `sample.py`, a field beside it, and its columns."""
    assert set(TEXT_KINDS) < {f.name for f in fields(Privilege)}
    assert set(TEXT_KINDS) <= set(ALIASES) and set(TEXT_KINDS) < set(PRIVILEGED)
