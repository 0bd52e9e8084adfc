"""Wordings that messages of several rooms share."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 20
"""Columns that a message lists."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 problem", "2 problems"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names separated by commas; of many, the first and how many there are."""
    if not names:
        return "none"
    text = ", ".join(name if len(name) <= 60 else name[:57] + "..." for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most:,} more"
