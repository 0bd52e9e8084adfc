"""Curves of recorded runs, and the labels of their panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from vicur.reporting.figures import draw_band, draw_series
from vicur.reporting.runs import RecordedRun, is_number
from vicur.reporting.series import smoothed


def curve(run: RecordedRun, name: str) -> dict[str, list[Any]]:
    """A metric of a run by step, for JSON."""
    steps, values = run.series(name)
    return {"steps": steps, "values": values}


def accuracies(run: RecordedRun) -> dict[str, list[Any]]:
    """The held-out accuracies of a run, in percent, with the ends of their intervals, and when they were
    measured."""
    lines = [line for line in run.evaluations if is_number(line.get("accuracy"))]
    names = {"steps": "step", "values": "accuracy", "low": "low", "high": "high", "seconds": "seconds"}
    return {name: [line.get(key) for line in lines] for name, key in names.items()}


def draw_curves(
    panel: Axes, runs: Sequence[RecordedRun], name: str, title: str, unit: str, smooth: int = 1
) -> None:
    """Draw a metric of several runs over the steps; an empty panel says that no run has it."""
    for index, run in enumerate(runs):
        steps, values = run.series(name)
        if steps:
            draw_series(panel, steps, smoothed(values, smooth), index, run.name)
    finish(panel, title, unit)


def draw_accuracies(panel: Axes, runs: Sequence[RecordedRun]) -> None:
    """Draw the held-out accuracies of several runs with their intervals."""
    for index, run in enumerate(runs):
        measured = accuracies(run)
        if measured["steps"]:
            draw_band(panel, measured["steps"], measured["low"], measured["high"], index)
            draw_series(panel, measured["steps"], measured["values"], index, run.name)
    finish(panel, "Held-out accuracy", "%")


def finish(panel: Axes, title: str, unit: str, x: str = "step") -> None:
    """Title and labels of a panel; a panel without data says so."""
    panel.set_title(title)
    panel.set_xlabel(x)
    panel.set_ylabel(unit)
    if not panel.has_data():
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", va="center")
        panel.set_xticks([])
        panel.set_yticks([])
