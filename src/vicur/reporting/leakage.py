"""`vicur diagnose leakage`: how often the student mentions a hint that it was never shown (ViCuR figure 4,
table 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vicur.reporting.curves import draw_curves, finish
from vicur.reporting.figures import draw_series, legend, new_figure
from vicur.reporting.finding import Finding
from vicur.reporting.runs import RecordedRun
from vicur.reporting.series import smoothed
from vicur.reporting.settings import RunsSettings
from vicur.settings.section import Count, section
from vicur.tables import plain_table


@section
class LeakageSettings(RunsSettings):
    """The settings of `vicur diagnose leakage`."""

    steps_per_epoch: Count | None = None
    """Number of steps in a column of the table; null for the steps in which a run uses every problem once
    (ViCuR table 8: 55)."""


def leakage_over_training(settings: LeakageSettings) -> Finding:
    """Responses with the whole word "hint" in any case, and its occurrences, by epoch and over the steps.

    Raises:
        ValueError: a folder is not that of a run.
    """
    runs = settings.open()
    by_run = {run.name: leakage_by_epoch(run, settings.steps_per_epoch) for run in runs}
    values: dict[str, Any] = {
        "units": {"samples": "responses with the word", "occurrences": "of the word", "rate": "0 to 1"},
        "runs": by_run,
    }
    table = plain_table(
        'Hint leakage by epoch: responses with the word "hint" / its occurrences (share of responses)',
        *leakage_table(runs, settings.steps_per_epoch),
    )
    return Finding("leakage", values, lambda: draw_leakage(runs, settings.smooth), (table,))


def leakage_by_epoch(run: RecordedRun, steps_per_epoch: int | None = None) -> list[dict[str, Any]]:
    """Counts of each epoch: `epoch`, `steps`, `samples`, `occurrences`, `responses`, `rate`.

    Args:
        run: the run.
        steps_per_epoch: steps in an epoch; by default those in which every problem is used once.
    """
    length, group = steps_per_epoch or run.steps_per_epoch, responses_per_step(run)
    epochs: dict[int, dict[str, Any]] = {}
    for line in run.metrics:
        number = (line["step"] - 1) // length + 1
        counts = epochs.setdefault(
            number, {"epoch": number, "steps": 0, "samples": 0, "occurrences": 0, "responses": 0}
        )
        counts["steps"] += 1
        counts["samples"] += int(line["hint_samples"])
        counts["occurrences"] += int(line["hint_occurrences"])
        counts["responses"] += group
    for counts in epochs.values():
        counts["rate"] = counts["samples"] / counts["responses"]
    return [epochs[number] for number in sorted(epochs)]


def responses_per_step(run: RecordedRun) -> int:
    """Number of responses that a run generates in a step."""
    return int(run.recipe["training"]["prompts_per_step"] * run.recipe["rollout"]["group_size"])


def draw_leakage(runs: Sequence[RecordedRun], smooth: int = 1) -> Figure:
    """Two panels over the steps: the share of responses with the word, and its occurrences in a step."""
    figure, (rate, occurrences) = new_figure(1, 2)
    for index, run in enumerate(runs):
        steps, samples = run.series("hint_samples")
        shares = [100 * count / responses_per_step(run) for count in smoothed(samples, smooth)]
        if steps:
            draw_series(rate, steps, shares, index, run.name)
    finish(rate, 'Responses with the word "hint"', "% of responses")
    rate.set_ylim(bottom=0)
    draw_curves(occurrences, runs, "hint_occurrences", "Occurrences", "per step", smooth)
    occurrences.set_ylim(bottom=0)
    legend(figure, rate)
    return figure


def leakage_table(
    runs: Sequence[RecordedRun], steps_per_epoch: int | None = None
) -> tuple[list[str], list[list[str | None]]]:
    """Heads of the columns, and a row for each run: responses with the word / its occurrences (share of the
    responses) by epoch; None for an epoch that a run has not reached.

    Args:
        runs: the runs.
        steps_per_epoch: as in `leakage_by_epoch`.
    """
    cells = [list(map(_cell, leakage_by_epoch(run, steps_per_epoch))) for run in runs]
    epochs = max(map(len, cells), default=0)
    rows: list[list[str | None]] = [
        [run.name, *each, *[None] * (epochs - len(each))] for run, each in zip(runs, cells, strict=True)
    ]
    return ["run", *(f"epoch {index + 1}" for index in range(epochs))], rows


def _cell(counts: Mapping[str, Any]) -> str:
    return f"{counts['samples']:,}/{counts['occurrences']:,} ({100 * counts['rate']:.1f} %)"
