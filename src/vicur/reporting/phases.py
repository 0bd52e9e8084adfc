"""`vicur diagnose time`: where the time of runs goes (ViCuR table 6, VGS figure 9), and accuracy against
wall-clock time (VA-OPD figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vicur.reporting.curves import accuracies, finish
from vicur.reporting.figures import SERIES, draw_series, legend, new_figure, plain_text
from vicur.reporting.finding import Finding
from vicur.reporting.runs import RecordedRun, is_number
from vicur.reporting.settings import RunsSettings
from vicur.settings.section import Text, section
from vicur.tables import plain_table

PREFIX = "seconds_"
HOUR = 3600.0


@section
class TimeSettings(RunsSettings):
    """The settings of `vicur diagnose time`."""

    reference: Text | None = None
    """Name of the run that the others are compared with; null for the first."""


def time_of_runs(settings: TimeSettings) -> Finding:
    """Seconds of each run by phase, of a median step, and relative to one of the runs.

    Raises:
        ValueError: a folder is not that of a run, or there is no run of the name of the reference.
    """
    runs = settings.open()
    times = {run.name: time_by_phase(run) for run in runs}
    reference = settings.reference or runs[0].name
    if reference not in times:
        raise ValueError(f"reference={reference} is none of the runs {', '.join(times)}.")
    base = times[reference]["median_step"]
    for measured in times.values():
        step = measured["median_step"]
        measured["step_ratio"] = step / base if step and base else None
    phases = list(dict.fromkeys(phase for measured in times.values() for phase in measured["phases"]))
    values: dict[str, Any] = {
        "units": {"total": "seconds", "phases": "seconds", "median_step": "seconds"},
        "reference": reference,
        "runs": {run.name: times[run.name] | {"held_out_accuracy": accuracies(run)} for run in runs},
    }
    rows = [
        ["total", *(measured["total"] for measured in times.values())],
        *([phase, *(measured["phases"].get(phase) for measured in times.values())] for phase in phases),
        ["median step", *(measured["median_step"] for measured in times.values())],
        [f"median step over that of {reference}", *(measured["step_ratio"] for measured in times.values())],
    ]
    table = plain_table("Time by phase, seconds", ["", *times], rows)
    return Finding("time", values, lambda: draw_time(runs, times), (table,))


def time_by_phase(run: RecordedRun) -> dict[str, Any]:
    """`total` and `phases` of a run in seconds, and its `median_step`; None without a finished step."""
    phases: dict[str, float] = {}
    for line in run.metrics:
        for name, value in line.items():
            if name.startswith(PREFIX) and is_number(value):
                phase = name.removeprefix(PREFIX)
                phases[phase] = phases.get(phase, 0.0) + value
    outside = dict(run.status["seconds"])
    total = outside.pop("total")
    steps = [line["seconds"] for line in run.metrics if is_number(line.get("seconds"))]
    return {
        "total": total,
        "phases": phases | outside,
        "median_step": float(np.median(steps)) if steps else None,
    }


def draw_time(runs: Sequence[RecordedRun], times: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Left: seconds by phase. Right: held-out accuracy over hours since the start."""
    figure, (bars, path) = new_figure(1, 2, width=5.2)
    _draw_bars(bars, times)
    for index, run in enumerate(runs):
        measured = accuracies(run)
        points = [
            (seconds / HOUR, value)
            for seconds, value in zip(measured["seconds"], measured["values"], strict=True)
            if is_number(seconds)
        ]
        if points:
            draw_series(path, [hours for hours, _ in points], [value for _, value in points], index, run.name)
    finish(path, "Held-out accuracy over wall-clock time", "%", x="hours since the start")
    legend(figure, path)
    return figure


def _draw_bars(panel: Axes, times: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(times)
    phases = list(dict.fromkeys(phase for measured in times.values() for phase in measured["phases"]))
    left = np.zeros(len(names))
    for index, phase in enumerate(phases):
        seconds = np.array([times[name]["phases"].get(phase, 0.0) for name in names])
        panel.barh(
            range(len(names)),
            seconds,
            left=left,
            color=SERIES[index % len(SERIES)],
            hatch="" if index < len(SERIES) else "//",
            label=plain_text(phase),
        )
        left += seconds
    panel.set_yticks(range(len(names)), [plain_text(name) for name in names])
    finish(panel, "Time by phase", "", x="seconds")
    panel.set_ylim(len(names) - 0.5, -0.5 - 0.5 * len(names))  # room for the legend
    if phases:
        panel.legend(fontsize=8, ncols=3, loc="upper center")
