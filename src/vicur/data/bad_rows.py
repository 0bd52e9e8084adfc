"""Rows that cannot become a problem, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BadRowKind = Literal[
    "question",
    "answer",
    "malformed",
    "placeholders",
    "missing_media",
    "unreadable_media",
    "media_size",
    "outside_folder",
    "network_media",
    "repeated_id",
]
"""What is wrong with a row, in the few kinds that a report counts."""


class RowProblem(ValueError):
    """What is wrong with one row, said without naming file and row: the source adds them.

    Args:
        kind: for counting.
        reason: half a sentence: what was found, what was expected.
    """

    def __init__(self, kind: BadRowKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: BadRowKind = kind
        self.reason = reason


@dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Attributes:
        row: its number in the table, from 0.
        id: its id, where it has one.
        kind: for counting.
        reason: what was found, what was expected.
    """

    row: int
    id: str | None
    kind: BadRowKind
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


class BadRowError(ValueError):
    """A row that turned out bad when it was read, as a truncated image does; it can be skipped.

    Args:
        source: name of the file or data set.
        bad: the row.
    """

    def __init__(self, source: str, bad: BadRow) -> None:
        super().__init__(f"{source}, {bad}")
        self.source = source
        self.bad = bad
