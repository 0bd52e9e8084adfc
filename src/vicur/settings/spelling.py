"""How a message names a setting: as the user's own command line takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelling:
    """How the settings of the data are written.

    Attributes:
        column: to say which column holds a field; with {field} and {column}.
        image_dir: to say where paths start.
        bad_rows: to leave bad rows out; None where they always are.
        answer_from_response: to take gold answers out of responses.
    """

    column: str
    image_dir: str
    bad_rows: str | None
    answer_from_response: str

    def of_column(self, field: str, column: str = "COLUMN") -> str:
        """The setting that reads a field from a column."""
        return self.column.format(field=field, column=column)


IN_RECIPES = Spelling(
    column="data.columns.{field}={column}",
    image_dir="data.image_dir=FOLDER",
    bad_rows="data.bad_rows=skip",
    answer_from_response="data.answer_from_response=true",
)
"""In a recipe, and on the command line of `vicur train`."""
AS_OPTIONS = Spelling(
    column="--column {field}={column}",
    image_dir="--image-dir FOLDER",
    bad_rows="--bad-rows skip",
    answer_from_response="--answer-from-response",
)
"""On the command line of `vicur data inspect` and `vicur eval`."""
FOR_CUES = Spelling(
    column="columns.{field}={column}",
    image_dir="image_dir=FOLDER",
    bad_rows="bad_rows=skip",
    answer_from_response="answer_from_response=true",
)
"""On the command line of `vicur cues build`."""

MOST_NAMED = 20
"""Columns that a message lists."""


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names separated by commas; of many, the first and how many there are."""
    if not names:
        return "none"
    shown = ", ".join(name if len(name) <= 60 else name[:57] + "..." for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
