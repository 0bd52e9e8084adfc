"""Numbers that count what is in an image instead of being read off it."""

from __future__ import annotations

import re

from vicur.audit.values import Value
from vicur.rewards.units import is_common_unit

_THINGS = re.compile(
    r"(?:segment|line|stroke|bar|chord|circle|angle|side|edge|triangle|square|rectangle|polygon|point|arc|"
    r"diameter|tangent|piece|part|section|tick|legend|title|row|column|cell|table|chart|graph|plot|curve|slice|"
    r"pie|hand|sign|arrow|dot|shape|object|leg|label|mark|digit|numeral|colou?r|picture|image|diagram|figure|"
    r"photo)s|vertices|radii|halves|axes",
    re.IGNORECASE,
)
"""Nouns for things that an image may show several of."""

_FUNCTION_WORDS = "on|and|is|are|in|at|of|or|by|to|for|with|as|units|times|be|that|what|which|who|one|it|also"
# "two chords", "4 short coloured lines", and "two of them"
_NOUN = re.compile(
    rf"\s+(?:(?!(?:{_FUNCTION_WORDS})\b)[a-z-]+\s+){{0,2}}?(?P<noun>[a-z]{{3,}}(?:s|ren|eople))\b"
)
_NO_NOUN = re.compile(
    r"(?:units|is|was|as|its|has|this|thus|plus|minus|times|equals|across|stands|goes|sits|makes|gives|appears|"
    r"belongs|comes|follows|results|remains|emerges|ensues|suffices|fits|works|holds|satisfies|solves|answers|"
    r"matches|completes|does|always|perhaps|yes|us|points)$"
)
_PARTITIVE = re.compile(r"\s+of\s+(?:the|these|those|them|its|several|many)\b")


_NAMED = re.compile(
    r"\b(?:chord|figure|fig\.?|image|picture|panel|step|part|page|line|circle|triangle|angle|point|problem|row|"
    r"column|curve|graph|object)\s+$",
    re.IGNORECASE,
)
_NAME_GOES_ON = re.compile(r"\s*:|\s+(?:is|has|are|was|runs|contains|consists|shows|goes|meets|crosses)\b")
_SPLIT = re.compile(
    r"\b(?:split|cut|cuts|divid\w+|broken|halved|separat\w+)\s+(?:\w+\s+){0,3}(?:in|into)\s+$"
)


def counts_visible(text: str, value: Value) -> bool:
    """Whether a number counts visible things, "two chords", or identifies one, "chord 2"."""
    noun = _noun(text, value)
    if noun is not None and _THINGS.fullmatch(noun):
        return True
    if value.in_words and _PARTITIVE.match(text, value.end):
        return True
    start = max(0, value.start - 40)
    if value.number < 10 and _NAMED.search(text, start, value.start) and _NAME_GOES_ON.match(text, value.end):
        return True  # "chord 1 is", "Figure 2:"
    return value.in_words and _SPLIT.search(text, start, value.start) is not None  # "split in two"


def counts_something(text: str, value: Value) -> bool:
    """Whether a number precedes what looks like a plural noun."""
    return _noun(text, value) is not None


def _noun(text: str, value: Value) -> str | None:
    """The plural noun after a number; None for verbs and units."""
    match = _NOUN.match(text, value.end)
    if match is None or _NO_NOUN.match(match["noun"]):
        return None
    noun = match["noun"]
    return None if is_common_unit(noun) and not _THINGS.fullmatch(noun) else noun  # bars are drawn
