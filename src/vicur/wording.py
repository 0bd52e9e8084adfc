"""Phrases that the messages of several modules share, and texts of others as they may be printed."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST_NAMED = 20
"""Maximum number of names that a message lists."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters such as ESC, except tabs and line ends
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the direction of the text around them
    r"\u2028\u2029\ud800-\udfff]"  # line ends of Unicode's own; halves of characters, which no encoding has
)


_STATUS = re.compile(r"\d{3} (Client|Server) Error\b.*\(Request ID\b")
"""A line with the status of a reply and the number of the request."""


def printable(text: str) -> str:
    """A text that cannot act on a terminal: such characters are replaced by escapes like `\\x1b`.

    Everything from outside (ids, questions, responses, file names, replies, errors of libraries) passes
    through here before it is printed or put on a page of Markdown. JSON escapes such characters by itself.
    """
    return _UNPRINTABLE.sub(_escape, text)


def is_printable(text: str) -> bool:
    """Whether a text has no such character."""
    return _UNPRINTABLE.search(text) is None


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def first_reason(error: BaseException) -> str:
    """The first line of another library's error that says what is wrong, without a full stop.

    The hub's libraries put the status of a reply before it, and advice behind it.
    """
    lines = [line.strip().removeprefix("Got: ").rstrip(".:") for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not _STATUS.match(line)]
    return next(iter(reasons), " ".join(str(error).split()) or type(error).__name__)


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


def in_order(text: str) -> tuple[bool, float, str]:
    """A sort key for labels: numbers by their value, before all other texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
