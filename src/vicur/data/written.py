"""Values that a data set holds as text: JSON, or what Python and numpy print."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_OBJECTS_IN_A_ROW = re.compile(r"\}\s*\n\s*\{")
"""An array of objects as numpy prints it: without commas, one a line."""
_PARSE_ERRORS = (ValueError, SyntaxError, MemoryError, RecursionError, TypeError)


def parse_written(text: str) -> Any:
    """The list or object that a text spells out, as tables have them after a round trip through CSV.

    Returns:
        a list, a tuple or a dictionary; None where the text is something else.
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


def unwritten(value: Any) -> Any:
    """A text that spells out a list or an object, as that; anything else as it is."""
    if not isinstance(value, str):
        return value
    parsed = parse_written(value)
    return value if parsed is None else parsed
