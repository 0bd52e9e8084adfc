"""Phrases that the messages of several modules share."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 20
"""Maximum number of names that a message lists."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 problem", "2 problems"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shortened(text: str, most: int) -> str:
    """A text from data on one line, cut to `most` characters; halves of surrogate pairs, which cannot be
    printed or stored, are written out."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().splitlines())
    return line if len(line) <= most else line[: most - 3] + "..."


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names separated by commas; of a long list the first ones, and the number of the others."""
    if not names:
        return "none"
    text = ", ".join(shortened(name, 60) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most:,} more"
