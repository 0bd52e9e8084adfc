"""Curves of the measures that `training.observe` records on held-out problems (VA-OPD figures 1 and 4b, VGS
figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vicur.reporting.curves import finish
from vicur.reporting.figures import draw_series, legend, new_figure
from vicur.reporting.runs import RecordedRun, is_number

PANELS = {
    "visual_advantage": "Visual advantage, all tokens",
    "vds": "Visual dependency (VDS)",
    "language_kl_visual": "Language KL, tokens of high VDS",
    "visual_kl": "Visual KL",
    "privilege_gap": "Gap from the privilege",
    "capability_gap": "Gap from the teacher's capability",
}
"""Measures with the titles of their panels; all in nats per token."""


def draw_measures(runs: Sequence[RecordedRun]) -> Figure:
    """A panel for each measure that a run has recorded."""
    present = [
        name for name in PANELS if any(is_number(line.get(name)) for run in runs for line in run.observations)
    ]
    columns = min(3, max(1, len(present)))
    figure, panels = new_figure(-(-max(1, len(present)) // columns), columns)
    for panel, name in zip(panels, present, strict=False):
        _draw_measure(panel, runs, name)
    for panel in panels[len(present) :]:
        panel.set_axis_off()
    legend(figure, panels[0])
    return figure


def _draw_measure(panel: Axes, runs: Sequence[RecordedRun], name: str) -> None:
    for index, run in enumerate(runs):
        points = [(line["step"], line[name]) for line in run.observations if is_number(line.get(name))]
        if points:
            draw_series(panel, [step for step, _ in points], [value for _, value in points], index, run.name)
    finish(panel, PANELS[name], "nats per token")
