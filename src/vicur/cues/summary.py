"""How far a build is, what it has done, and what it would do, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tick:
    """How far a build is.

    Attributes:
        done, count: problems.
        rate: problems a second that were asked for in this run; 0 before the first.
        cost: of this run.
        failed: problems that were set aside.
    """

    done: int
    count: int
    rate: float
    cost: float
    failed: int

    @property
    def note(self) -> str:
        """In a few words, for beside a bar."""
        failed = f", {self.failed} failed" if self.failed else ""
        cost = f", cost {self.cost:.2f}" if self.cost else ""
        return f"{self.rate:.1f}/s{cost}{failed}"


Watch = Callable[[Iterable[Tick], int], Iterable[Tick]]
"""Goes through the ticks of a build and shows them; `training.progress.Progress.over` is one."""


@dataclass(frozen=True)
class FailedProblem:
    """A problem without a cue.

    Attributes:
        row: in the data, from 0.
        id: of the problem.
        number: which of its cues.
        reason: of the last try.
        tries: how many there were; 0 where it could not even be read.
    """

    row: int
    id: str
    number: int
    reason: str
    tries: int


@dataclass(frozen=True)
class BuildSummary:
    """What a build has done.

    Attributes:
        problems: that were to be answered.
        asked: cues that were got in this run.
        kept: cues that were in the store before.
        failed: cues that could not be got.
        bad_rows: rows that are no problem.
        requests: sent in this run.
        prompt_tokens, completion_tokens: in this run.
        cost: of this run.
        total_cost: of all that the store has paid for.
        seconds: that this run took.
        stopped: why it stopped early; None if it did not.
        out: the output; None if it was not written.
        failed_file: the list of what failed; None if nothing did.
        store: where replies are kept.
        notes: what else there is to say.
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
    out: Path | None
    failed_file: Path | None
    store: Path
    notes: tuple[str, ...]

    def sentences(self) -> list[str]:
        """For people."""
        said = [
            f"{self.problems} problems: {self.asked} cues asked for and got, {self.kept} there already, "
            f"{len(self.failed)} failed.",
            f"{self.requests} requests with {self.prompt_tokens} tokens sent and {self.completion_tokens} "
            f"received in {self.seconds:.1f} s; cost {self.cost:.4f}, with earlier runs "
            f"{self.total_cost:.4f}.",
        ]
        said += self.notes
        if self.bad_rows:
            said.append(f"{self.bad_rows} rows are no problem and have no cue.")
        if self.failed:
            first = self.failed[0]
            said.append(
                f"Without a cue: {len(self.failed)}, the first in row {first.row} ({first.reason}); all are "
                f"in {self.failed_file}. Ask for them again with retry_failed=true."
            )
        if self.stopped is not None:
            said.append(f"Stopped: {self.stopped}")
        if self.out is not None:
            said.append(f"Written: {self.out}.")
        else:
            said.append(
                f"The output was not written. The replies are kept in {self.store}; the same command goes on "
                "from there."
            )
        return said


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do.

    Attributes:
        problems: to be answered.
        bad_rows: rows that are no problem.
        cues: that were to be got in all.
        kept: of these in the store.
        prompt_tokens: an estimate for those that are not, each asked once.
        completion_tokens: the most that they may take.
        cost: an estimate of what it would cost, if all replies were so long.
        request: the first one, as text.
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
        """For people."""
        return [
            f"{self.problems} problems, {self.cues} cues, of which {self.kept} are there already.",
            f"To ask: {self.cues - self.kept}, with about {self.prompt_tokens} tokens sent and at most "
            f"{self.completion_tokens} received; cost about {self.cost:.4f} if all were so long.",
            "A request:",
            self.request,
        ]
