"""What is shown of a run while it runs: alarms, a few responses, and the numbers that trackers get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vicur.progress import Progress
from vicur.reporting.alarms import Alarm, alarms_of
from vicur.reporting.leakage import responses_per_step
from vicur.reporting.runs import RecordedRun
from vicur.training.loop import TrainingConfig
from vicur.training.trackers import Trackers
from vicur.wording import first_reason, printable, shortened

EVERY = 10
"""Number of steps after which the curves are judged again."""
SHOWN = 3
"""Number of responses in a table."""
LONGEST = 300
"""Maximum length of a text in a table, in characters."""
_UNREADABLE = (OSError, ValueError, KeyError)
"""Errors of curves that cannot be read, e.g. because their folder is being moved."""


class Live:
    """Shows a run while it runs, on the main process.

    Args:
        folder: folder of the run.
        config: settings of the training.
        trackers: experiment trackers, which get the alarms as alerts.
        progress: prints above its bar.
    """

    def __init__(self, folder: Path, config: TrainingConfig, trackers: Trackers, progress: Progress) -> None:
        self.folder, self.config = folder, config
        self.trackers, self.progress = trackers, progress
        self._rung: set[str] = set()

    def pass_over_present(self) -> None:
        """Do not report alarms that the curves raise now: a run that is resumed has reported them before."""
        with suppress(*_UNREADABLE):
            self._rung |= {alarm.kind for alarm in self._alarms()}

    def is_due(self, step: int, *, is_evaluated: bool) -> bool:
        """Whether anything is shown or judged after a step; the same on all ranks."""
        return self._shows(step) or self._judges(step, is_evaluated)

    def _shows(self, step: int) -> bool:
        every = self.config.show_responses
        return every is not None and step % every == 0

    @staticmethod
    def _judges(step: int, is_evaluated: bool) -> bool:
        return is_evaluated or step % EVERY == 0

    def after_step(self, step: int, latest: Sequence[Mapping[str, Any]], *, is_evaluated: bool) -> None:
        """Show what is due after a step.

        Args:
            step: the step.
            latest: its responses.
            is_evaluated: whether held-out problems were just evaluated.
        """
        if self._shows(step) and latest:
            self.progress.console.print(response_table(step, latest))
        if self._judges(step, is_evaluated):
            try:
                self._ring()
            except _UNREADABLE as error:
                self.progress.say(f"The curves could not be judged: {first_reason(error)}")

    def _ring(self) -> None:
        """Report each kind of alarm once."""
        for alarm in self._alarms():
            if alarm.kind not in self._rung:
                self._rung.add(alarm.kind)
                self.progress.say(f"Alarm ({alarm.kind}): {alarm.text}")
                self.trackers.alert(alarm)

    def _alarms(self) -> list[Alarm]:
        run = RecordedRun(self.folder, self.folder.name)
        return alarms_of(run.metrics, run.evaluations, responses_per_step(run))


def response_table(step: int, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The first responses of a step: question, response, gold answer, verdict, and the mean gap."""
    table = Table("question", "response", "gold", "", "gap", box=SIMPLE_HEAD, title=f"Step {step}")
    for row in rows[:SHOWN]:
        verdict = {True: "[green]right[/]", False: "[red]wrong[/]", None: "[yellow]not graded[/]"}
        gap = row.get("gap")
        table.add_row(
            _cell(row["question"]),
            _cell(row["response"]),
            _cell(row["answer"] or ""),
            verdict[row["correct"]],
            f"{sum(gap) / len(gap):+.3f}" if gap else "",
        )
    return table


def _cell(text: str) -> str:
    return escape(printable(shortened(text, LONGEST)))
