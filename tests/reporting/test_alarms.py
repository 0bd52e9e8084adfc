"""Every alarm rings on a planted curve, and none on a quiet one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from recorded import metrics, write_run

from vicur.reporting.alarms import alarms_of
from vicur.run.live import Live
from vicur.training.loop import TrainingConfig
from vicur.training.trackers import Trackers


def curve(name, first, last, steps=20):
    """Metrics in which one number goes from `first` to `last`."""
    half = steps // 2
    return [metrics(step, **{name: first if step <= half else last}) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("kind", "name", "first", "last"),
    [
        ("leakage", "hint_samples", 1.0, 10.0),
        ("length", "response_tokens", 20.0, 40.0),
        ("length", "response_tokens", 40.0, 20.0),
        ("truncation", "truncated", 0.0, 0.2),
        ("repetition", "repetition", 0.1, 0.5),
        ("engine", "engine_difference", 1e-6, 1e-5),
    ],
)
def test_each_alarm_rings(kind, name, first, last):
    (alarm,) = alarms_of(curve(name, first, last), [], responses_per_step=100)
    assert alarm.kind == kind and alarm.step == 20 and alarm.text.endswith(".")


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("hint_samples", 1.0, 1.0),  # 1 % of the responses
        ("hint_samples", 30.0, 40.0),  # not doubled
        ("response_tokens", 20.0, 25.0),
        ("truncated", 0.3, 0.2),
        ("repetition", 0.0, 0.2),
        ("engine_difference", 1e-6, 2e-6),
    ],
)
def test_quiet_curves_ring_nothing(name, first, last):
    assert alarms_of(curve(name, first, last), [], responses_per_step=100) == []


@pytest.mark.parametrize(
    ("name", "first", "quiet", "rings"),
    [
        ("hint_samples", 0.5, 1.9, 2.1),  # of 100 responses
        ("hint_samples", 3.0, 5.9, 6.1),
        ("response_tokens", 20.0, 29.0, 31.0),
        ("response_tokens", 30.0, 21.0, 19.0),
        ("truncated", 0.0, 0.09, 0.11),
        ("repetition", 0.0, 0.29, 0.31),
        ("engine_difference", 1e-6, 2.9e-6, 3.1e-6),
    ],
)
def test_thresholds(name, first, quiet, rings):
    assert alarms_of(curve(name, first, quiet), [], responses_per_step=100) == []
    assert len(alarms_of(curve(name, first, rings), [], responses_per_step=100)) == 1


@pytest.mark.parametrize(
    ("accuracy", "gap", "rings"), [(57.9, 0.44, True), (58.1, 0.44, False), (57.9, 0.46, False)]
)
def test_thresholds_of_accuracy_and_gap(accuracy, gap, rings):
    lines = curve("gap_absolute_whole", 0.5, gap)
    measured = [{"step": 0, "accuracy": 60.0}, {"step": 20, "accuracy": accuracy}]
    assert bool(alarms_of(lines, measured, 100)) is rings


def test_a_gap_that_falls_with_the_accuracy():
    """The student agrees more with the teacher, and is right less often."""
    lines = [metrics(step, gap_absolute_whole=0.5 if step <= 10 else 0.2) for step in range(1, 21)]
    worse = [{"step": 0, "accuracy": 60.0}, {"step": 20, "accuracy": 55.0}]
    better = [{"step": 0, "accuracy": 60.0}, {"step": 20, "accuracy": 65.0}]
    (alarm,) = alarms_of(lines, worse, 100)
    assert alarm.kind == "accuracy" and "60.0 to 55.0" in alarm.text and "held-out" in alarm.text
    assert alarms_of(lines, better, 100) == []
    falling = [line | {"rollout_accuracy": 60.0 if line["step"] <= 10 else 40.0} for line in lines]
    (alarm,) = alarms_of(falling, [], 100)
    assert "training accuracy fell from 60.0 to 40.0" in alarm.text
    steady = [line | {"gap_absolute_whole": 0.5} for line in falling]
    assert alarms_of(steady, [], 100) == []


def test_few_steps_are_not_judged_but_skipped_updates_are():
    lines = [metrics(1), metrics(2, skipped_updates=1.0), metrics(3)]
    (alarm,) = alarms_of(lines, [], 100)
    assert (alarm.kind, alarm.step) == ("skipped", 2)
    assert alarms_of(curve("response_tokens", 20.0, 90.0, steps=8), [], 100) == []


def test_an_alarm_rings_once_and_when_curves_are_judged(tmp_path):
    lines = [metrics(step, response_tokens=10.0 * step) for step in range(1, 13)]
    run = write_run(tmp_path / "run", lines)
    sentences, alerts = [], []
    tracker = SimpleNamespace(alert=alerts.append)
    progress = SimpleNamespace(say=sentences.append)
    live = Live(run.folder, TrainingConfig(), Trackers({"ours": tracker}), progress)
    due = [step for step in range(1, 31) if live.is_due(step, is_evaluated=False)]
    assert due == [10, 20, 30] and live.is_due(3, is_evaluated=True)
    live.after_step(3, [], is_evaluated=False)
    assert alerts == []
    for step in (10, 20):
        live.after_step(step, [], is_evaluated=False)
    assert [alarm.kind for alarm in alerts] == ["length"]
    assert sentences == ["Alarm (length): Responses went from 10 to 120 tokens."]
    resumed = Live(run.folder, TrainingConfig(), Trackers({"ours": tracker}), progress)
    resumed.pass_over_present()
    resumed.after_step(20, [], is_evaluated=False)
    assert len(alerts) == 1
