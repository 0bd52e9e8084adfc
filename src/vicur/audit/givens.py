"""Is a value drawn in the image? What is, a cue may state, even where it happens to be the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vicur.audit.grounding import Ask, yes_or_no
from vicur.audit.rows import CueRow
from vicur.audit.values import find_values
from vicur.audit.visible import counts_visible
from vicur.cuebench.boxes import cue_boxes
from vicur.data.sample import Sample

Known = bool | int | None
"""True: drawn, so that a cue may state it. False: not drawn. A number: drawn so many times, and to be stated
no more often. None: nobody knows."""

_OPTIONS = re.compile(r"(?:^|\s)\(?[A-J][.):]\s")


class Givens(Protocol):
    """Knows what is drawn. An answer that has to be waited for is asked for together with others."""

    def __call__(self, row: CueRow, value: str) -> bool | int | Awaitable[bool | int | None] | None:
        """Whether a value, as the cue writes it, is drawn in the row's image."""
        ...


@dataclass(frozen=True)
class QuestionGivens:
    """What the question states is known to everybody. What it does not state may be drawn: None.

    Its options do not count: there the answer is listed in any case.
    """

    def __call__(self, row: CueRow, value: str) -> Known:
        text = _OPTIONS.split(row.question)[0]
        return True if _states(text, value) else None


@dataclass(frozen=True)
class BoxGivens:
    """What the data themselves list as drawn: `cue_boxes`, or `givens` (a list of texts) in `meta`.

    Such a list counts as complete: what is not in it is not drawn. None where there is no list.
    """

    def __call__(self, row: CueRow, value: str) -> Known:
        if row.outline is None:
            return None
        drawn = _listed(row.outline())
        return sum(_states(text, value) for text in drawn) if drawn else None


class RelatedGivens:
    """What the questions of other samples say about the same image is given there too.

    Args:
        rows: all of them. Their media are opened.
    """

    def __init__(self, rows: Iterable[CueRow]) -> None:
        self._questions: dict[str, list[tuple[str, str]]] = {}
        self._keys: dict[str, str] = {}
        for row in rows:
            if (key := row.media_key()) is not None:
                self._keys[row.id] = key
                self._questions.setdefault(key, []).append((row.id, row.question))

    def __call__(self, row: CueRow, value: str) -> Known:
        related = self._questions.get(self._keys.get(row.id, ""), [])
        texts = (_OPTIONS.split(question)[0] for own, question in related if own != row.id)
        return True if any(_states(text, value) for text in texts) else None


@dataclass(frozen=True)
class AskedGivens:
    """Asks a model that sees the image, once for every value in doubt.

    The value is the answer of the problem, so this tells it to the endpoint, though not that it is one.

    Attributes:
        ask: shows a sample's media and a text to the model, and gives its reply.
    """

    ask: Ask

    async def __call__(self, row: CueRow, value: str) -> Known:
        if row.sample is None:
            raise ValueError(f"Sample {row.id} has no image at hand, so no model can be asked about it.")
        reply = self.ask(
            row.sample(),
            f'Is "{value}" written in the image as a label or measurement? Only what can be read there '
            'counts, nothing that has to be worked out. Reply with "yes", "no" or "cannot tell".',
        )
        return yes_or_no(reply if isinstance(reply, str) else await reply)


@dataclass(frozen=True)
class FirstOf:
    """The first of several that knows. One that has to be waited for may only stand last."""

    several: Sequence[Givens]

    def __call__(self, row: CueRow, value: str) -> bool | int | Awaitable[bool | int | None] | None:
        for givens in self.several:
            known = givens(row, value)
            if known is not None:
                return known
        return None


DEFAULT_GIVENS = FirstOf((QuestionGivens(), BoxGivens()))
"""Without any more knowledge: what the question states is given, what the data list is given, and of all
else nobody knows, so that stating it plainly is a possible leak only."""


def _listed(sample: Sample) -> list[str]:
    raw = sample.meta.get("givens")
    values = json.loads(raw) if isinstance(raw, str) and raw.startswith("[") else raw
    stated = [str(value) for value in values] if isinstance(values, list | tuple) else []
    return [value for _, value, _ in cue_boxes(sample)] + stated


def _states(text: str, value: str) -> bool:
    """Whether a text holds a value in any form, or a word as a word."""
    asked = find_values(value)
    if not asked:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
    return any(
        found.equals(asked[0], 1e-6) and not counts_visible(text, found) for found in find_values(text)
    )
