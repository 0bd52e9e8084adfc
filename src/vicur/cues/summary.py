"""Progress, result and plan of a build, as messages to the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vicur.wording import counted


@dataclass(frozen=True)
class Tick:
    """Progress of a build.

    Attributes:
        done, count: number of finished problems, and of all problems.
        rate: problems answered per second in this run; 0 before the first.
        cost: cost of this run.
        failed: problems that have failed.
    """

    done: int
    count: int
    rate: float
    cost: float
    failed: int

    @property
    def note(self) -> str:
        """A short form to append to a progress bar."""
        failed = f", {self.failed} failed" if self.failed else ""
        cost = f", cost {self.cost:.2f}" if self.cost else ""
        return f"{self.rate:.1f}/s{cost}{failed}"


Watch = Callable[[Iterable[Tick], int], Iterable[Tick]]
"""Iterates over the ticks of a build and shows them, e.g. `vicur.progress.Progress.over`."""


@dataclass(frozen=True)
class FailedProblem:
    """A problem without a cue.

    Attributes:
        row: number of its row in the data, from 0.
        id: id of the problem.
        number: number of the missing cue among those of its problem, from 0.
        reason: why the last attempt failed.
        tries: number of attempts; 0 if the row could not be read.
    """

    row: int
    id: str
    number: int
    reason: str
    tries: int


@dataclass(frozen=True)
class BuildSummary:
    """The result of a build.

    Attributes:
        problems: number of problems to process.
        asked: cues generated in this run.
        kept: cues that were already in the store.
        failed: cues that could not be generated.
        bad_rows: unreadable rows.
        requests: requests sent in this run.
        prompt_tokens, completion_tokens: tokens of this run.
        cost: cost of this run.
        total_cost: cost of everything in the store.
        seconds: duration of this run.
        stopped: why the build stopped early; None if it did not.
        output: the output file; None if it was not written.
        failed_file: the list of failed problems; None if there are none.
        store: file that the replies are stored in.
        notes: further messages.
    """

    problems: int
    asked: int
    kept: int
    failed: tuple[FailedProblem, ...]
    bad_rows: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    total_cost: float
    seconds: float
    stopped: str | None
    output: Path | None
    failed_file: Path | None
    store: Path
    notes: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The summary as sentences."""
        cost = f"; cost {self.cost:.4f} ({self.total_cost:.4f} including earlier runs)"
        cost = cost if self.total_cost else ""  # without prices there is none to report
        lines = [
            f"{counted(self.problems, 'problem')}: generated {counted(self.asked, 'cue')}, reused "
            f"{self.kept}, failed {len(self.failed)}.",
            f"{counted(self.requests, 'request')} with {self.prompt_tokens:,} prompt tokens and "
            f"{self.completion_tokens:,} completion tokens in {self.seconds:.1f} s{cost}.",
        ]
        lines += self.notes
        if self.bad_rows:
            lines.append(f"{counted(self.bad_rows, 'unreadable row')} without a cue.")
        if self.failed:
            first = self.failed[0]
            lines.append(
                f"Failed problems: {len(self.failed)}, the first in row {first.row} ({first.reason}). "
                f"{self.failed_file} lists them all; retry them with --retry_failed true."
            )
        if self.stopped is not None:
            lines.append(f"Stopped: {self.stopped}")
        if self.output is not None:
            lines.append(f"Wrote {self.output}.")
        else:
            lines.append(
                f"The output was not written. The replies are kept in {self.store}; rerun the same command "
                "to resume."
            )
        return lines


@dataclass(frozen=True)
class BuildPlan:
    """The plan of a build.

    Attributes:
        problems: number of problems to process.
        bad_rows: unreadable rows.
        cues: number of cues in all.
        kept: cues that are already in the store.
        prompt_tokens: estimated prompt tokens of the others, each asked once.
        completion_tokens: upper bound on their completion tokens.
        cost: estimated cost if all replies have that length.
        request: the first request, as text.
    """

    problems: int
    bad_rows: int
    cues: int
    kept: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    request: str

    def sentences(self) -> list[str]:
        """The plan as sentences."""
        cost = f"; estimated cost at most {self.cost:.4f}" if self.cost else ""
        return [
            f"{counted(self.problems, 'problem')}, {counted(self.cues, 'cue')} ({self.kept} already in the "
            "store).",
            f"Requests to send: {self.cues - self.kept}, with about {self.prompt_tokens:,} prompt tokens and "
            f"at most {self.completion_tokens:,} completion tokens{cost}.",
            "First request:",
            self.request,
        ]
