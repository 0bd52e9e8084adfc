"""Decides whether a value is drawn in the image. A cue may state a drawn value, even if it happens to be the
answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from vicur.audit.rows import CueRow
from vicur.audit.values import find_values
from vicur.audit.visible import counts_visible
from vicur.cuebench.boxes import cue_boxes
from vicur.data.sample import Sample
from vicur.data.written import parse_if_written

Known = bool | int | None
"""True: drawn, so that a cue may state it. False: not drawn. A number: drawn that many times, so that a
cue may state it as often. None: unknown."""
Givens = Callable[[CueRow, str], Known]
"""Whether a value, as a cue writes it, is drawn in the row's image."""

_OPTIONS = re.compile(r"(?:^|\s)\(?[A-J][.):]\s")


def question_givens(row: CueRow, value: str) -> Known:
    """True for values that the question states outside its options; None for others, which may be drawn."""
    return True if _states(_OPTIONS.split(row.question)[0], value) else None


def listed_givens(row: CueRow, value: str) -> Known:
    """How often the data lists a value as drawn, in `cue_boxes` or in `givens` (a list of texts) in `meta`.

    Such a list counts as complete: anything missing from it is not drawn. None if there is no list.
    """
    if row.outline is None:
        return None
    drawn = _listed(row.outline())
    return sum(_states(text, value) for text in drawn) if drawn else None


def default_givens(row: CueRow, value: str) -> Known:
    """Asks the question first, then the data's list; if neither decides, the value is a possible leak."""
    known = question_givens(row, value)
    return listed_givens(row, value) if known is None else known


def _listed(sample: Sample) -> list[str]:
    raw = sample.meta.get("givens")
    values = parse_if_written(raw)
    stated = [str(value) for value in values] if isinstance(values, list | tuple) else []
    return [value for _, value, _ in cue_boxes(sample)] + stated


def _states(text: str, value: str) -> bool:
    """Whether a text states a value in any form, or contains a word as a whole word."""
    asked = find_values(value)
    if not asked:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
    return any(
        other.equals(asked[0], 1e-6) and not counts_visible(text, other) for other in find_values(text)
    )
