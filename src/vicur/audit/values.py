"""The numbers that a text states, in any form: digits, words, fractions, percent, roots, LaTeX."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from vicur.rewards.numbers import NUMBER, ONES, SCALES, SMALL_WORDS, read_number
from vicur.rewards.units import read_unit

_PARTS = {
    **dict.fromkeys(("half", "halves"), 2),
    **dict.fromkeys(("third", "thirds"), 3),
    **dict.fromkeys(("quarter", "quarters", "fourth", "fourths"), 4),
    **dict.fromkeys(("fifth", "fifths"), 5),
    **dict.fromkeys(("sixth", "sixths"), 6),
    **dict.fromkeys(("seventh", "sevenths"), 7),
    **dict.fromkeys(("eighth", "eighths"), 8),
    **dict.fromkeys(("ninth", "ninths"), 9),
    **dict.fromkeys(("tenth", "tenths"), 10),
    **dict.fromkeys(("hundredth", "hundredths"), 100),
}
_VULGAR = {"½": 1 / 2, "⅓": 1 / 3, "⅔": 2 / 3, "¼": 1 / 4, "¾": 3 / 4, "⅕": 1 / 5, "⅛": 1 / 8, "⅜": 3 / 8}

_ONE_WORD = "|".join(sorted((*SMALL_WORDS, *SCALES), key=len, reverse=True))
_PART_WORD = "|".join(sorted(_PARTS, key=len, reverse=True))
_INSIDE = r"[^{}]*(?:\{[^{}]*\}[^{}]*)?"
_FIND = re.compile(
    rf"\\[dtc]?frac\s*\{{(?P<upper>{_INSIDE})\}}\s*\{{(?P<lower>{_INSIDE})\}}"
    rf"|(?<![\w)])\(\s*(?P<upper_alone>{NUMBER})\s*\)\s*/\s*\(\s*(?P<lower_alone>{NUMBER})\s*\)"
    r"|\\[dtc]?frac\s*(?P<upper_digit>[0-9])\s*(?P<lower_digit>[0-9])(?![0-9])"
    rf"|(?<![\w.])(?:(?P<factor>{NUMBER})\s*(?:\*|\\cdot|\\times|[·\u00d7])?)?\s*"
    rf"(?:(?:\\sqrt\s*\{{\s*|√\s*[({{]?\s*|\bsqrt\s*[({{]?\s*|\b(?:the )?square root of\s+)(?P<root>{NUMBER})"
    r"\s*[)}]?|(?P<pi>\\pi(?![A-Za-z])|π|\bpi\b))"
    rf"(?:\s*/\s*(?P<under>{NUMBER}))?"
    r"|(?<![\w.^])(?P<whole>[0-9]+)(?:\s*(?P<vulgar>[½⅓⅔¼¾⅕⅛⅜])"
    r"|\s+(?:and\s+)?(?P<mixed_upper>[0-9]+)/(?P<mixed_lower>[0-9]+))"
    r"|(?P<vulgar_alone>[½⅓⅔¼¾⅕⅛⅜])"
    rf"|(?<![\w^_])(?<![0-9]\.)(?P<plain>{NUMBER})(?!\.?[0-9])(?:(?P<letters>[A-Za-z_]\w*)"
    rf"|(?:(?:\s*/\s*|\s+over\s+)(?P<divisor>{NUMBER})(?![A-Za-z0-9]))?(?P<percent>\s*\\?%|\s*per ?cent\b)?)"
    rf"|\b(?P<words>(?:{_ONE_WORD})(?:(?:(?:(?<=hundred)|(?<=thousand))\s+and)?[\s-]+(?:{_ONE_WORD}))*)\b"
    rf"(?:\s+point(?P<decimals>(?:\s+(?:{_ONE_WORD}))+)\b"
    rf"|[\s-]+(?P<parts>{_PART_WORD})\b"
    rf"|\s+and\s+(?P<more>an?|{'|'.join(ONES[1:10])})[\s-]+(?P<more_parts>{_PART_WORD})\b"
    rf"|\s+over\s+(?P<over>{_ONE_WORD})\b)?"
    r"(?P<percent_word>\s*%|\s+per ?cent\b)?"
    rf"|\ba[\s-]+(?P<single_part>{_PART_WORD})\b",
    re.IGNORECASE,
)
_COMPOUND = ("upper", "upper_alone", "upper_digit", "root", "mixed_upper", "divisor", "parts", "over")
_MINUS = re.compile(r"(?:(?<![\w)\]}]\s)(?<![\w)\]}])[-\u2212]\s?|\b(?:minus|negative)\s+)$")
_WORD = re.compile("[a-z]+")


@dataclass(frozen=True)
class Value:
    """A number and its place in a text.

    Attributes:
        start, end: position of its words in the text, in characters, sign included.
        number: the value; 12 for "12 %".
        percent: whether it is in percent.
        decimals: number of decimals written, which decides how far it may be rounded.
        in_words: whether it is written out.
        worked_out: whether it is written as a fraction or root, but is a whole number.
    """

    start: int
    end: int
    number: float
    percent: bool = False
    decimals: int = 0
    in_words: bool = False
    worked_out: bool = False

    def equals(self, other: Value, tolerance: float) -> bool:
        """Whether it equals a gold answer, possibly rounded or in percent."""
        numbers = [self.number]
        if self.percent != other.percent:  # 30 % is 30 to some and 0.3 to others
            numbers.append(self.number / 100 if self.percent else self.number * 100)
        if any(abs(number - other.number) <= tolerance * max(1.0, abs(other.number)) for number in numbers):
            return True
        rounded = self.decimals >= 1 and abs(self.number) >= 10 ** (1 - self.decimals)
        return rounded and abs(self.number - other.number) <= 0.5 * 10**-self.decimals * (1 + 1e-9)


@functools.lru_cache(maxsize=8192)  # questions and label texts are parsed repeatedly
def find_values(text: str) -> tuple[Value, ...]:
    """Every number that a text states, from left to right.

    Coefficients of variables, exponents and digits inside names (`A1`) are left out. Time is linear in the
    length.
    """
    return tuple(_values(text))


def _values(text: str) -> Iterator[Value]:
    for match in _FIND.finditer(text):
        number = _number(match)
        if number is None or not math.isfinite(number):
            continue
        if match["letters"] and read_unit(match["letters"], attached=True, nouns=False) is None:
            continue  # the coefficient of a variable
        start = match.start() + len(match.group()) - len(match.group().lstrip())
        sign = _MINUS.search(text, max(0, start - 12), start)
        decimals = match["plain"].partition(".")[2] if match["plain"] and not match["divisor"] else ""
        yield Value(
            start=sign.start() if sign else start,
            end=match.end("plain") if match["letters"] else match.end(),
            number=-number if sign else number,
            percent=bool(match["percent"] or match["percent_word"]),
            decimals=len(decimals),
            in_words=bool(match["words"] or match["single_part"]),
            worked_out=number.is_integer() and any(match[group] for group in _COMPOUND),
        )


def _number(match: re.Match[str]) -> float | None:
    if match["upper"] is not None:
        upper, lower = _inner(match["upper"]), _inner(match["lower"])
        return None if upper is None or lower is None else _ratio(upper, lower)
    if match["upper_alone"]:
        return _ratio(_float(match["upper_alone"]), _float(match["lower_alone"]))
    if match["upper_digit"]:
        return _ratio(float(match["upper_digit"]), float(match["lower_digit"]))
    if match["root"] or match["pi"]:
        factor = _float(match["factor"]) if match["factor"] else 1.0
        size = math.sqrt(_float(match["root"])) if match["root"] else math.pi
        return _ratio(factor * size, _float(match["under"]) if match["under"] else 1.0)
    if match["whole"]:
        if match["vulgar"]:
            return float(match["whole"]) + _VULGAR[match["vulgar"]]
        part = _ratio(float(match["mixed_upper"]), float(match["mixed_lower"]))
        return None if part is None else float(match["whole"]) + part
    if match["vulgar_alone"]:
        return _VULGAR[match["vulgar_alone"]]
    if match["plain"]:
        return _ratio(_float(match["plain"]), _float(match["divisor"]) if match["divisor"] else 1.0)
    if match["single_part"]:
        return 1 / _PARTS[match["single_part"].lower()]
    return _words(match)


def _words(match: re.Match[str]) -> float | None:
    number = _spoken(match["words"])
    if number is None:
        return None
    if match["decimals"]:
        digits = [SMALL_WORDS.get(word) for word in _WORD.findall(match["decimals"].lower())]
        if any(digit is None or digit > 9 for digit in digits):
            return None
        return number + float("0." + "".join(str(digit) for digit in digits))
    if match["parts"]:
        return number / _PARTS[match["parts"].lower()]
    if match["more_parts"]:
        more = match["more"].lower()
        return number + SMALL_WORDS.get(more, 1) / _PARTS[match["more_parts"].lower()]
    if match["over"]:
        over = _spoken(match["over"])
        return None if over is None else _ratio(number, over)
    return number


def _spoken(words: str) -> float | None:
    number = read_number(words)
    return None if number is None else float(number.value)


def _inner(text: str) -> float | None:
    """Numerator or denominator of a fraction, if it is a single number."""
    values = find_values(text)
    whole = (
        len(values) == 1 and text[: values[0].start].strip() == "" and text[values[0].end :].strip(" }") == ""
    )
    return values[0].number if whole else None


def _ratio(upper: float, lower: float) -> float | None:
    return None if lower == 0 else upper / lower


def _float(text: str) -> float:
    return float(text.replace(",", ""))
