"""`vicur diagnose gap`: the teacher-student log-prob gap over training (ViCuR figures 3, 6 and 7).

The gap is log q(y_t) - log p(y_t), teacher minus student, in nats per token, on the student's own responses.
It is negative on average, because the student prefers its own samples; it rises towards 0 as the two agree.
The papers do not state a sign, so the mean of its absolute value is shown too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vicur.reporting.curves import accuracies, curve, draw_accuracies, draw_curves, finish
from vicur.reporting.figures import DASHES, SERIES, legend, new_figure, plain_text
from vicur.reporting.finding import Finding
from vicur.reporting.runs import RecordedRun
from vicur.reporting.series import ends, smoothed
from vicur.reporting.settings import RunsSettings
from vicur.settings.section import section
from vicur.tables import plain_table

UNIT = "nats per token"
WHOLE, ABSOLUTE = "gap_whole", "gap_absolute_whole"
HALVES = tuple(f"gap_half_{part}" for part in (1, 2))
QUARTERS = tuple(f"gap_quarter_{part}" for part in (1, 2, 3, 4))
SPLIT = ("privilege_gap", "capability_gap")


@section
class GapSettings(RunsSettings):
    """The settings of `vicur diagnose gap`."""


def gap_over_training(settings: GapSettings) -> Finding:
    """The gap of the whole responses, their halves and quarters, with train and test accuracy.

    Raises:
        ValueError: a folder is not that of a run, or no run has a teacher.
    """
    runs = settings.open()
    if not any(run.series(WHOLE)[0] for run in runs):
        raise ValueError("No run has recorded a gap: it needs a teacher and a finished step.")
    names = (WHOLE, ABSOLUTE, *HALVES, *QUARTERS)
    values: dict[str, Any] = {
        "units": {"gap": f"{UNIT}, teacher minus student", "gap_absolute": UNIT, "accuracy": "percent"},
        "runs": {
            run.name: {name: curve(run, name) for name in names}
            | {"rollout_accuracy": curve(run, "rollout_accuracy"), "held_out_accuracy": accuracies(run)}
            for run in runs
        },
    }
    table = plain_table(
        "Gap, teacher minus student, nats per token: mean over the first and the last tenth of the steps",
        ["run", "whole", "", "absolute", "", "1st half", "", "2nd half", ""],
        [
            [run.name] + [end for name in (WHOLE, ABSOLUTE, *HALVES) for end in ends(run.series(name)[1])]
            for run in runs
        ],
    )
    lacking = [run.name for run in runs if not run.series(WHOLE)[0]]
    notes = [f"No gap was recorded for {', '.join(lacking)}: the run has no teacher."] if lacking else []
    return Finding("gap", values, lambda: draw_gap(runs, settings.smooth), (table,), tuple(notes))


def draw_gap(runs: Sequence[RecordedRun], smooth: int = 1) -> Figure:
    """Six panels: the gap of whole responses, halves and quarters; its absolute value; train and test
    accuracy."""
    figure, panels = new_figure(2, 3)
    whole, halves, quarters, absolute, train, test = panels
    draw_curves(whole, runs, WHOLE, "Gap, whole responses", f"{UNIT}, teacher - student", smooth)
    _draw_parts(halves, runs, HALVES, ("first half", "second half"), smooth)
    finish(halves, "Gap by half", f"{UNIT}, teacher - student")
    _draw_parts(quarters, runs, QUARTERS, ("1st quarter", "2nd", "3rd", "4th"), smooth)
    finish(quarters, "Gap by quarter", f"{UNIT}, teacher - student")
    draw_curves(absolute, runs, ABSOLUTE, "Mean absolute gap", UNIT, smooth)
    draw_curves(train, runs, "rollout_accuracy", "Accuracy of training responses", "%", smooth)
    draw_accuracies(test, runs)
    legend(figure, whole)
    return figure


def _draw_parts(
    panel: Axes, runs: Sequence[RecordedRun], names: Sequence[str], labels: Sequence[str], smooth: int
) -> None:
    """Draw the parts of responses: a colour for each run as in the other panels, dashes for the part."""
    for index, run in enumerate(runs):
        for part, (name, label) in enumerate(zip(names, labels, strict=True)):
            steps, values = run.series(name)
            if steps:
                colour, dashes = SERIES[index % len(SERIES)], DASHES[part % len(DASHES)]
                panel.plot(
                    steps,
                    smoothed(values, smooth),
                    color=colour,
                    linestyle=dashes,
                    label=plain_text(label) if index == 0 else "",
                )
    if panel.has_data():
        panel.legend(fontsize=8)
