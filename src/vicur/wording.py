"""Phrases that the messages of several modules share."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 20
"""Maximum number of names that a message lists."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 problem", "2 problems"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names separated by commas; of a long list the first ones, and the number of the others."""
    if not names:
        return "none"
    text = ", ".join(name if len(name) <= 60 else name[:57] + "..." for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most:,} more"
