"""The graded responses of an evaluation, and the numbers that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.evaluation.responses import StoredResponse
from vicur.evaluation.statistics import Estimate, accuracy_interval, mean_of_problems, right_counts
from vicur.evaluation.verdicts import Verdict
from vicur.files import ROW_GROUP, write_whole

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("number", pa.int64()),
        ("gold", pa.string()),
        ("response", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
        ("response_tokens", pa.int64()),
        ("excluded", pa.string()),
        ("response_ids", pa.list_(pa.int64())),
        ("digest", pa.string()),
    ]
)
"""Columns of the output: see docs/evaluation.md."""


@dataclass(frozen=True)
class Answer:
    """One response to a problem, and the verdict.

    Attributes:
        id: id of the problem.
        gold: its gold answer.
        stored: the response; None if there is none.
        verdict: the grader's verdict.
    """

    id: str
    gold: str | None
    stored: StoredResponse | None
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """The answer as a row of the output."""
        stored = self.stored
        return {
            "id": self.id,
            "number": None if stored is None else stored.number,
            "gold": self.gold,
            "response": None if stored is None else stored.response,
            "extracted": self.verdict.extracted,
            "correct": self.verdict.correct,
            "reward": self.verdict.reward,
            "finish_reason": None if stored is None else stored.finish_reason,
            "response_tokens": None if stored is None else stored.response_tokens,
            "excluded": self.verdict.excluded,
            "response_ids": None if stored is None else stored.response_ids,
            "digest": None if stored is None else stored.digest,
        }


@dataclass(frozen=True)
class Evaluation:
    """A model's responses and their grades.

    Attributes:
        answers: the graded responses, in the order of the data; those to a problem together.
        left_out: problems that do not count: their row is unreadable, their prompt too long, or the endpoint
            did not give all responses. One entry for each stored response; one without a response if there is
            none.
    """

    answers: tuple[Answer, ...]
    left_out: tuple[Answer, ...] = ()

    @property
    def stored(self) -> list[StoredResponse]:
        """The responses."""
        return [answer.stored for answer in self.answers if answer.stored is not None]

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses as text."""
        return tuple(stored.response for stored in self.stored)

    @property
    def response_ids(self) -> tuple[Tensor, ...]:
        """The responses as tokens.

        Raises:
            ValueError: an endpoint gave a response without its tokens.
        """
        ids = [stored.response_ids for stored in self.stored]
        if any(tokens is None for tokens in ids):
            raise ValueError("The responses of an endpoint have no token ids.")
        return tuple(map(torch.tensor, ids))

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Whether each response is right; None where it cannot be graded."""
        return tuple(answer.verdict.correct for answer in self.answers)

    @property
    def graded(self) -> list[bool]:
        """Whether each response that can be graded is right."""
        return [value for value in self.correct if value is not None]

    @cached_property
    def by_problem(self) -> dict[str, list[bool]]:
        """Whether each response that can be graded is right, by the id of its problem."""
        problems: dict[str, list[bool]] = {}
        for answer in self.answers:
            if answer.verdict.correct is not None:
                problems.setdefault(answer.id, []).append(answer.verdict.correct)
        return problems

    @property
    def samples(self) -> int:
        """Number of responses to a problem (k)."""
        return max((stored.number + 1 for stored in self.stored), default=1)

    @property
    def accuracy(self) -> Estimate:
        """Accuracy in percent with its 95 % interval: Wilson's with one response per problem; with several
        avg@k, and the bootstrap's over problems.

        Raises:
            ValueError: no response could be graded.
        """
        return accuracy_of(list(self.by_problem.values()))

    @property
    def right_counts(self) -> list[int]:
        """Number of problems with 0, 1, ..., k right responses."""
        return right_counts(list(self.by_problem.values()), self.samples)

    @property
    def leakage(self) -> HintLeakage:
        """Counts of the whole word "hint" in the responses."""
        return hint_leakage(self.responses)

    @property
    def mean_tokens(self) -> float | None:
        """Mean length of the responses in tokens; None if an endpoint does not count them."""
        lengths = [stored.response_tokens for stored in self.stored]
        known = [length for length in lengths if length is not None]
        return sum(known) / len(known) if known and len(known) == len(lengths) else None

    @property
    def truncated(self) -> int:
        """Number of responses that were cut off at the length limit."""
        return sum(stored.finish_reason == "length" for stored in self.stored)

    @property
    def unextracted(self) -> int:
        """Number of graded responses in which no answer was found; they count as wrong."""
        return sum(answer.verdict.lacks_answer for answer in self.answers)

    @property
    def excluded(self) -> Counter[str]:
        """Number of problems left out of the accuracy, by reason: no response to them could be graded."""
        kinds: dict[str, str] = {}
        for answer in (*self.answers, *self.left_out):
            if answer.verdict.kind is not None and answer.id not in self.by_problem:
                kinds.setdefault(answer.id, answer.verdict.kind)
        return Counter(kinds.values())

    def numbers(self) -> dict[str, Any]:
        """The evaluation in numbers, for JSON.

        Lengths are in tokens; `truncated` and `without_an_answer` are shares of the responses, None without
        any.
        """
        count, leakage = len(self.answers), self.leakage
        return {
            "problems": len(self.by_problem),
            "responses": count,
            "samples": self.samples,
            "response_tokens": self.mean_tokens,
            "truncated": self.truncated / count if count else None,
            "without_an_answer": self.unextracted / count if count else None,
            "hint_samples": leakage.samples,
            "hint_occurrences": leakage.occurrences,
        }

    def table(self) -> pa.Table:
        """One row for each response and each problem without any, with the columns of `SCHEMA`."""
        return pa.Table.from_pylist(
            [answer.row() for answer in (*self.answers, *self.left_out)], schema=SCHEMA
        )

    def write(self, path: Path) -> None:
        """Write the table as parquet."""
        import pyarrow.parquet as pq

        table = self.table()
        write_whole(path, lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP))


def accuracy_of(correct: Sequence[Sequence[bool]]) -> Estimate:
    """Accuracy in percent, as in `Evaluation.accuracy`.

    Args:
        correct: for each problem whether each of its responses is right.

    Raises:
        ValueError: there is no problem.
    """
    if all(len(responses) == 1 for responses in correct):
        return accuracy_interval([value for responses in correct for value in responses])
    return mean_of_problems(correct)
