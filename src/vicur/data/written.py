"""Parses values that a data set holds as text: JSON, or the output of Python's and numpy's print."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_OBJECTS_IN_A_ROW = re.compile(r"\}\s*\n\s*\{")
"""A break between objects of an array as numpy prints it: one per line, without commas."""
_PARSE_ERRORS = (ValueError, SyntaxError, MemoryError, RecursionError, TypeError)


def parse_written(text: str) -> Any:
    """Parse a text that encodes a list or an object, as in tables after a round trip through CSV.

    Returns:
        a list, a tuple or a dictionary; None for any other text.
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
        return value if isinstance(value, list | tuple | dict) else None
    return None


def parse_if_written(value: Any) -> Any:
    """Parse a text that encodes a list or an object; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    parsed = parse_written(value)
    return value if parsed is None else parsed
