"""Analyses of recorded runs, on planted data."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from recorded import metrics, write_run

from vicur.cli.main import main
from vicur.paths import names_of
from vicur.reporting.drift import CURVES, DriftSettings, drift_over_training
from vicur.reporting.gap import GapSettings, draw_gap, gap_over_training
from vicur.reporting.leakage import LeakageSettings, leakage_by_epoch, leakage_over_training
from vicur.reporting.phases import TimeSettings, time_of_runs
from vicur.reporting.runs import RecordedRun
from vicur.reporting.series import smoothed


@pytest.fixture
def run(tmp_path):
    """8 problems, 2 per step, one response each: epochs of four steps."""
    lines = [
        metrics(step, hint_samples=float(step > 4), hint_occurrences=2.0 * (step > 4))
        for step in range(1, 11)
    ]
    evaluations = {0: {"a": True, "b": False}, 10: {"a": True, "b": True}}
    return write_run(tmp_path / "ours", lines, evaluations=evaluations)


def test_leakage_is_counted_by_epoch(run):
    """Steps 1-4 without, 5-8 and 9-10 with one response of two and two occurrences each."""
    epochs = leakage_by_epoch(run)
    counts = [(e["epoch"], e["steps"], e["samples"], e["occurrences"], e["rate"]) for e in epochs]
    assert counts == [(1, 4, 0, 0, 0.0), (2, 4, 4, 8, 0.5), (3, 2, 2, 4, 0.5)]
    assert [epoch["steps"] for epoch in leakage_by_epoch(run, 5)] == [5, 5]
    whole = leakage_over_training(LeakageSettings(runs=[str(run.folder)]))
    assert sum(e["samples"] for e in whole.values["runs"]["ours"]) == 6


def test_the_gap_keeps_its_sign_and_its_absolute_value(run):
    finding = gap_over_training(GapSettings(runs=[str(run.folder)]))
    ours = finding.values["runs"]["ours"]
    assert ours["gap_whole"]["values"][0] == pytest.approx(-0.49)
    assert ours["gap_absolute_whole"]["values"][-1] == pytest.approx(0.4)
    assert ours["held_out_accuracy"]["values"] == [50.0, 100.0]
    assert "teacher minus student" in finding.values["units"]["gap"]


def test_the_gap_is_split_where_a_teacher_was_shown_more(run, tmp_path):
    parts = {"privilege_gap_whole": -0.1, "capability_gap_whole": -0.3}
    write_run(tmp_path / "hinted", [metrics(step, **parts) for step in range(1, 4)])
    finding = gap_over_training(GapSettings(runs=[str(run.folder), str(tmp_path / "hinted")]))
    hinted = finding.values["runs"]["hinted"]
    assert hinted["privilege_gap_whole"]["values"] == [-0.1] * 3
    assert finding.values["runs"]["ours"]["privilege_gap_whole"]["values"] == []
    assert (
        len(finding.tables) == 2 and len(gap_over_training(GapSettings(runs=[str(run.folder)])).tables) == 1
    )
    runs = [RecordedRun(tmp_path / "hinted", "hinted")]
    titles = [panel.get_title() for panel in draw_gap(runs).axes]
    assert titles[1:3] == ["Gap from the privilege", "Gap from the capability"] and titles[-1] == ""
    assert len(draw_gap([run]).axes) == 6


def test_time_is_split_into_phases_and_compared(run, tmp_path):
    lines = [metrics(step, seconds=4.0, seconds_rollout=3.0) for step in range(1, 4)]
    write_run(tmp_path / "slow", lines)
    finding = time_of_runs(TimeSettings(runs=[str(run.folder), str(tmp_path / "slow")]))
    ours, slow = (finding.values["runs"][name] for name in ("ours", "slow"))
    assert ours["phases"] == {"rollout": 10.0, "update": 5.0, "evaluation": 1.0} and ours["total"] == 10.0
    assert (ours["step_ratio"], slow["step_ratio"], slow["median_step"]) == (1.0, 2.0, 4.0)
    assert ours["held_out_accuracy"]["seconds"] == [0.0, 36000.0]
    with pytest.raises(ValueError, match="reference=x is none of the runs ours"):
        time_of_runs(TimeSettings(runs=[str(run.folder)], reference="x"))


def test_drift_reports_every_curve(run):
    finding = drift_over_training(DriftSettings(runs=[str(run.folder)]))
    assert finding.values["runs"]["ours"]["response_tokens"]["values"] == [20.0] * 10


def test_drift_of_planted_curves(tmp_path):
    """Every curve has numbers of its own; the table has the first and the last tenth."""
    names = [*CURVES]
    lines = [
        metrics(step, **{name: 100.0 * place + step for place, name in enumerate(names)})
        for step in range(1, 21)
    ]
    run = write_run(tmp_path / "planted", lines)
    finding = drift_over_training(DriftSettings(runs=[str(run.folder)]))
    curves = finding.values["runs"]["planted"]
    assert {name: curve["values"] for name, curve in curves.items()} == {
        name: [100.0 * place + step for step in range(1, 21)] for place, name in enumerate(names)
    }
    (table,) = finding.tables
    for place, row in enumerate(table.columns[2].cells):
        assert float(row) == pytest.approx(100 * place + 1.5, abs=0.5)
    for place, row in enumerate(table.columns[3].cells):
        assert float(row) == pytest.approx(100 * place + 19.5, abs=0.5)


@pytest.mark.parametrize("analysis", ["gap", "leakage", "time", "drift"])
def test_a_command_writes_numbers_and_figures(run, tmp_path, capsys, analysis):
    out = tmp_path / "out"
    arguments = ["diagnose", analysis, str(run.folder), "--names", "<b>&$x$", "--output", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    values = json.loads((out / f"{analysis}.json").read_text())
    assert values["analysis"] == analysis and "<b>&$x$" in values["runs"] and "Written:" in printed
    svg = ET.parse(out / f"{analysis}.svg").getroot()
    assert svg.tag.endswith("svg") and (out / f"{analysis}.png").stat().st_size > 5000
    first = (out / f"{analysis}.svg").read_bytes()
    assert main(arguments) == 1 and "already exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert (out / f"{analysis}.svg").read_bytes() == first  # no date, no random id
    assert main(["diagnose", analysis, str(run.folder), "--json"]) == 0
    capsys.readouterr()


def test_mistakes_are_explained(tmp_path, capsys):
    assert main(["diagnose", "gap", str(tmp_path)]) == 1
    assert "is not the folder of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["diagnose", "gap"])
    assert "required: RUN" in capsys.readouterr().err
    without = [{"step": 1, "loss": 1.0, "hint_samples": 0.0, "hint_occurrences": 0.0}]
    write_run(tmp_path / "x", without)
    assert main(["diagnose", "gap", str(tmp_path / "x")]) == 1
    assert "it needs a teacher and a finished step" in capsys.readouterr().err


def test_a_line_that_is_being_written_is_left_out(run):
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    assert len(RecordedRun(run.folder, "x").metrics) == 10


def test_names_are_the_ends_that_differ():
    assert names_of(["runs/a/checkpoints/final", "runs/b/checkpoints/final"]) == ["a", "b"]
    assert names_of(["x/one", "y/one"]) == ["x/one", "y/one"]
    assert names_of(["runs/a", "vicur:tiny-student"]) == ["a", "vicur:tiny-student"]
    with pytest.raises(ValueError, match="2 names for 1 paths"):
        names_of(["a"], ["x", "y"])
    with pytest.raises(ValueError, match="Two of the names are x"):
        names_of(["a", "b"], ["x", "x"])


def test_smoothing_worked():
    assert smoothed([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    assert smoothed([1.0, 2.0, 6.0], 3) == [1.5, 3.0, 4.0]
