"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

Item = TypeVar("Item")


class Progress:
    """One bar: what is done, how far, time a step, time left.

    Args:
        title: shown before the bar.
        console: where; standard error if not given.
        transient: whether the bar disappears when it is full.
    """

    def __init__(self, title: str, console: Console | None = None, *, transient: bool = False) -> None:
        self.title = title
        self.transient = transient
        self.console = console or Console(stderr=True)
        self._bar: RichProgress | None = None

    def steps(self, count: int) -> Iterator[int]:
        """Count 1 ... count and move the bar after each."""
        return self.over(range(1, count + 1), count)

    def over(self, items: Iterable[Item], count: int) -> Iterator[Item]:
        """Go through items and move the bar after each."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self.console, transient=self.transient) as bar:
            self._bar = bar
            task = bar.add_task(self.title, total=count, note="")
            for item in items:
                yield item
                bar.advance(task)
        self._bar = None

    def during(self, work: Callable[[], Item]) -> Item:
        """Do one thing under the bar, which shows the time it takes."""
        (result,) = [work() for _ in self.over(range(1), 1)]
        return result

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show a step's time and what the student does, beside the bar."""
        if self._bar is None:
            return
        accuracy = metrics.get("rollout_accuracy")
        gap = metrics.get("gap_whole")
        shown = f"loss {metrics['loss']:.3f}" if gap is None else f"gap {gap:+.3f}"
        note = f"{metrics['seconds']:.2f} s/step, {shown}"
        if accuracy is not None:
            note += f", rollouts {accuracy:.0f} % right"
        self._bar.update(self._bar.task_ids[0], note=note)
