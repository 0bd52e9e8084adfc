"""`vicur bench step`: recipes in turn on the same data, and the arithmetic of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vicur.bench.step import StepSettings, described, draw_steps, load_recipes
from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.reporting.figures import styled
from vicur.run.recipe import load_recipe

RECIPES = ["cuebench/opd_cue", "cuebench/vgs"]
SMALL = ["training.prompts_per_step=2", "rollout.group_size=1", "rollout.sampling.max_new_tokens=2"]


def step(seconds, rollout, tokens=10.0):
    parts = {"seconds_rollout": rollout, "seconds_update": seconds - rollout}
    return {"seconds": seconds, "response_tokens": tokens, **parts}


def test_ratios_are_of_medians_overall_and_by_round():
    """First: 2, 4 | 6, 6 (median 5). Second: 4, 8 | 9, 15 (median 8.5): 1.7 in all, 6/3 and 12/6 by round."""
    rounds = {
        "first": [[step(2.0, 1.0), step(4.0, 1.0)], [step(6.0, 2.0), step(6.0, 2.0)]],
        "second": [[step(4.0, 1.0, 20.0), step(8.0, 3.0, 40.0)], [step(9.0, 3.0), step(15.0, 5.0)]],
    }
    recipes = dict(zip(rounds, map(load_recipe, RECIPES), strict=True))
    results = described(recipes, rounds)
    assert results["first"]["ratio"] == 1 and results["second"]["ratio"] == pytest.approx(1.7)
    assert results["second"]["ratio_by_round"] == [2, 2]
    assert results["second"]["phases"] == {"rollout": 3, "update": 5.5}
    assert results["second"]["step"] == {"median": 8.5, "low": 4, "high": 15, "count": 4}
    assert results["second"]["response_tokens"] == 20 and results["second"]["responses"] == 64
    with styled():
        (panel,) = draw_steps(results).axes
    assert [[bar.get_width() for bar in bars] for bars in panel.containers] == [[1.5, 3], [3.5, 5.5]]
    assert [text.get_text() for text in panel.texts] == ["1.00 x", "1.70 x"]


def test_only_the_steps_are_run_and_on_the_same_data():
    settings = StepSettings(recipes=RECIPES, steps=3, warm_up=2)
    recipes = load_recipes(
        settings, ["data.train=a.parquet", "training.evaluate.data=b.parquet", "training.observe.of=[vds]"]
    )
    for recipe in recipes.values():
        training = recipe.training
        assert training.steps == 5 and training.evaluate.data is None and not training.report.enabled
        assert not training.observe.of
        assert not training.save_model and training.checkpoints.every is None
    with pytest.raises(ValueError, match="at least one recipe"):
        load_recipes(StepSettings(), [])


def test_other_data_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{train: {name}.parquet}}\n")
    recipes = [str(tmp_path / f"{name}.yaml") for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"a.parquet and b.parquet. Set data.train for all"):
        load_recipes(StepSettings(recipes=recipes), [])


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet("segments", "train", 4, tmp_path / "train.parquet")
    words = ["bench", "step", *RECIPES, "data.train=train.parquet", *SMALL, "--output", "out"]
    assert main([*words, "--steps", "1", "warm_up=1", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "step over that of" in out and "The steps differ in size" not in out
    values = json.loads(Path("out/step.json").read_text())
    assert values["reference"] == "opd_cue"
    for recipe in values["recipes"].values():
        assert [len(seconds) for seconds in recipe["seconds_by_round"]] == [1, 1]
        assert {"rollout", "teacher", "update"} <= set(recipe["phases"]) and recipe["responses"] == 2
    assert not Path("runs").exists()
