"""Experiment trackers: what they get, and what happens when one fails."""

from __future__ import annotations

import json
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from launching import write_problems

from vicur.cli.main import main
from vicur.reporting.alarms import Alarm
from vicur.run.live import response_table
from vicur.training.trackers import TRACKERS, Trackers, check_trackers, open_trackers


class Remembers:
    """A tracker that keeps everything."""

    def __init__(self):
        self.logged, self.alerts, self.finished = [], [], 0

    def log(self, step, numbers):
        self.logged.append((step, numbers))

    def alert(self, alarm):
        self.alerts.append(alarm)

    def finish(self, outcome):
        self.finished += 1


class Breaks(Remembers):
    def log(self, step, numbers):
        raise ConnectionError("the server is gone")


def test_numbers_are_grouped_and_finite():
    tracker = Remembers()
    trackers = Trackers({"ours": tracker})
    trackers.log(3, "train", {"step": 3, "loss": 0.5, "bad": float("nan"), "name": "x", "none": None})
    trackers.alert(Alarm("length", 3, "Long."))
    trackers.finish("finished")
    assert tracker.logged == [(3, {"train/loss": 0.5})]
    assert tracker.alerts[0].kind == "length" and tracker.finished == 1


def test_a_tracker_that_fails_is_dropped_and_the_others_stay():
    sentences = []
    good = Remembers()
    trackers = Trackers({"bad": Breaks(), "good": good}, sentences.append)
    for step in (1, 2):
        trackers.log(step, "train", {"loss": 1.0})
    assert len(good.logged) == 2 and set(trackers.trackers) == {"good"}
    assert sentences == ["bad failed, and gets no more numbers of this run: the server is gone."]


def test_a_tracker_that_is_missing_or_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("vicur.training.trackers.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"names wandb, which is not installed: pip install 'vicur\[wandb\]'"
    ):
        check_trackers(["wandb"])
    check_trackers([])
    refuses = SimpleNamespace(init=lambda **_: (_ for _ in ()).throw(RuntimeError("no key\nfor you")))
    monkeypatch.setitem(sys.modules, "wandb", refuses)
    with pytest.raises(ValueError, match=r"training\.report_to=wandb: no key\."):
        open_trackers(["wandb"], "p", tmp_path, {}, print)


def test_each_tracker_is_called_as_its_library_wants(tmp_path, monkeypatch):
    """The calls, with stand-ins for the libraries; docs/report.md says which real ones were tried."""
    calls = []

    def note(name):
        return lambda *args, **kwargs: (
            calls.append((name, args, kwargs))
            or SimpleNamespace(
                log=note("run.log"),
                alert=note("run.alert"),
                finish=note("run.finish"),
                define_metric=note("run.define_metric"),
                info=SimpleNamespace(run_id="7"),
            )
        )

    names = ("init", "log", "alert", "finish")
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(**{name: note(name) for name in names}))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=note("wandb.init")))
    flow = ("set_experiment", "start_run", "log_params", "log_metrics", "set_tag", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{name: note(name) for name in flow}))
    trackers = open_trackers(["trackio", "wandb", "mlflow"], "p", tmp_path, {"a": 1}, print)
    trackers.log(4, "train", {"loss": 1.0})
    trackers.alert(Alarm("length", 4, "Long."))
    trackers.finish("finished")
    assert ("log", ({"train/loss": 1.0},), {"step": 4}) in calls
    assert ("run.log", ({"train/loss": 1.0, "step": 4},), {}) in calls
    assert ("run.define_metric", ("*",), {"step_metric": "step"}) in calls
    assert ("log_metrics", ({"train/loss": 1.0},), {"step": 4}) in calls
    assert ("alert", (), {"title": "length", "text": "Long."}) in calls
    assert ("set_tag", ("alarm.length", "Long."), {}) in calls
    assert {"finish", "run.finish", "end_run"} <= {name for name, *_ in calls}
    assert json.loads((tmp_path / "trackers.json").read_text())["mlflow"] == "7"
    calls.clear()
    open_trackers(["mlflow"], "p", tmp_path, {}, print)  # a resumed run continues the same one
    assert ("start_run", (), {"run_id": "7", "run_name": None}) in calls
    assert set(TRACKERS) == {"trackio", "tensorboard", "wandb", "mlflow"}


@pytest.mark.parametrize(
    ("outcome", "code", "state"),
    [("finished", 0, "FINISHED"), ("failed", 1, "FAILED"), ("interrupted", 1, "KILLED")],
)
def test_trackers_learn_how_a_run_ended(tmp_path, monkeypatch, outcome, code, state):
    calls = []
    run = SimpleNamespace(
        finish=lambda exit_code: calls.append(exit_code),
        define_metric=lambda *_, **__: None,
        info=SimpleNamespace(run_id="7"),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    flow = SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=lambda **_: run,
        log_params=lambda params: None,
        end_run=calls.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", flow)
    open_trackers(["wandb", "mlflow"], "p", tmp_path, {}, print).finish(outcome)
    assert calls == [code, state]


def test_a_tracker_that_cannot_be_opened_closes_those_before_it(tmp_path, monkeypatch):
    first = Remembers()
    monkeypatch.setitem(TRACKERS, "trackio", lambda *_: first)
    monkeypatch.setitem(TRACKERS, "wandb", lambda *_: (_ for _ in ()).throw(RuntimeError("no key")))
    with pytest.raises(ValueError, match="no key"):
        open_trackers(["trackio", "wandb"], "p", tmp_path, {}, print)
    assert first.finished == 1


def test_a_run_logs_and_shows_responses(tmp_path, monkeypatch, capsys):
    tracker = Remembers()
    monkeypatch.setitem(TRACKERS, "trackio", lambda *_: tracker)
    monkeypatch.setattr("vicur.run.build.check_trackers", lambda names: None)
    data = write_problems(tmp_path, 16, validation=3)
    held_out = data.with_name("validation.parquet")
    arguments = [
        *("train", "cuebench/opsd_cue", f"data.train={data}", f"training.output={tmp_path / 'run'}"),
        *("training.steps=10", "training.prompts_per_step=2", "rollout.sampling.max_new_tokens=3"),
        *("training.report_to=[trackio]", "training.show_responses=5", "training.save_model=false"),
        *(
            f"training.evaluate.data={held_out}",
            "training.checkpoints.every=null",
            "optimizer.learning_rate=1e-9",
        ),
    ]
    assert main(arguments) == 0
    steps = [step for step, numbers in tracker.logged if "train/loss" in numbers]
    assert steps == list(range(1, 11))
    assert [s for s, numbers in tracker.logged if "evaluate/accuracy" in numbers] == [0, 10]
    assert tracker.finished == 1
    error = capsys.readouterr().err
    assert error.count("question") == 2 and "Step 5" in error and "Step 10" in error


def test_markup_in_a_response_is_printed_as_text():
    from rich.console import Console

    row = {"question": "[red]?", "response": "[b]4[/b]\x1b[31m", "answer": None, "correct": None, "gap": None}
    console = Console(width=100, record=True, file=StringIO())
    console.print(response_table(1, [row]))
    text = console.export_text()
    assert "[red]?" in text and "[b]4[/b]\\x1b[31m" in text and "not graded" in text
