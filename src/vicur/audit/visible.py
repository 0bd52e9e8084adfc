"""Words that describe an image, and numbers that count what is in it instead of being read off it."""

from __future__ import annotations

import re

from vicur.audit.values import Value

VISIBLE = re.compile(
    r"(?i:\b(?:label\w*|mark(?:ed|s|ing)?|read(?:s|ing)?|written|drawn|shown?|shows|printed|digits?|numerals?|"
    r"segments?|lines?|strokes?|bars?|chords?|circles?|circular|angles?|sides?|edges?|triangles?|squares?|"
    r"rectangles?|polygons?|vert(?:ex|ices)|points?|arcs?|radi(?:us|i)|diameters?|tangents?|pieces?|parts?|"
    r"sections?|halves|ax[ei]s|ticks?|legends?|titles?|rows?|columns?|cells?|tables?|charts?|graphs?|plots?|"
    r"curves?|slices?|pies?|clock|hands?|signs?|text|caption|scale|ruler|arrows?|dots?|shapes?|objects?|top|"
    r"bottom|left|right|above|below|beside|next|over|under|near|inside|between|corner|centre|center|colou?r(?:ed|s)?|red|"
    r"green|blue|orange|purple|cyan|pink|brown|black|white|yellow|gr[ae]y|violet|magenta|picture|image|diagram|"
    r"figure|photo\w*|frame|carr(?:y|ies)|bears?|height|width|base|legs?|hypotenuse|sees?|visible|"
    r"the (?:first|second|third|other|upper|lower|former|latter))\b)"
    r"|\b[A-Z]{2,3}\b|[∠△°]|\\(?:angle|triangle)",
)
"""What a sentence speaks of that describes an image. In doubt a word belongs here: without one, a number that
is drawn would still be taken for a leak."""

_FUNCTION_WORDS = "on|and|is|are|in|at|of|or|by|to|for|with|as|units|times|be|that|what|which|who|one|it|also"
# "two chords", "4 short coloured lines", and "two of them"
_NOUN = re.compile(
    rf"\s+(?:(?!(?:{_FUNCTION_WORDS})\b)[a-z-]+\s+){{0,2}}?(?P<noun>[a-z]{{3,}}(?:s|ren|eople))\b"
)
_NO_NOUN = re.compile(
    r"(?:units|is|was|as|its|has|this|thus|plus|minus|times|equals|degrees|across|stands|goes|sits|makes|gives|"
    r"appears|belongs|comes|follows|results|remains|emerges|ensues|suffices|fits|works|holds|satisfies|solves|"
    r"answers|matches|completes|does|always|perhaps|yes|us|minutes|hours|seconds|meters|metres|inches|yards|miles|"
    r"dollars|cents|euros|points|percents?|grams|kilograms|liters|litres)$"
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
    """Whether a number counts what can be seen, "two chords", or tells it apart, "chord 2"."""
    noun = _NOUN.match(text, value.end)
    if noun is not None and VISIBLE.fullmatch(noun["noun"]) and not _NO_NOUN.match(noun["noun"]):
        return True
    if value.in_words and _PARTITIVE.match(text, value.end):
        return True
    start = max(0, value.start - 40)
    if value.number < 10 and _NAMED.search(text, start, value.start) and _NAME_GOES_ON.match(text, value.end):
        return True  # "chord 1 is", "Figure 2:"
    return value.in_words and _SPLIT.search(text, start, value.start) is not None  # "split in two"


def counts_something(text: str, value: Value) -> bool:
    """Whether a number stands before what looks like a noun in the plural."""
    noun = _NOUN.match(text, value.end)
    return noun is not None and not _NO_NOUN.match(noun["noun"])
