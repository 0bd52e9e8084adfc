"""Parses values that a data set holds as text: JSON, or the output of Python's and numpy's print."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_OBJECTS_IN_A_ROW = re.compile(r"\}\s*\n\s*\{")
"""A break between objects of an array as numpy prints it: one per line, without commas."""
MOST_LEVELS = 100
"""Maximum depth of lists and objects inside each other in data."""
_PARSE_ERRORS = (ValueError, SyntaxError, MemoryError, RecursionError, TypeError)


def parse_written(text: str) -> Any:
    """Parse a text that encodes a list or an object, as in tables after a round trip through CSV.

    Returns:
        a list, a tuple or a dictionary; None for any other text, and for a deeper nesting than `MOST_LEVELS`.
    """
    stripped = text.strip()
    if stripped[:1] + stripped[-1:] not in ("[]", "{}", "()"):
        return None
    with_commas = _OBJECTS_IN_A_ROW.sub("}, {", stripped)
    for parse, written in (
        (json.loads, stripped),
        (ast.literal_eval, stripped),
        (ast.literal_eval, with_commas),
    ):
        try:
            value = parse(written)
        except _PARSE_ERRORS:
            continue
        return value if isinstance(value, list | tuple | dict) and not is_too_deep(value) else None
    return None


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than `MOST_LEVELS`, at which recursion would fail."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value that are not plain ASCII, keys of objects included."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            if not item.isascii():
                yield item
        elif isinstance(item, list | tuple | dict):
            left.extend(item.keys() if isinstance(item, dict) else ())
            left.extend(_inside(item))


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def parse_if_written(value: Any) -> Any:
    """Parse a text that encodes a list or an object; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    parsed = parse_written(value)
    return value if parsed is None else parsed
