"""`vicur diagnose drift`: length, truncation, marked answers and repetition of responses over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from vicur.reporting.curves import curve, draw_curves
from vicur.reporting.figures import legend, new_figure
from vicur.reporting.finding import Finding
from vicur.reporting.runs import RecordedRun
from vicur.reporting.series import ends
from vicur.reporting.settings import RunsSettings
from vicur.settings.section import section
from vicur.tables import plain_table

CURVES = {
    "response_tokens": ("Response length", "tokens"),
    "truncated": ("Truncated responses", "share"),
    "answers_marked": ("Responses that mark an answer", "share"),
    "repetition": ("Repeated 4-grams", "share"),
    "entropy": ("Entropy of the student", "nats per token"),
    "rollout_accuracy": ("Accuracy of training responses", "%"),
}
"""Metrics, with title and unit."""


@section
class DriftSettings(RunsSettings):
    """The settings of `vicur diagnose drift`."""


def drift_over_training(settings: DriftSettings) -> Finding:
    """Length, truncation, marked answers, repetition, entropy and accuracy of the training responses.

    Raises:
        ValueError: a folder is not that of a run.
    """
    runs = settings.open()
    values: dict[str, Any] = {
        "units": {name: unit for name, (_, unit) in CURVES.items()},
        "runs": {run.name: {name: curve(run, name) for name in CURVES} for run in runs},
    }
    rows = []
    for run in runs:
        for name, (title, unit) in CURVES.items():
            first, last = ends(run.series(name)[1])
            rows.append([run.name, f"{title.lower()}, {unit}", first, last])
    table = plain_table(
        "Drift: means over the first and the last tenth of the steps", ["run", "", "first", "last"], rows
    )
    return Finding("drift", values, lambda: draw_drift(runs, settings.smooth), (table,))


def draw_drift(runs: Sequence[RecordedRun], smooth: int = 1) -> Figure:
    """A panel for each of `CURVES`."""
    figure, panels = new_figure(2, 3)
    for panel, (name, (title, unit)) in zip(panels, CURVES.items(), strict=True):
        draw_curves(panel, runs, name, title, unit, smooth)
    legend(figure, panels[0])
    return figure
