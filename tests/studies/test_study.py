"""Studies: read, refused, and run over every kind of objective."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from vicur.cli.main import main
from vicur.run.recipe import load_recipe
from vicur.settings.section import SettingsError
from vicur.studies.study import load_study
from vicur.studies.tables import study_table

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
            "privilege has no part 'x'",
        ),
        ("problems: abc", "study.yaml: problems must be an integer, not 'abc'"),
        ("problems: 1.5", "study.yaml: problems must be an integer, not 1.5"),
        ("problems: -3", "study.yaml: problems must be at least 1, not -3"),
        ("problems: 100000000", "study.yaml: problems must be at most 10000000"),
        ("problems: true", "study.yaml: problems must not be true"),
        (f"{HEAD}\ntrained: 5", "study.yaml: trained must be a mapping from names to values, not 5"),
        (f"{HEAD}\ntrained: null", "study.yaml: trained is required"),
        (f"{HEAD}\ntrained: [x]", "study.yaml: trained must be a mapping"),
        (f"{HEAD}\ntrained: {{x: 5}}", r"study.yaml: trained\.x must be a mapping .*, not 5"),
        (f"{HEAD}\ntrained: {{x: null}}", r"study.yaml: trained\.x must be a mapping .*, not None"),
        (f"{HEAD}\ntrained: {{x: {{title: 5, settings: {{}}}}}}", "x: title must be a string, not 5"),
        (f"{HEAD}\ntrained: {{x: {{title: a, recipe: 5}}}}", "x: recipe must be a string, not 5"),
        (f"{HEAD}\ntrained: {{x: {{titel: a, recipe: b}}}}", "x: there is no setting 'titel'"),
        ("problems: 1\nuntrained: {base: {title: a, model: 7}}\ntrained: {}", "base: model must be a string"),
        ("problems: 1\nuntrained: {base: {model: b}}\ntrained: {}", "yaml, base: title is required"),
        (f"{HEAD}\ntrained: {{}}\nbase: 5", "study.yaml: base must be a mapping"),
        (f"{HEAD}\ntrained: {{}}\ncompare: 5", "study.yaml: compare must be a list"),
        (f"{HEAD}\ntrained: {{}}\ncompare: [[base, base, base]]", "compare must be a shorter list"),
        (f"{HEAD}\ntrained: {{x: {{title: x, settings: {{objectiv: 1}}}}}}", "x: there is no setting"),
    ],
)
def test_studies_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_study(str(path))


def test_the_table_cuts_no_number_for_a_long_title():
    estimate = {"accuracy": 100.0, "low": 79.0, "high": 100.0}
    method = {
        "title": "larger teacher, shown crop and cue",
        "in_domain": estimate,
        "out_of_domain": estimate,
        "visual_advantage": {"teacher": -0.25, "own": 12.5},
        "hint_leakage": {"samples": 640},
        "seconds": 1234.0,
    }
    difference = {"ours": "x", "theirs": "base", "in_domain": {"value": -41.6, "low": -48.2, "high": -35.0}}
    console = Console(width=80, record=True)
    console.print(study_table({"seeds": 1, "methods": {"x": method}, "differences": [difference]}))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    row = next(line for line in text.splitlines() if "larger" in line)
    assert row.endswith("100.0 ±10.5  -41.6 ±6.6  100.0 ±10.5  -0.25  12.50   640  1234 ")


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


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/tmp/evil",
        "a/b",
        ".hidden",
        "..",
        "",
        " a",
        "a\0b",
        "a\nb",
        "x" * 101,
        "data",
        "Evaluation",
    ],
)
@pytest.mark.parametrize("rows", ["trained", "untrained"])
def test_a_row_cannot_leave_the_folder_of_its_study(tmp_path, name, rows):
    study = {
        "problems": 4,
        "untrained": {"base": {"title": "a", "model": "vicur:tiny-student"}},
        "trained": {},
    }
    row = {"title": "x", "recipe": "cuebench/vgs"} if rows == "trained" else study["untrained"]["base"]
    study[rows][name] = dict(row)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(SettingsError, match=rf"study\.yaml: each name in {rows} must be "):
        load_study(str(tmp_path / "study.yaml"))


def test_a_row_may_have_a_name_with_spaces_and_signs(tmp_path):
    (tmp_path / "s.yaml").write_text(
        f"{HEAD}\ntrained: {{VGS + LP 0.5-x_y: {{title: x, recipe: cuebench/vgs}}}}"
    )
    assert list(load_study(str(tmp_path / "s.yaml")).trained) == ["VGS + LP 0.5-x_y"]
