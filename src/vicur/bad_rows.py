"""Rows that cannot be turned into problems, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vicur.wording import shortened

BadRowKind = Literal[
    "unreadable_row",
    "question",
    "answer",
    "malformed",
    "placeholders",
    "missing_media",
    "unreadable_media",
    "media_size",
    "outside_folder",
    "network_media",
]
"""The few kinds of faults that a report counts."""
_LONGEST_REASON = 1000
"""Maximum number of characters of a reason: decoders quote what they read."""


class RowProblem(ValueError):
    """A fault in one row. The message names neither the file nor the row; the source adds them.

    Args:
        kind: kind of fault, for counting.
        reason: what was found and what was expected, as half a sentence.
    """

    def __init__(self, kind: BadRowKind, reason: str) -> None:
        reason = shortened(reason, _LONGEST_REASON)
        super().__init__(reason)
        self.kind: BadRowKind = kind
        self.reason = reason


@dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Attributes:
        row: row number in the table, from 0.
        id: id of the row; None if it has none.
        kind: kind of fault, for counting.
        reason: what was found, what was expected.
        place: file and row as text if the table comes from several files; otherwise None.
    """

    row: int
    id: str | None
    kind: BadRowKind
    reason: str
    place: str | None = None

    def __str__(self) -> str:
        return f"{self.place or f'row {self.row}'}: {self.reason}"


class BadRowError(ValueError):
    """A row that turned out bad when it was read, such as a truncated image; it can be skipped.

    Args:
        source: name of the file or data set.
        bad: the row.
    """

    def __init__(self, source: str, bad: BadRow) -> None:
        super().__init__(f"{source}, {bad}")
        self.source = source
        self.bad = bad


@dataclass(frozen=True)
class Reason:
    """All bad rows of one kind.

    Attributes:
        count: number of bad rows.
        first: the first of them.
    """

    count: int
    first: BadRow


def reasons(bad_rows: Iterable[BadRow]) -> dict[str, Reason]:
    """The bad rows by kind, the most frequent kind first; the counts add up to the number of rows."""
    by_kind: dict[str, list[BadRow]] = {}
    for bad in bad_rows:
        by_kind.setdefault(bad.kind, []).append(bad)
    ordered = sorted(by_kind.items(), key=lambda item: -len(item[1]))
    return {kind: Reason(len(rows), min(rows, key=lambda bad: bad.row)) for kind, rows in ordered}


def reasons_in_words(bad_rows: Sequence[BadRow]) -> str:
    """Each kind with its count and its first row: "2 missing_media (first: row 4: ...); 1 answer (...)"."""
    return "; ".join(
        f"{reason.count} {kind} (first: {reason.first})" for kind, reason in reasons(bad_rows).items()
    )
