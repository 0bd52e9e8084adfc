"""Splits an answer into its parts: label, elements, number and unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from vicur.rewards.notation import TEXT_GROUP, key, tidy
from vicur.rewards.numbers import Number, read_number
from vicur.rewards.units import Unit, currency, read_unit

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[<>!]?=(?!=)|.", re.DOTALL)
_OPEN, _CLOSE = (
    {"(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"},
    {*(")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil")},
)
_ENCLOSED = re.compile(r"(\\\{|\\langle|[(\[])(.*)(\\\}|\\rangle|[)\]])", re.DOTALL)
_AND = re.compile(r"\s+(?:and|or|&)\s+|(?<=[)\]}$0-9])\s*(?:and|or)\s*(?=[(\[\\$0-9])", re.IGNORECASE)

_AND_WORD = re.compile(r"\b(?:and|or)\b", re.IGNORECASE)
_DECORATION = re.compile(r"\\(?:angle|overline|widehat|triangle|vec|hat|bar|overrightarrow|odot)(?![A-Za-z])")
_NAME = re.compile(
    r"(?:m\s*)?[|{]?\s*(?:\\[A-Za-z]{2,10}|[A-Z]{1,6}|[A-Za-z]{1,3}|[0-9])'*\s*[|}]?\s*"
    r"(?:_\s*(?:\{[\w, ]{1,12}\}|\w))?'*"
    r"(?:\s*\([A-Za-z0-9, ]{1,12}\))?|\(\s*[A-Za-z]\w?(?:\s*,\s*[A-Za-z]\w?)+\s*\)"
)
_WORDS = re.compile(r"[^\W\d_][\w'.,() -]{1,60}")
_SPOKEN_LABEL = re.compile(
    r"(?:[A-Za-z][A-Za-z' ]{1,60}?\s(?:is|are|equals|was|will be|would be)\s+(?:equal to\s+)?"
    r"|[A-Za-z][A-Za-z. ]{2,40}:\s*)(?=\S)"
)
_MEMBER = re.compile(r"\s*[A-Za-z]\s*\\in\s*(?=[\[(\\{])")
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*[^|:{}]{1,20})?\s*[|:]\s*(.*[<>=\\].*)\\\}", re.DOTALL)
_POINT = re.compile(r"[A-Z]'?\s*(?=\([^()]*,[^()]*\)$)")
_HEDGE = re.compile(
    r"(?:(?:approximately|approx\.?|about|roughly|around|nearly|exactly|precisely|just|only|equal to|"
    r"(?:an )?estimated|ca\.|circa)\b\s*|\\approx(?![A-Za-z])\s*|\\sim(?![A-Za-z])\s*|~\s*)+",
    re.IGNORECASE,
)
_QUALIFIER = re.compile(
    r"[,\s(]*(?:\\text\s*\{\s*)?\b(?:for (?:all|any|every|each|some)\b|"
    r"where\b|with\b|for \$?[a-z]\$? \\in).*$",
    re.IGNORECASE | re.DOTALL,
)
_TRAILING_UNIT = re.compile(
    r"(?P<unit>(?:(?:\\(?:text|mathrm|textrm|rm|operatorname)\s*)?\{[^{}]{1,40}\}\s*|"
    r"\s[A-Za-z%°µ][\w/ .]{0,30}|%|"
    r"\^\\circ\s*[CF]?)\s*(?:\^\s*(?:\{\s*[23]\s*\}|[23]))?)$"
)
_CLOCK = re.compile(
    r"([0-9]{1,2})(?::([0-9]{2}))?(?::([0-9]{2}))?\s*(?:o'?clock)?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Labelled:
    """An answer with its label, which says what it is the value of.

    Attributes:
        label: "x" of `x = 12`, "area" of `Area = 12`; "" for none.
        value: the text after the label.
        named: whether the label is a symbol; two different symbols contradict each other.
    """

    label: str
    value: str
    named: bool


@dataclass(frozen=True)
class Quantity:
    """A number with its unit."""

    value: Fraction
    base: int
    unit: Unit | None


@dataclass(frozen=True)
class Collection:
    """An answer with several elements.

    Attributes:
        opening, closing: the brackets; "" if there are none.
        items: the elements.
    """

    opening: str
    closing: str
    items: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.opening in ("(", "[", "\\langle")


def split_top(text: str, separators: str) -> list[str]:
    """Split a text at separators that are outside all brackets.

    Args:
        text: a tidied text.
        separators: regular expression of a separator, which is one token.
    """
    pieces, depth, start = [], 0, 0
    pattern = re.compile(separators)
    for token in _TOKEN.finditer(text):
        if token.group() in _OPEN:
            depth += 1
        elif token.group() in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0 and pattern.fullmatch(token.group()):
            pieces.append(text[start : token.start()].strip())
            start = token.end()
    return [*pieces, text[start:].strip()]


def read_label(text: str) -> Labelled:
    """Separate a label from its value: "x =", "Area =", "The area is", "domain:", "3 + 4 =".

    An equation such as `2x = 8` has no label: its answer is not 8.
    """
    text = _MEMBER.sub("", text, count=1)
    if built := _BUILDER.fullmatch(text):
        return Labelled("", built[2].strip(), False)
    sides = split_top(text, "=")
    if len(sides) == 1:
        plain = TEXT_GROUP.sub(r"\1", text).strip()
        if spoken := _SPOKEN_LABEL.match(plain):
            return Labelled(_label_words(spoken.group()), tidy(plain[spoken.end() :]), False)
        return Labelled("", text, False)
    if any(len(split_top(side, "[,;]")) > 1 or _AND_WORD.search(side) for side in sides[1:-1]):
        return Labelled("", text, False)  # "x = 2, y = 5"
    first, last = sides[0], tidy(sides[-1])
    if is_name(first):
        return Labelled(key(first).removeprefix("m\\angle"), last, True)
    if len(sides) == 2 and is_name(last) and read_number(first):
        return Labelled(key(last), first, True)  # `5 = s`
    plain = TEXT_GROUP.sub(r"\1", first).replace("$", "").strip()
    if _WORDS.fullmatch(plain):
        return Labelled(_label_words(plain), last, False)
    if not re.search(r"[A-Za-z]", re.sub(r"\\(?:times|cdot|div|frac|sqrt|pi)(?![A-Za-z])", "", first)):
        values = {number.value for number in map(_whole_number, sides) if number is not None}
        return Labelled("", text if len(values) > 1 else last, False)  # `= 7`, `3 + 4 = 7`, but not `5 = 6`
    return Labelled("", text, False)


def is_name(text: str) -> bool:
    """Whether a text is the name of a quantity: `x`, `m\\angle ABC`, `f(x)`, `\\overline{AB}`, `|PQ|`."""
    plain = _DECORATION.sub("", TEXT_GROUP.sub(r"\1", text)).strip(" $")
    return _NAME.fullmatch(plain) is not None and re.search(r"[A-Za-z]", plain) is not None


def expression_label(text: str) -> str:
    """The right side of an equation with only variables on its left (7 of `x + y = 7`), or the text."""
    sides = split_top(text, "=")
    left = re.sub(r"_\s*(?:\{[^{}]*\}|\w)", "", sides[0])
    if len(sides) == 2 and re.search("[A-Za-z]", left) and not re.search(r"[0-9^<>]|^\s*-", left):
        return tidy(sides[1])
    return text


def without_hedge(text: str) -> str:
    """Remove a leading "approximately", "about" or `\\approx`."""
    hedge = _HEDGE.match(text)
    return text[hedge.end() :] if hedge else text


def without_qualifier(text: str) -> str:
    """Remove a trailing qualifier: `2x + 1 \\text{ for all real } x` becomes `2x + 1`."""
    match = _QUALIFIER.search(text)
    if (
        match is None
        or not text[: match.start()].strip()
        or not re.search(r"[0-9\\=]", text[: match.start()])
    ):
        return text
    return tidy(text[: match.start()])


def read_quantity(text: str) -> Quantity | None:
    """A number with an optional unit: "about 12 cm", `\\$12`, "30 %"; None if the text is something else."""
    text = text.strip()
    if text.startswith("\\") and TEXT_GROUP.match(text):
        text = TEXT_GROUP.sub(r" \1 ", text).strip()
    text = without_hedge(text)
    unit = None
    negative = text[:1] == "-" and currency(text[1:].lstrip()) is not None
    if sign := currency(text[1:].lstrip() if negative else text):
        unit, end = sign
        text = (text[1:].lstrip() if negative else text)[end:].strip()
    number = read_number(text)
    if number is None:
        return None
    tail = text[number.end :]
    if tail.strip():
        unit = read_unit(tail)
        if unit is None:
            return None
    return Quantity(-number.value if negative else number.value, number.base, unit)


def split_unit(text: str) -> tuple[str, Unit | None]:
    """A formula and the unit after it: `81\\pi` and square centimetres for `81 \\pi \\mathrm{cm}^2`."""
    match = _TRAILING_UNIT.search(text[-80:])
    if match is None:
        return text, None
    start = len(text) - len(match.group())
    grouped = text[start:].lstrip().startswith(("\\", "{"))
    unit = read_unit(text[start:], attached=not grouped, nouns=False)
    if unit is None or not text[:start].strip() or (not grouped and text[:start].rstrip()[-1] in "^_+-*/"):
        return text, None
    if text[start:].startswith("{") and re.search(r"(?:\\[A-Za-z]+|\}|[\^_])\s*$", text[:start]):
        return text, None  # an argument of a command, as in \frac{a}{m}
    return text[:start].strip(), unit


def read_collection(text: str) -> Collection | None:
    """A point, an interval, a set or a list; None for a single element."""
    text = _POINT.sub("", text.strip(), count=1) if text.endswith(")") else text.strip()
    enclosed = _ENCLOSED.fullmatch(text)
    if enclosed and _is_one_group(text):
        items = split_top(enclosed[2], "[,;]")
        if (len(items) > 1 or enclosed[1] == "\\{") and all(items):
            return Collection(enclosed[1], enclosed[3], tuple(items))
        return None
    plain = _AND.sub(", ", TEXT_GROUP.sub(lambda match: _and_word(match), text))
    items = [item for item in split_top(plain, r"[,;\n]") if item]
    if len(items) > 1:
        return Collection("", "", tuple(items))
    union = split_top(text, r"\\cup")
    return Collection("\\cup", "\\cup", tuple(union)) if len(union) > 1 and all(union) else None


def expand_signs(item: str) -> list[str]:
    """`1 \\pm \\sqrt{2}` as two answers."""
    if "\\pm" not in item:
        return [item]
    return [item.replace("\\pm", "+").lstrip("+ "), item.replace("\\pm", "-")]


def read_clock(text: str) -> tuple[int, int, int, str] | None:
    """Hours, minutes, seconds and "a", "p" or "" of a time of day; None for any other text."""
    match = _CLOCK.fullmatch(TEXT_GROUP.sub(r" \1 ", text).strip())
    if match is None or not (match[2] or match[4] or "clock" in text):
        return None
    hours, minutes, seconds = (int(match[group] or 0) for group in (1, 2, 3))
    return (hours, minutes, seconds, (match[4] or "").lower()) if hours <= 24 and minutes < 60 else None


def read_ratio(text: str) -> list[str] | None:
    """The parts of `3:4` or `\\sqrt{3}:7`; None if the text is not a ratio."""
    parts = split_top(text, ":")
    if len(parts) == 1:
        parts = re.split(r"(?<=[0-9])\s+to\s+(?=[0-9])", text)
    if len(parts) == 1 or any(re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", part)) for part in parts):
        return None
    return parts if all(re.search(r"[0-9A-Za-z]", part) for part in parts) else None


def _is_one_group(text: str) -> bool:
    """Whether the last character closes the first bracket."""
    depth, last = 0, 0
    for token in _TOKEN.finditer(text):
        depth += token.group() in _OPEN
        depth -= token.group() in _CLOSE
        last = token.end()
        if depth == 0:
            break
    return last == len(text)


def _and_word(match: re.Match[str]) -> str:
    word = match[1].strip(" ,").lower()
    return ", " if word in ("and", "or") else match.group()


def _whole_number(text: str) -> Number | None:
    number = read_number(text)
    return number if number is not None and not text[number.end :].strip() else None


def _label_words(words: str) -> str:
    words = re.sub(
        r"\b(?:the|is|are|equals|was|will be|would be|equal to|its|total|an?)\b|[:.]", " ", words.lower()
    )
    return " ".join(words.split())
