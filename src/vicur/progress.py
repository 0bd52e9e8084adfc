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
from rich.table import Column

from vicur.consoles import error_console
from vicur.wording import printable

LINES = 10
"""Number of progress lines for a whole run when the output is not a terminal."""

Item = TypeVar("Item")


class Progress:
    """A progress bar with title, count, elapsed time, remaining time and a note.

    Args:
        title: shown before the bar.
        console: console to print to; standard error by default.
        transient: whether the bar disappears when it is full.
    """

    def __init__(self, title: str, console: Console | None = None, *, transient: bool = False) -> None:
        self.title = printable(title)
        self.transient = transient
        self.console = console or error_console()
        self._bar: RichProgress | None = None
        self._note = ""

    def steps(self, count: int, done: int = 0) -> Iterator[int]:
        """Yield `done` + 1 to `count`, and advance the bar after each."""
        return self.over(range(done + 1, count + 1), count, done)

    def over(self, items: Iterable[Item], count: int, done: int = 0) -> Iterator[Item]:
        """Yield the items, and advance the bar after each.

        Args:
            items: the items that are left.
            count: number of all items.
            done: number of items before these.
        """
        if not self.console.is_terminal:
            yield from self._in_lines(items, count, done)
            return
        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=24)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("left", table_column=whole),
            TimeRemainingColumn(compact=True, table_column=whole),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
        )
        with RichProgress(*columns, console=self.console, transient=self.transient, expand=True) as bar:
            self._bar = bar
            task = bar.add_task(self.title, total=count, completed=done, note="")
            for item in items:
                yield item
                bar.advance(task)
        self._bar = None

    def _in_lines(self, items: Iterable[Item], count: int, before: int) -> Iterator[Item]:
        """Progress for log files: one line for every tenth of the items."""
        for done, item in enumerate(items, start=before + 1):
            yield item
            if not self.transient and done * LINES // count > (done - 1) * LINES // count:
                self.say(f"{self.title} {done}/{count}{self._note}")

    def during(self, work: Callable[[], Item]) -> Item:
        """Call `work` while the bar shows the time it takes, and return its result."""
        (result,) = [work() for _ in self.over(range(1), 1)]
        return result

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show a few words beside the bar."""
        text = printable(text)
        self._note = f", {text}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=text)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show a step's time, its gap or loss, and the accuracy of its rollouts beside the bar."""
        accuracy = metrics.get("rollout_accuracy")
        gap = metrics.get("gap_whole")
        value = f"loss {metrics['loss']:.3f}" if gap is None else f"gap {gap:+.3f}"
        note = f"{metrics['seconds']:.2f} s/step, {value}"
        if accuracy is not None:
            note += f", rollout accuracy {accuracy:.0f} %"
        self.note(note)


def silent(title: str = "") -> Progress:
    """A bar that shows nothing."""
    return Progress(title, Console(quiet=True))


Bars = Callable[[str], Progress]
"""A function from a title to a new progress bar."""
