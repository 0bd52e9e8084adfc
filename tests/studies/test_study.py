"""Studies: read, refused, and run over every kind of objective."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vicur.cli.main import main
from vicur.run.recipe import load_recipe
from vicur.settings.section import SettingsError
from vicur.studies.study import load_study

HEAD = "problems: 4\nuntrained: {base: {title: a, model: b}}"
RUN = ("opd_sampled", "off_policy", "cot_sft", "mask_random", "vgs_measured", "papo", "together")


def test_the_study_of_objectives_covers_all_of_them():
    study = load_study("objectives")
    used = {name for row in study.trained.values() for name in row.recipe.objective.parts}
    assert used == {
        *("sampled_token", "divergence", "visual_advantage", "visual_steering"),
        *("grpo", "papo", "supervised"),
    }
    assert {row.recipe.rollout.source for row in study.trained.values()} == {"student", "teacher", "dataset"}


def test_all_start_and_spend_alike():
    recipes = [row.recipe for row in load_study("objectives").trained.values()]
    assert len({(r.student.model, r.training.steps, r.optimizer.learning_rate) for r in recipes}) == 1
    assert {r.training.prompts_per_step * r.rollout.group_size for r in recipes} == {64}


@pytest.mark.parametrize("recipe, row", [("va_opd", "va_opd"), ("vgs", "vgs_lp"), ("together", "together")])
def test_recipes_are_the_studys_rows(recipe, row):
    """What `vicur train` does by name is what the table shows."""
    ours, theirs = load_recipe(f"cuebench/{recipe}"), load_study("objectives").trained[row].recipe
    # They take no old log-probs, so it does not matter where those would come from.
    training = replace(theirs.training, name=ours.training.name, old_log_probs="scored")
    assert ours == replace(theirs, training=training)


def test_a_study_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["study", "objectives", "--output", str(out), "--steps", "2", "--test-problems", "8"]
    assert main([*arguments, "--only", *RUN]) == 0
    table = capsys.readouterr().out
    assert "PAPO" in table and "all three" in table and "VA" in table
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["methods"]) == {"base", "teacher", *RUN}
    for name in RUN:
        assert summary["methods"][name]["visual_advantage"].keys() == {"teacher", "own"}
        text = (out / "seed-0" / name / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == 2
        for line in lines:
            assert all(math.isfinite(value) for value in line.values())
            assert {"loss", "entropy", "grad_norm", "response_tokens", "truncated", "hint_samples"} <= set(
                line
            )
    assert main([*arguments, "--only", "papo"]) == 1
    assert "already holds a study" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("untrained: {}", r"study\.yaml: problems is required"),
        (f"{HEAD}\nrows: {{}}", "rows"),
        ("problems: 1\nuntrained: {}\ntrained: {}", "untrained must have a row 'base'"),
        ("problems: 1\nuntrained: {base: {title: a, modle: b}}\ntrained: {}", "modle"),
        ("problems: 1\nuntrained: [base]\ntrained: {}", "study.yaml: "),
        (f"{HEAD}\ntrained: {{base: {{title: x, settings: {{}}}}}}", "the row base is both"),
        (f"{HEAD}\ntrained: {{x: {{title: x}}}}", "x: a trained row needs either a recipe or settings"),
        (
            f"{HEAD}\ntrained: {{x: {{title: x, recipe: cuebench/vgs, settings: {{a: 1}}}}}}",
            "a trained row needs either a recipe or settings",
        ),
        (
            f"{HEAD}\ntrained: {{x: {{title: x, settings: [1]}}}}",
            "x: settings must be a mapping from names to values, not",
        ),
        (f"{HEAD}\ntrained: {{}}\ncompare: [[base, y]]", "compare names y, which is not a row"),
        (f"{HEAD}\ntrained: {{}}\ncompare: [[base]]", "study.yaml: compare must be a longer list"),
        (
            "problems: 1\nuntrained: {base: {title: a, model: b, privilege: x}}\ntrained: {}",
            "privilege must be one of none, .*, not 'x'",
        ),
        (f"{HEAD}\ntrained: {{x: {{title: x, settings: {{objectiv: 1}}}}}}", "x: there is no setting"),
    ],
)
def test_studies_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_study(str(path))


def test_unknown_names_are_reported(tmp_path, capsys):
    assert main(["study", "nowhere"]) == 1
    assert "There is no study nowhere; did you mean" in " ".join(capsys.readouterr().err.split())
    assert main(["study", "objectives", "--output", str(tmp_path), "--only", "ppo"]) == 1
    assert "has no method ppo" in capsys.readouterr().err


def test_the_answers_of_all_rows_are_graded_by_the_same_rewards(tmp_path):
    assert load_study("objectives").rewards.tolerance == 1e-6
    study = load_study("objectives", ["rewards.tolerance=0.25", "--rewards.lenient=false"])
    assert (study.rewards.tolerance, study.rewards.lenient) == (0.25, False)
    assert all(row.recipe.rewards == study.rewards for row in study.trained.values())
    settings = "settings: {rewards: {tolerance: 0.1}}"
    rows = f"trained: {{x: {{title: x, {settings}}}, y: {{title: y, settings: {{}}}}}}"
    (tmp_path / "s.yaml").write_text(f"{HEAD}\n{rows}")
    with pytest.raises(SettingsError, match="the trained rows have different rewards"):
        load_study(str(tmp_path / "s.yaml"))
    assert load_study(str(tmp_path / "s.yaml"), ["rewards.tolerance=0.1"]).rewards.tolerance == 0.1
