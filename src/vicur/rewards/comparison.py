"""Compare an answer with the gold answer as far as plain text and arithmetic go.

What is left undecided here is maths, and a matter for `vicur.rewards.latex`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from vicur.rewards.answers import NUMBER, closing_brace

_TEXT = r"\\(?:text|textbf|textrm|textit|textsf|texttt|mathrm|mathbf|mathsf|mathit|mbox|operatorname|rm|bf)"
_TEXT_GROUP = re.compile(_TEXT + r"\s*\{([^{}]*)\}")
_REPLACED = [
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile("[\u00a0\u2009\u202f]"), " "),
    (re.compile("\u00b2"), "^2"),
    (re.compile("\u00b3"), "^3"),
    (re.compile("\u00b0"), r"^\\circ "),
    (re.compile("\u00d7"), r"\\times "),
    (re.compile("\u03c0"), r"\\pi "),
    (re.compile(r"\{,\}"), ","),  # 1{,}000
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;:> ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])\s*\.?|\\(?:display|text)style(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\degree(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\*\*|__"), ""),
]
_PAIRS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("*", "*"), ("`", "`"), ('"', '"')]
_WRAPPING = re.compile(rf"(?:{_TEXT}|\\boxed|\\fbox)?\s*(?=\{{)")

_OPTION = re.compile(
    r"(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*:?\s*)?"
    r"(?:([A-J])[.):]?|[(\[]([A-Ja-j])[)\]][.:]?|([A-Ja-j])[.):]\s+(.+)|[(\[]([A-Ja-j])[)\]][.:]?\s*(\S.*))",
    re.DOTALL,
)

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_WORDS.split())}
_LEADING_WORD = re.compile(rf"(?:{'|'.join(_NUMBER_WORDS)})(?![\w-])", re.IGNORECASE)

_UNSIGNED = rf"(?:[0-9]{{1,3}}(?: [0-9]{{3}})+(?![0-9])|{NUMBER})"
_VALUE = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    rf"\\frac\s*\{{\s*(?P<upper>-?{_UNSIGNED})\s*\}}\s*\{{\s*(?P<lower>{_UNSIGNED})\s*\}}"
    r"|\\frac\s*(?P<upper_digit>[0-9])\s*(?P<lower_digit>[0-9])(?![0-9])"
    r"|(?P<whole>[0-9]+) (?P<mixed_upper>[0-9]+)/(?P<mixed_lower>[0-9]+)"
    rf"|(?P<plain>{_UNSIGNED})(?:\s*/\s*(?P<divisor>{_UNSIGNED})"
    r"|[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9A-Za-z])"
    r"|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?[0-9]{1,3})\s*\}|(?P<digit>[0-9])))?"
    r")"
)
_ASSIGNED = re.compile(
    r"(?:(?P<name>(?:m\s*)?(?:\\(?:angle|overline|triangle)\s*)?\{?\\?[A-Za-z]{1,7}\}?"
    r"(?:_\{?\w{1,3}\}?)?(?:\([A-Za-z]\))?)\s*)?(?:=|\\approx(?![A-Za-z])|\u2248)\s*"
)
_CHAIN = re.compile(r"(?:[-0-9+*/^(). ={}]|\\(?:times|cdot|div|frac)(?![A-Za-z]))*=\s*")
_COEFFICIENT = re.compile(r"[-+]?[0-9.]+\s*[A-Za-z][^=]*=")
_CURRENCY = re.compile(r"(?:\\?\$|\u20ac|\u00a3|\u00a5)\s*")

# Every row: one unit as it may be written. Short ones are case-sensitive.
_UNIT_ROWS = """\
deg degree degrees ^\\circ ^{\\circ} \\circ
rad radian radians
% percent percentage pct
cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
km kilometer kilometers kilometre kilometres
m meter meters metre metres
in inch inches
ft foot feet
yd yard yards
mi mile miles
g gram grams
kg kilogram kilograms
mg milligram milligrams
lb lbs pound pounds
oz ounce ounces
s sec secs second seconds
ms millisecond milliseconds
min mins minute minutes
h hr hrs hour hours
L l liter liters litre litres
mL ml milliliter milliliters
N newton newtons
J joule joules
kJ kilojoule kilojoules
W watt watts
V volt volts
A amp amps ampere amperes
C celsius
K kelvin
Pa pascal pascals
kPa kilopascal kilopascals
Hz hertz
mol mole moles
am a.m. a.m
pm p.m. p.m
"""
_UNITS = {name: row.split()[0] for row in _UNIT_ROWS.splitlines() for name in row.split()}
_NO_UNIT = {"unit", "units"}
# Words after a number that change what it says.
_CHANGING = """\
and or plus minus times over per hundred thousand million billion trillion dozen dozens half halves third
thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths
tenth tenths hundredth hundredths more less than root pi sqrt sin cos tan log mod not but if then
"""
_NOT_UNITS = frozenset(_CHANGING.split())
_MATHS = """\
arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log exp lim max min gcd lcm mod det sqrt and
"""
_FUNCTIONS = frozenset(_MATHS.split())
_CALCULATED = frozenset({"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "e"})
_LETTERS = re.compile(r"[^\W\d_]+")
_RATIO = re.compile(r"(?<=[0-9)}])\s*:\s*(?=[0-9(\\])")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?![0-9])")


@dataclass(frozen=True)
class _Number:
    """A number as it is written: "x = 12 %" has the value 12, the unit "%" and the name "x"."""

    value: float
    unit: str
    name: str


def tidy(text: str) -> str:
    """Without what only dresses an answer: dollar signs, bold face, `\\text{}`, spacing, a full stop."""
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    before = None
    while text != before:
        before = text
        text = text.strip()
        if not text.endswith("\\"):
            text = text.rstrip(" .;,")
        for left, right in _PAIRS:
            inside = text[len(left) : -len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                text = inside if left not in inside and right not in inside else text
        opening = _WRAPPING.match(text)
        if opening and closing_brace(text, opening.end()) == len(text) - 1:
            text = text[opening.end() + 1 : -1]
    return text


def split_option(text: str) -> tuple[str, str] | None:
    """The letter and the text of an option: "B" of `B`, `(B)`, `**B**`, "B. 12" or "option B".

    Returns:
        The letter (A to J) and what follows it, or None where the text is no option.
    """
    match = _OPTION.fullmatch(_TEXT_GROUP.sub(r"\1", tidy(text)).strip())
    if match is None:
        return None
    alone, bracketed, letter, rest, before, after = match.groups()
    return (alone or bracketed or letter or before).upper(), (rest or after or "").strip()


def needs_maths(gold: str) -> bool:
    """Whether a gold answer is neither an option, a number nor words, so that it has to be parsed."""
    gold = tidy(gold)
    return split_option(gold) is None and _number(gold) is None and not _is_words(gold)


def compare(found: str, gold: str, tolerance: float) -> bool | None:
    """Whether two answers are equal, or None where that takes maths.

    Numbers are compared by value; a unit, a percent sign or a degree sign may be missing in one, but two
    must be the same. Anything else is compared as text without spaces and case, which settles it where the
    gold answer is words.

    Args:
        found: what a response says.
        gold: what it should say.
        tolerance: largest difference of two numbers, relative to the gold answer.
    """
    found, gold = tidy(found), tidy(gold)
    if _key(found) == _key(gold):
        return True
    if bool(_RATIO.search(found)) != bool(_RATIO.search(gold)):
        return False  # math-verify divides: 3:4 would be 0.75
    if _RATIO.search(gold) and (same := _same_ratio(found, gold)) is not None:
        return same
    gold_number, found_number = _number(gold), _number(found)
    if gold_number is not None:
        if found_number is not None:
            return _close(found_number, gold_number, tolerance)
        # 8 is no answer where 2x = 8 is found, though math-verify takes the right side of any equation.
        return False if _COEFFICIENT.match(found) or not _may_be_number(found) else None
    if (same := _same_letters(found, gold)) is not None:
        return same
    if _is_words(gold) or _is_words(found) or not found:
        return False
    return None


def _key(text: str) -> str:
    text = _TEXT_GROUP.sub(r"\1", text)
    # "3 1/2" is not "31/2".
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", "_", text)
    return re.sub(r"[\s$]", "", text).casefold()


def _number(text: str) -> _Number | None:
    """Read a number with an optional unit, and what may stand before it: "x =", "3 + 4 =", a currency."""
    name = ""
    if assigned := _ASSIGNED.match(text):
        name, text = _key(assigned["name"] or ""), text[assigned.end() :]
    if chain := _CHAIN.match(text):
        text = text[chain.end() :]
    if currency := _CURRENCY.match(text):
        text = text[currency.end() :]
    if word := _LEADING_WORD.match(text):
        text = _NUMBER_WORDS[word.group().lower()] + text[word.end() :]
    match = _VALUE.match(text)
    if match is None:
        return None
    value, unit = _value(match), _unit(text[match.end() :])
    return None if value is None or unit is None else _Number(value, unit, name)


def _value(match: re.Match[str]) -> float | None:
    def number(group: str) -> float:
        return float(re.sub("[ ,]", "", match[group]))

    if match["upper"]:
        upper, lower = number("upper"), number("lower")
    elif match["upper_digit"]:
        upper, lower = number("upper_digit"), number("lower_digit")
    elif match["whole"]:
        upper, lower = number("mixed_upper"), number("mixed_lower")
    else:
        upper, lower = number("plain"), number("divisor") if match["divisor"] else 1.0
    if lower == 0:
        return None
    value = upper / lower + (number("whole") if match["whole"] else 0.0)
    # By float(), which knows no overflow: 10.0**999 is an error, float("1e999") is infinite.
    value *= float("1e" + (match["exponent"] or match["power"] or match["digit"] or "0"))
    return (-value if match["sign"] == "-" else value) if math.isfinite(value) else None


def _unit(tail: str) -> str | None:
    """The unit that follows a number: "" for none, None where it is something else, as in `12x`."""
    unwrapped = _TEXT_GROUP.sub(r" \1 ", tail)
    spaced = unwrapped[:1].isspace()
    text = re.sub(r"\^\s*\{\s*([0-9])\s*\}", r"^\1", unwrapped)
    text = " ".join(re.sub(r"\s*([/^])\s*", r"\1", text).split())
    if not text:
        return ""
    if text in _UNITS or text.casefold() in _UNITS:
        unit = _UNITS.get(text) or _UNITS[text.casefold()]
        # 12m may be twelve metres or 12 times m.
        return unit if spaced or len(text) > 1 or not text.isalpha() else None
    if match := re.fullmatch(r"\^?\{?\\circ\}? ?([CF]?)", text):
        return "deg" + match[1]
    if parts := re.fullmatch(r"([A-Za-z]+(?:\^[23])?)(?:/| per )([A-Za-z]+(?:\^[23])?)", text):
        units = [_power(part) for part in parts.groups()]
        return None if None in units else "/".join(str(unit) for unit in units)
    if (unit_power := _power(text)) is not None:
        return unit_power if spaced or len(text) > 3 else None
    words = text.casefold().split()
    # Anything else that is counted, as in "12 apples".
    if spaced and len(words) <= 2 and all(re.fullmatch(r"[^\W\d_]{3,}", word) for word in words):
        return None if _NOT_UNITS.intersection(words) else " ".join(word.rstrip("s") for word in words)
    return None


def _power(text: str) -> str | None:
    """`cm^2` of `cm^2`, "square cm" or "cm squared"; "" of "square units"."""
    match = re.fullmatch(
        r"(?:(sq\.?|square|cu\.?|cubic) )?([A-Za-z]+)(?:\^([23])| (squared|cubed))?", text, re.IGNORECASE
    )
    if match is None:
        return None
    before, base, power, after = match.groups()
    name = _UNITS.get(base) or _UNITS.get(base.casefold())
    if name is None:
        return "" if base.casefold() in _NO_UNIT else None
    word = (before or after or "").casefold()
    exponent = power or ("2" if word.startswith("sq") else "3" if word.startswith("cu") else "")
    return f"{name}^{exponent}" if exponent else name


def _close(found: _Number, gold: _Number, tolerance: float) -> bool:
    if found.name and gold.name and found.name != gold.name:
        return False
    if found.unit and gold.unit and found.unit != gold.unit:
        return False
    values = [found.value]
    if found.unit != gold.unit and "%" in (found.unit, gold.unit):  # 30 % is 30 to some and 0.3 to others
        values.append(found.value / 100 if found.unit else found.value * 100)
    largest = tolerance * (abs(gold.value) or 1.0)
    return any(abs(value - gold.value) <= largest for value in values)


def _may_be_number(text: str) -> bool:
    """Whether maths could make a number of a text that is none as it stands.

    Untrained models write much that has digits in it, and a worker for each would cost seconds.
    """
    if "\\" in text:
        text = _TEXT_GROUP.sub(r"\1", text)
        if "\\" in text:
            return True
    if not re.search("[0-9]|[!^√]", text) and "pi" not in text:
        return False
    if any(run not in _CALCULATED and (len(run) > 1 or run not in _UNITS) for run in _LETTERS.findall(text)):
        return False  # a variable, as in 12x, but not the unit of 12m
    several = re.search(r"[0-9]\s+[0-9]|[,;:]|\band\b", text)
    # Something must be left to work out, with something on each side of it.
    return several is None and re.search(r"[-+*/^!=(√]|[^\W\d_]", text.strip("-+*/=")) is not None


def _same_ratio(found: str, gold: str) -> bool | None:
    """6:8 is 3:4, but 1:15 (a quarter past) is not 2:30."""
    if _CLOCK.fullmatch(gold):
        return False
    sides = [[part.strip() for part in _RATIO.split(text)] for text in (found, gold)]
    if not all(re.fullmatch("[0-9]{1,12}", part) and int(part) for parts in sides for part in parts):
        return None
    shares = [[Fraction(int(part), int(parts[0])) for part in parts] for parts in sides]
    return shares[0] == shares[1]


def _same_letters(found: str, gold: str) -> bool | None:
    """Whether two lists of options have the same letters; None where neither is such a list."""
    lists = []
    for text in (found, gold):
        text = _TEXT_GROUP.sub(r" \1 ", text)
        letters = re.sub(r"\band\b|[\s,;&()]", "", text)
        if not re.fullmatch("[A-J]{1,10}", letters):
            return None
        lists.append((letters, bool(re.search(r"[,;&\s]", text.strip()))))
    if not any(separated for _, separated in lists):
        return None
    return sorted(lists[0][0]) == sorted(lists[1][0])


def _is_words(text: str) -> bool:
    """Whether a text is words, in which math-verify would see products: "listen" is "silent" to it."""
    text = _TEXT_GROUP.sub(r"\1", text)
    if re.search(r"[\\+*/^=<>_{}|]", text):
        return False
    runs = _LETTERS.findall(text)
    return text.casefold() in ("no", "up") or any(
        (len(run) >= 3 and run.casefold() not in _FUNCTIONS) or not (run.isascii() or _is_greek(run))
        for run in runs
    )


def _is_greek(text: str) -> bool:
    return all("Ͱ" <= character <= "Ͽ" for character in text)
