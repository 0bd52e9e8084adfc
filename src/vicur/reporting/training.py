"""Curves of training: loss, gradient norm and accuracies (VGS figure 6)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from vicur.reporting.curves import draw_accuracies, draw_curves
from vicur.reporting.figures import legend, new_figure
from vicur.reporting.runs import RecordedRun


def draw_training(runs: Sequence[RecordedRun], smooth: int = 1) -> Figure:
    """Three panels: loss, accuracy of the training responses, accuracy on held-out problems."""
    figure, (loss, train, test) = new_figure(1, 3)
    draw_curves(loss, runs, "loss", "Loss", "", smooth)
    draw_curves(train, runs, "rollout_accuracy", "Accuracy of training responses", "%", smooth)
    draw_accuracies(test, runs)
    legend(figure, loss)
    return figure
