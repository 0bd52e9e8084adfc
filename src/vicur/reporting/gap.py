"""`vicur diagnose gap`: the teacher-student log-prob gap over training (ViCuR figures 3, 6 and 7).

The gap is log q(y_t) - log p(y_t), teacher minus student, in nats per token, on the student's own responses.
It is negative on average, because the student prefers its own samples; it rises towards 0 as the two agree.
The papers do not state a sign, so the mean of its absolute value is shown too.

If the teacher is shown more than the student, the gap is the sum of what its privilege and its weights add:
(log q^z - log q) + (log q - log p), with q^z the teacher with its privilege and q without it.
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
SPLIT = ("privilege_gap_whole", "capability_gap_whole")


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
    names = (WHOLE, *SPLIT, ABSOLUTE, *HALVES, *QUARTERS)
    values: dict[str, Any] = {
        "units": {"gap": f"{UNIT}, teacher minus student", "gap_absolute": UNIT, "accuracy": "percent"},
        "runs": {
            run.name: {name: curve(run, name) for name in names}
            | {"rollout_accuracy": curve(run, "rollout_accuracy"), "held_out_accuracy": accuracies(run)}
            for run in runs
        },
    }
    ends_of = "mean over the first and the last tenth of the steps"
    tables = [
        plain_table(
            f"Gap, teacher minus student, nats per token: {ends_of}",
            ["run", "whole", "", "absolute", "", "1st half", "", "2nd half", ""],
            [_ends(run, (WHOLE, ABSOLUTE, *HALVES)) for run in runs],
        )
    ]
    split = [run for run in runs if run.series(SPLIT[0])[0]]
    if split:
        title = f"What the teacher's privilege and its capability add to the gap, nats per token: {ends_of}"
        columns = ["run", "privilege", "", "capability", ""]
        tables.append(plain_table(title, columns, [_ends(run, SPLIT) for run in split]))
    lacking = [run.name for run in runs if not run.series(WHOLE)[0]]
    notes = [f"No gap was recorded for {', '.join(lacking)}: the run has no teacher."] if lacking else []
    return Finding("gap", values, lambda: draw_gap(runs, settings.smooth), tuple(tables), tuple(notes))


def _ends(run: RecordedRun, names: Sequence[str]) -> list[Any]:
    return [run.name] + [end for name in names for end in ends(run.series(name)[1])]


def draw_gap(runs: Sequence[RecordedRun], smooth: int = 1) -> Figure:
    """Six panels: the gap of whole responses, halves and quarters; its absolute value; train and test
    accuracy. Where a run has split the gap, two more with its parts."""
    split = any(run.series(name)[0] for run in runs for name in SPLIT)
    figure, panels = new_figure(3, 3) if split else new_figure(2, 3)
    unit = f"{UNIT}, teacher - student"
    rest = iter(panels)
    whole = next(rest)
    draw_curves(whole, runs, WHOLE, "Gap, whole responses", unit, smooth)
    if split:
        draw_curves(next(rest), runs, SPLIT[0], "Gap from the privilege", unit, smooth)
        draw_curves(next(rest), runs, SPLIT[1], "Gap from the capability", unit, smooth)
    for names, labels, title in (
        (HALVES, ("first half", "second half"), "Gap by half"),
        (QUARTERS, ("1st quarter", "2nd", "3rd", "4th"), "Gap by quarter"),
    ):
        panel = next(rest)
        _draw_parts(panel, runs, names, labels, smooth)
        finish(panel, title, unit)
    draw_curves(next(rest), runs, ABSOLUTE, "Mean absolute gap", UNIT, smooth)
    draw_curves(next(rest), runs, "rollout_accuracy", "Accuracy of training responses", "%", smooth)
    draw_accuracies(next(rest), runs)
    for panel in rest:
        panel.set_axis_off()
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
