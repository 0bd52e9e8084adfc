"""`vicur sweep`: what is swept, that runs are reused and resumed, and the numbers of the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.evaluation.statistics import accuracy_interval, mean_interval
from vicur.reporting.figures import styled
from vicur.reporting.sweep import (
    DrawnSweep,
    SweepsSettings,
    draw_sweeps,
    measured,
    sweep_finding,
    sweep_markdown,
    sweeps_together,
)
from vicur.settings.section import SettingsError
from vicur.studies.sweep import SweepSettings, divided, plan_sweep, swept_settings

ALPHA = "objective.visual_steering.alpha"
HELD_OUT = "training.evaluate.data=test.parquet"


# ------------------------------------------------------------------------------------------- the grammar


def test_commas_divide_outside_of_brackets_and_quotes():
    assert divided("0.5,1, 2") == ["0.5", "1", "2"]
    assert divided("[0,5],[0, 10]") == ["[0,5]", "[0, 10]"]
    assert divided("'a,b',c") == ["'a,b'", "c"]
    assert divided("7") == ["7"]


def test_only_several_values_are_swept():
    """Numbers, switches and choices are; texts and lists with commas are single values."""
    pairs = [
        f"--{ALPHA}=0.5,1",
        "training.steps=3",
        "teacher.privilege=none,cue",
        "objective.visual_steering.adaptive=true,false",
        "data.system_prompt=First, look. Then, answer.",
        "student.recovery.layers=[0,5]",
        "data.max_pixels=null,1000",
        "optimizer.learning_rate=1e-5,1e-4",
    ]
    axes, fixed = swept_settings(pairs)
    assert axes == {
        ALPHA: ["0.5", "1"],
        "teacher.privilege": ["none", "cue"],
        "objective.visual_steering.adaptive": ["true", "false"],
        "data.max_pixels": ["null", "1000"],
        "optimizer.learning_rate": ["1e-5", "1e-4"],
    }
    assert fixed == [pairs[1], pairs[4], pairs[5]]


def test_a_grid_divides_texts_and_lists():
    axes, fixed = swept_settings([], ["student.model=vicur:tiny-student,vicur:tiny-teacher"])
    assert axes == {"student.model": ["vicur:tiny-student", "vicur:tiny-teacher"]} and not fixed
    axes, _ = swept_settings([], ["student.recovery.layers=[0],[0,5]"])
    assert axes == {"student.recovery.layers": ["[0]", "[0,5]"]}


@pytest.mark.parametrize(
    "pairs, grid, message",
    [
        (["training.steps=3"], [], "Nothing to sweep"),
        (["optimizer.learning_rate=1,x"], [], r"optimizer\.learning_rate=1,x is one value: 'x' is a text"),
        (["training.steps=3,4", "training.steps=5"], [], "both swept and set"),
        (["training.steps=3,4"], ["training.steps=5,6"], "swept twice"),
        (["training.seed=0,1"], [], "use --seeds"),
        (["training.evaluate.samples=1,2"], [], "compared by the same evaluation"),
        (["training.steps=1,2", "training.output=x"], [], "set --output"),
        ([], ["training.steps"], "KEY=A,B,C"),
    ],
)
def test_refused(pairs, grid, message):
    with pytest.raises(ValueError, match=message):
        swept_settings(pairs, grid)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet("segments", "train", 4, tmp_path / "train.parquet")
    write_parquet("segments", "test", 4, tmp_path / "test.parquet")
    table = pq.read_table("test.parquet")
    pq.write_table(table.append_column("kind", pa.array(["a", "b", "a", "b"])), "test.parquet")
    Path("mine.yaml").write_text(
        "student: {model: 'vicur:tiny-student'}\n"
        "teacher: {model: 'vicur:tiny-teacher', privilege: none}\n"
        "objective: {visual_steering: {}}\n"
        "data: {train: train.parquet}\n"
        "rollout: {sampling: {max_new_tokens: 2}}\n"
        "training: {steps: 1, prompts_per_step: 2, save_model: false, report: {enabled: false}}\n"
    )
    return tmp_path


def plan(*overrides, recipe="mine.yaml", **settings):
    return plan_sweep(recipe, SweepSettings(**settings), [HELD_OUT, *overrides])


def test_every_combination_and_seed_is_a_run_in_its_folder(here):
    sweep = plan(f"{ALPHA}=0.5,1", "objective.visual_steering.beta=0,0.01", seeds=2, output="out")
    assert len(sweep.runs) == 8 and sweep.keys == (ALPHA, "objective.visual_steering.beta")
    last = sweep.runs[-1]
    assert last.folder == Path("out/alpha=1,beta=0.01/seed-1")
    steering, training = last.recipe.objective.visual_steering, last.recipe.training
    assert (steering.alpha, steering.beta, training.seed, training.output) == (1, 0.01, 1, str(last.folder))
    assert sweep.points[0].settings == {ALPHA: 0.5, "objective.visual_steering.beta": 0}
    rates = plan("optimizer.learning_rate=1e-5,1e-4")
    assert [list(point.settings.values()) for point in rates.points] == [[1e-5], [1e-4]]
    assert plan(f"{ALPHA}=0.5,1", "training.seed=7").runs[0].folder.name == "seed-7"
    assert plan(f"{ALPHA}=0.5,1").folder == Path("runs/sweeps/mine")


def test_the_baseline_gets_the_shared_settings_but_not_those_of_the_objective(here):
    other = yaml.safe_load(Path("mine.yaml").read_text()) | {"objective": {"divergence": {}}}
    Path("standard.yaml").write_text(yaml.safe_dump(other))
    fixed = ("objective.visual_steering.beta=0", "optimizer.learning_rate=0.5")
    sweep = plan(f"{ALPHA}=1,2", *fixed, baseline="standard.yaml", seeds=2)
    assert [run.folder.name for run in sweep.baseline.runs] == ["seed-0", "seed-1"]
    recipe = sweep.baseline.runs[0].recipe
    assert recipe.objective.visual_steering is None and recipe.optimizer.learning_rate == 0.5
    assert sweep.runs[2].recipe.objective.visual_steering.beta == 0


@pytest.mark.parametrize(
    "overrides, settings, message",
    [
        (["training.evaluate.data=null"], {}, "compares accuracies on held-out problems"),
        (["training.seed=1"], {"seeds": 2}, "contradict each other"),
        (["rollout.sampling.max_new_tokens=2,3"], {}, "evaluated differently: training.evaluate.max_new"),
    ],
)
def test_runs_must_be_evaluated_alike(here, overrides, settings, message):
    with pytest.raises(ValueError, match=message):
        plan(f"{ALPHA}=1,2", *overrides, **settings)


def test_values_are_checked_before_anything_runs(here, capsys):
    with pytest.raises(SettingsError, match="alpha"):
        plan(f"{ALPHA}=1,-2")
    with pytest.raises(ValueError, match="same values"):
        plan(f"{ALPHA}=1,1")
    assert main(["sweep", "mine.yaml", HELD_OUT, f"{ALPHA}=1,2", "--by", "colour"]) == 1
    assert "colour" in capsys.readouterr().err and not Path("runs").exists()


# -------------------------------------------------------------------------------------------- real runs


def test_a_sweep_is_run_extended_and_resumed(here, capsys):
    words = ["sweep", "mine.yaml", HELD_OUT, "--output", "out", "--by", "kind", "training.steps=2"]
    saving = ["training.checkpoints.every=1", "training.checkpoints.keep=null"]
    assert main([*words, *saving, f"{ALPHA}=0.5,1"]) == 0
    values = json.loads(Path("out/sweep.json").read_text())
    assert [point["settings"][ALPHA] for point in values["points"]] == [0.5, 1]
    for point in values["points"]:
        (run,) = point["runs"]
        lines = Path(run["folder"], "evaluation.jsonl").read_text().splitlines()
        first, last = json.loads(lines[0]), json.loads(lines[-1])
        assert (last["step"], last["problems"]) == (2, 4) and first["step"] == 0
        assert point["accuracy"]["value"] == run["accuracy"]["value"] == last["accuracy"]
        assert run["before"] == first["accuracy"] and set(point["categories"]) == {"a", "b"}
    assert {"sweep.svg", "sweep.png", "sweep.md"} <= {path.name for path in Path("out").iterdir()}
    capsys.readouterr()

    first, second = (Path("out") / f"alpha={value}" / "seed-0" for value in ("0.5", "1"))
    before = (first / "metrics.jsonl").stat().st_mtime_ns
    status = json.loads((second / "status.json").read_text()) | {"status": "interrupted"}
    (second / "status.json").write_text(json.dumps(status))
    shutil.rmtree(second / "checkpoints" / "step-000002")
    assert main([*words, *saving, f"{ALPHA}=0.5,1,2"]) == 0
    out, err = capsys.readouterr()
    assert "alpha=0.5/seed-0, trained before" in out and "alpha=1/seed-0, trained before" not in out
    assert f"Resuming {second} after step 1." in err
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert len(json.loads(Path("out/sweep.json").read_text())["points"]) == 3

    assert main([*words, *saving, f"{ALPHA}=0.5,1", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    assert main([*words, *saving, f"{ALPHA}=0.5,1", "optimizer.learning_rate=0.5"]) == 1
    assert "A sweep with other settings needs another --output" in capsys.readouterr().err
    assert main([*words, *saving, f"{ALPHA}=0.5,1", "training.evaluate.problems=2"]) == 1
    assert "training.evaluate.problems is None in one and 2 in another" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the results


def write_run(folder, seed, correct, before=25.0):
    """A finished run with the verdicts on its held-out problems after the last step."""
    (folder / "evaluation").mkdir(parents=True)
    interval = accuracy_interval(list(correct.values()))
    lines = [
        {"step": 0, "problems": len(correct), "accuracy": before, "low": 0.0, "high": 50.0},
        {
            "step": 5,
            "problems": len(correct),
            "accuracy": interval.value,
            "low": interval.low,
            "high": interval.high,
        },
    ]
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = {"status": "finished", "step": 5, "seconds": {"total": 10.0}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "recipe.yaml").write_text(f"training: {{seed: {seed}}}\n")
    rows = [{"sample": name, "correct": value} for name, value in correct.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "evaluation" / "step-000005.parquet")
    return folder


KINDS = {"1": "high", "2": "high", "3": "low", "4": "low"}


def test_accuracy_by_category_and_over_seeds(tmp_path):
    """Seed 0: high 2 of 2, low 0 of 2. Seed 1: high 1 of 2, low 0 of 2."""
    first = write_run(tmp_path / "a", 0, {"1": True, "2": True, "3": False, "4": False})
    second = write_run(tmp_path / "b", 1, {"1": True, "2": False, "3": False, "4": False})
    alone = measured([first], KINDS)
    assert alone["accuracy"]["value"] == 50 and alone["accuracy"]["low"] == pytest.approx(15.0, abs=0.1)
    assert {name: each["value"] for name, each in alone["categories"].items()} == {"high": 100, "low": 0}
    both = measured([first, second], KINDS)
    assert both["accuracy"]["value"] == 37.5
    assert both["accuracy"]["high"] == pytest.approx(mean_interval([50.0, 25.0]).high)
    assert both["categories"]["high"]["value"] == 75 and both["categories"]["low"]["value"] == 0
    assert [run["seed"] for run in both["runs"]] == [0, 1]
    (first / "status.json").write_text('{"status": "finished", "step": 6, "seconds": {"total": 1}}')
    with pytest.raises(ValueError, match="no held-out accuracy after its last step"):
        measured([first])


def write_sweep(folder, values, key=ALPHA, baseline=True):
    """The results of a sweep over some values of which each has another accuracy."""
    points = []
    for index, value in enumerate(values):
        run = write_run(folder / str(index), 0, {"1": True, "2": index > 0, "3": index > 1, "4": False})
        points.append({"settings": {key: value}, **measured([run], KINDS)})
    reference = write_run(folder / "b", 0, {"1": True, "2": True, "3": False, "4": False})
    results = {
        "analysis": "sweep",
        "recipe": "mine",
        "keys": [key],
        "seeds": [0],
        "by": "kind",
        "before": 25.0,
        "points": points,
        "baseline": {"recipe": "standard", **measured([reference], KINDS)} if baseline else None,
    }
    (folder / "sweep.json").write_text(json.dumps(results))
    return results


def lines_of(panel):
    return {line.get_label(): [list(axis) for axis in line.get_data()] for line in panel.get_lines()}


def test_the_figure_shows_the_accuracies(tmp_path):
    values = write_sweep(tmp_path, [2.0, 0.5, 1.0])
    with styled():
        panels = draw_sweeps([DrawnSweep("mine", values)]).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["all problems", "kind: high", "kind: low"]
    lines = lines_of(panels[0])
    assert lines["mine"] == [[0.5, 1.0, 2.0], [50.0, 75.0, 25.0]]  # sorted by the value
    assert lines["standard"][1] == [50, 50] and lines["before training"][1] == [25, 25]
    assert lines_of(panels[1])["mine"][1] == [100, 100, 50]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["0.5", "1", "2"]
    finding = sweep_finding(values)
    assert finding.tables[0].row_count == 4 and finding.tables[1].row_count == 2
    text = sweep_markdown(values)
    assert "| 2.0 | 25.0 [4.6, 69.9] | 5 |" in text and "| kind | 2.0 | 0.5 | 1.0 | standard |" in text


def test_axes_are_logarithmic_or_side_by_side_where_numbers_are_far_apart(tmp_path):
    spread = write_sweep(tmp_path / "a", [0.001, 0.01, 1.0])
    with styled():
        assert draw_sweeps([DrawnSweep("a", spread)]).axes[0].get_xscale() == "log"
    crowded = write_sweep(tmp_path / "b", [0.0, 0.001, 1.0])
    with styled():
        panel = draw_sweeps([DrawnSweep("b", crowded)]).axes[0]
    assert panel.get_xscale() == "linear" and list(panel.get_xticks()) == [0, 1, 2]
    words = write_sweep(tmp_path / "c", ["none", "cue", "answer"], key="teacher.privilege")
    with styled():
        panel = draw_sweeps([DrawnSweep("c", words)]).axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["none", "cue", "answer"]


def test_several_sweeps_in_one_figure(tmp_path):
    for name in ("visual", "language"):
        write_sweep(tmp_path / name, [1.0, 2.0])
    folders = [str(tmp_path / name) for name in ("visual", "language")]
    finding = sweeps_together(SweepsSettings(sweeps=folders, left=["language"]))
    with styled():
        panel = finding.draw().axes[0]
    lines = lines_of(panel)
    assert sorted(lines["language"][0]) == pytest.approx([-2, -1], abs=0.1)
    assert sorted(lines["visual"][0]) == pytest.approx([1, 2], abs=0.1)
    assert list(lines).count("standard") == 1 and "left of 0: language" in panel.get_xlabel()
    with pytest.raises(ValueError, match="left=other is none of the sweeps visual, language"):
        sweeps_together(SweepsSettings(sweeps=folders, left=["other"]))
    for name, values in (("words", ["none", "cue"]), ("switches", [True, False])):
        write_sweep(tmp_path / name, values, key="teacher.privilege")
        with pytest.raises(ValueError, match=f"left={name}: the values of .* are not numbers"):
            sweeps_together(SweepsSettings(sweeps=[str(tmp_path / name)], left=[name]))
    with pytest.raises(ValueError, match="not the folder of a finished sweep"):
        sweeps_together(SweepsSettings(sweeps=[str(tmp_path)]))
    out = tmp_path / "out"
    assert main(["diagnose", "sweep", *folders, "--left", "language", "--output", str(out)]) == 0
    assert json.loads((out / "sweeps.json").read_text())["left"] == ["language"]
