"""Recipes: every shipped one parses, and a mistake ends in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from vicur.cli.help import settings_help
from vicur.packaged import resolve_packaged
from vicur.run.recipe import Recipe, load_recipe, to_yaml
from vicur.settings.section import SettingsError

RECIPES = resolve_packaged("recipes")
SHIPPED = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "bases")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_every_shipped_recipe_has_a_file_and_a_name_and_can_be_written_out(path, tmp_path):
    recipe = load_recipe(str(path))
    assert load_recipe(str(path.relative_to(RECIPES).with_suffix(""))) == recipe
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_bases_are_merged_in_order_and_null_removes(tmp_path):
    (tmp_path / "first.yaml").write_text(
        "objective: {visual_advantage: {top_fraction: 0.5}}\noptimizer: {learning_rate: 1.0e-3}"
    )
    (tmp_path / "second.yaml").write_text("base: first.yaml\noptimizer: {weight_decay: 0.5}")
    (tmp_path / "third.yaml").write_text("optimizer: {weight_decay: 0.25}\nrollout: {group_size: 4}")
    own = tmp_path / "own.yaml"
    own.write_text("base: [second.yaml, third.yaml]\nobjective: {visual_advantage: {kept: 1}}")
    with pytest.raises(SettingsError, match=r"there is no setting 'objective\.visual_advantage\.kept'"):
        load_recipe(str(own))
    own.write_text("base: [second.yaml, third.yaml]\noptimizer: {learning_rate: 2.0e-3}")
    found = load_recipe(str(own))
    assert (found.optimizer.learning_rate, found.optimizer.weight_decay) == (2e-3, 0.25)
    assert found.rollout.group_size == 4 and found.objective.visual_advantage.top_fraction == 0.5
    own.write_text("base: second.yaml\nobjective: {visual_advantage: null}")
    assert load_recipe(str(own)).objective.visual_advantage is None
    own.write_text("base: second.yaml\noptimizer: {weight_decay: null}\nobjective: null")
    assert load_recipe(str(own)).optimizer.weight_decay == 0.01
    assert load_recipe(str(own)).objective.visual_advantage is None
    assert load_recipe(str(own), ["optimizer=null"]).optimizer.learning_rate == 1e-6


def test_columns_of_the_data_are_the_users_words(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {columns: {answer: label.text, cue: seen}}")
    own = tmp_path / "own.yaml"
    own.write_text("base: base.yaml\ndata: {columns: {answer: gold}}")
    assert load_recipe(str(own)).data.columns == {"answer": "gold", "cue": "seen"}
    for override in ("data.columns={id: uid}", "data.columns.id=uid", "--data.columns.id=uid"):
        recipe = load_recipe(str(own), [override])
        assert recipe.data.columns == {"answer": "gold", "cue": "seen", "id": "uid"}
        (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))
        assert load_recipe(str(tmp_path / "resolved.yaml")) == recipe


def test_bases_that_cannot_be(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("base: nowhere.yaml")
    with pytest.raises(SettingsError, match=r"its base nowhere\.yaml does not exist"):
        load_recipe(str(one))
    one.write_text("base: two.yaml")
    two.write_text("base: one.yaml")
    with pytest.raises(SettingsError, match="is its own base"):
        load_recipe(str(one))


def test_the_cuebench_recipes_differ_only_where_they_say():
    names = ("opsd_answer", "opsd_cue", "opsd_cue_recovery", "opd_cue")
    flat = {name: dict(_flat(load_recipe(f"cuebench/{name}"))) for name in names}
    differing = {
        key for key in flat["opsd_cue"] if len({str(settings[key]) for settings in flat.values()}) > 1
    }
    assert differing == {
        "student.recovery.enabled",
        "student.recovery.interval",
        "student.recovery.learning_rate",
        "teacher.model",
        "teacher.privilege",
        "training.name",
    }


def _flat(recipe, prefix=""):
    from dataclasses import fields, is_dataclass

    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            yield from _flat(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def test_the_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = load_recipe("cuebench/opsd_cue_recovery", ["optimizer.learning_rate=2e-4"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert recipe.optimizer.learning_rate == 2e-4 and recipe.student.recovery.interval == 2


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "optimzer.learning_rate=1",
            "no setting 'optimzer.learning_rate'; did you mean 'optimizer.lear",
        ),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a number, not 'fast'"),
        ("teacher.privilege=cues", r"privilege has no part 'cues' \(cue\?\): a view is"),
        ("rollout.group_size=0", "group_size must be at least 1, not 0"),
        ("training.steps=0", "training.steps must be at least 1"),
        ("student=3", "student must be a section"),
        ("training.steps", "must have the form key=value"),
        ("training.steps=[1", "is not a value that YAML can read"),
        ("optimizer.warmup=5", "optimizer.warmup must be at most 1"),
        ("optimizer.prompts_per_micro_batch=0", "must be at least 1, not 0"),
        ("rollout.sampling.temperature=0.7", "old_log_probs=sampled needs temperature 1"),
        (
            "objective.grpo.weight=0.5",
            "objective grpo compares a problem's responses: set rollout.group_size to 2",
        ),
        ("objective.supervised.weight=1", "supervised cannot learn from rollout.source=student"),
        ("scoring.vocabulary=shared", "old_log_probs=sampled needs scoring.vocabulary=sampleable"),
        ("rollout.source=dataset", "sampled_token cannot learn from rollout.source=dataset"),
        (
            "objective.visual_steering.alpha=big",
            "objective.visual_steering.alpha must be a number, not 'big'",
        ),
        ("objective.vgs.alpha=1", "no setting 'objective.vgs.alpha'; did you mean 'objective"),
        (
            "objective.divergence.beta=2",
            "^objective.divergence.beta=2: objective.divergence.beta must be at most 1, not 2.$",
        ),
        (
            "objective.visual_advantage={}",
            "visual_advantage compares a problem's responses: set rollout.group_size to 2",
        ),
        ("objective.sampled_token.advantage_limit=0", "advantage_limit must be above 0"),
        ("objective.sampled_token.clip.max_log_ratio=-1", "max_log_ratio must be above 0"),
        ("objective.grpo.epsilon=-0.5", "objective.grpo.epsilon must be 0 or more"),
        ("objective.grpo.weight=0", "objective.grpo.weight must be above 0, not 0."),
        ("objective.papo.grpo.clip.high=-1", "clip.high must be 0 or more"),
        (
            "training.prompts_per_update=48",
            "prompts_per_update=48 does not divide training.prompts_per_step=64",
        ),
        ("scoring.chunk_tokens=0", "scoring.chunk_tokens must be at least 1"),
    ],
)
def test_mistakes_in_a_setting(override, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe("cuebench/opsd_cue", [override])


@pytest.mark.parametrize(
    "value", ["runs/a #1/x", "[odd", "123", "2026-11-21", "@x", "Answer: yes", "a=b", "true"]
)
def test_text_settings_take_any_text(value):
    recipe = load_recipe("cuebench/opsd_cue", [f"training.output={value}", f"data.system_prompt={value}"])
    assert recipe.training.output == recipe.data.system_prompt == value
    assert load_recipe("cuebench/opsd_cue", ["data.system_prompt=null"]).data.system_prompt is None


@pytest.mark.parametrize(
    "text, message",
    [("a: [", "is not valid YAML"), ("- 1", "must hold settings by name"), ("x: 1", "'x'")],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_recipe(str(path))


def test_a_missing_recipe_names_those_that_are_near():
    with pytest.raises(SettingsError, match=r"no recipe vgs/2b/vsg; did you mean vgs/2b/vgs or"):
        load_recipe("vgs/2b/vsg")


def test_objectives_are_chosen_by_naming_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "objective: {visual_advantage: {}, grpo: {weight: 0.3, clip: {high: 0.28}}}\nrollout: {group_size: 4}"
    )
    recipe = load_recipe(str(path), ["objective.grpo.weight=0.4"])
    assert list(recipe.objective.parts) == ["visual_advantage", "grpo"]
    assert (recipe.objective.grpo.weight, recipe.objective.grpo.clip.high) == (0.4, 0.28)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    without = load_recipe(str(path), ["objective.grpo=null"])
    assert list(without.objective.parts) == ["visual_advantage"]
    only = load_recipe("cuebench/opsd_cue", ["objective.divergence={}"])
    assert list(only.objective.parts) == ["divergence"]


def test_the_last_override_wins():
    first, last = "objective.divergence.kind=jsd", "objective.divergence=null"
    both = load_recipe("cuebench/opsd_cue", ["objective.divergence={}", first, last])
    assert list(both.objective.parts) == ["sampled_token"]
    again = load_recipe("cuebench/opsd_cue", [last, first])
    assert again.objective.divergence.kind == "jsd"


def test_sampled_old_log_probs_matter_only_where_they_are_taken():
    cooler = ["training.old_log_probs=sampled", "rollout.sampling.temperature=0.7"]
    assert load_recipe("cuebench/va_opd", cooler).rollout.sampling.temperature == 0.7
    with pytest.raises(SettingsError, match="needs temperature 1"):
        load_recipe("cuebench/va_opd", ["objective.grpo={}", *cooler])
    greedy = ["rollout.group_size=4", "objective.grpo={}", "rollout.sampling.temperature=0"]
    with pytest.raises(SettingsError, match="they are all the same"):
        load_recipe("cuebench/opsd_cue", [*greedy, "training.old_log_probs=scored"])


def test_every_setting_has_its_help():
    text = " ".join(settings_help(Recipe).split())
    assert "Sampling temperature; 0 for greedy decoding." in text
    assert "Estimator of the KL penalty from the sampled tokens." in text


def test_the_recipes_folder_of_the_repository_is_the_packaged_one():
    assert (Path(__file__).parents[2] / "recipes").resolve() == resolve_packaged("recipes").resolve()


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.learning_rate=abc", "optimizer.learning_rate must be a number, not 'abc'"),
        ("training.steps=2.5", "training.steps must be an integer, not 2.5"),
        ("student.recovery.enabled=maybe", "student.recovery.enabled must be true or false, not 'maybe'"),
        ("teacher.privilege=cues", r"has no part 'cues' \(cue\?\): a view is plain, cue"),
        ("objective.divergence=true", r"objective.divergence must be a section: {} for its defaults"),
    ],
)
def test_a_value_that_does_not_fit_is_named(override, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe("cuebench/opsd_cue", [override])


def test_numbers_as_yaml_reads_them():
    assert load_recipe("cuebench/opsd_cue", ["optimizer.learning_rate=1e-4"]).optimizer.learning_rate == 1e-4
    assert load_recipe("cuebench/opsd_cue", ["optimizer.learning_rate=1"]).optimizer.learning_rate == 1.0


@pytest.mark.parametrize("objective", ["sampled_token", "divergence"])
def test_a_teacher_that_has_nothing_to_say_is_refused(objective):
    overrides = ["teacher.privilege=none", f"objective.{objective}={{}}"]
    with pytest.raises(SettingsError, match="there is nothing to learn from it"):
        load_recipe("cuebench/opsd_cue", overrides)
    load_recipe("cuebench/opsd_cue", [*overrides, "teacher.model=vicur:tiny-teacher"])
    load_recipe("cuebench/opsd_cue", [*overrides, "objective.visual_steering={scale: 1.0}"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: {seed: 1}\ntraining:\n  seed: 2\n", "sets training twice, in line 1 and in line 2"),
        ("training:\n  seed: 1\n  steps: 3\n  seed: 2\n", "sets seed twice, in line 2 and in line 4"),
        ("training: {seed: 1, seed: 1}\n", "sets seed twice"),
    ],
)
def test_a_key_that_is_named_twice(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("text", ["[a.parquet, b.csv]", "a.parquet", "part-*.parquet"])
def test_training_data_may_be_several_files(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"data:\n  train: {text}\n")
    recipe = load_recipe(str(tmp_path / "a.yaml"))
    assert recipe.data.train == (["a.parquet", "b.csv"] if text.startswith("[") else text)
    (tmp_path / "b.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "b.yaml")) == recipe
    overridden = load_recipe(str(tmp_path / "a.yaml"), ["data.train=[c,d]"])
    assert overridden.data.train in ("[c,d]", ["c", "d"])


DOPD = "cuebench/family/dopd"


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        (
            DOPD,
            ["objective.target.looks.own.of=owl"],
            "teacher owl, which is not in teachers",
        ),
        (DOPD, ["objective.target.looks.own=null"], "teachers.own is not used"),
        (DOPD, ['teachers={"teacher_b": {}}'], "teachers.teacher_b must have another name"),
        (DOPD, ['teachers={"old": {}}'], "teachers.old must have another name"),
        (DOPD, ['teachers={"own": {"servers": ["http://a"]}}'], "servers"),
        ("cuebench/opsd_cue", ["student.view=crop"], "which only a teacher may see"),
        ("cuebench/opsd_cue", ["teacher.privilege=solution"], "group_size to 2 or more"),
        (
            "cuebench/opsd_cue",
            [
                *("objective.sampled_token=null", "objective.divergence.gate.endorsement={}"),
                "rollout.source=teacher",
            ],
            "the student is not the sampler",
        ),
        (
            "cuebench/family/sdpo",
            ["rollout.source=teacher"],
            "shows a teacher the student's response: set rollout.source=student",
        ),
    ],
)
def test_mistakes_in_teachers_and_views(name, overrides, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe(name, overrides)


def test_a_teacher_by_name_is_overridden_setting_by_setting():
    recipe = load_recipe(DOPD, ["teachers.own.update=ema", "objective.target.looks.own.times=0.5"])
    assert recipe.teachers["own"].update == "ema" and recipe.teachers["own"].privilege == "cue"
    assert recipe.objective.target.looks["own"].times == 0.5
    assert recipe.objective.target.looks["own"].of == "own"
    only = load_recipe("cuebench/family/vcsd", ["objective.target.looks.blank=null"])
    assert list(only.objective.target.looks) == ["seeing"]


def test_views_of_teachers_keep_their_own_treatment_of_problems_without_them():
    recipe = load_recipe(DOPD, ["teachers.own.privilege=crop", "teachers.own.missing_privilege=skip"])
    assert {view.name: missing for view, missing in recipe.teacher_views.items()} == {
        "cue": "plain",
        "crop": "skip",
    }
