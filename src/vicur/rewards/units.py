"""Reads units of measurement with pint.

A letter after a formula is a variable far more often than a unit. So a name that pint knows counts as a unit
only if it is spelled out ("metres"), or is a common symbol ("cm") that is separated from the number or in
`\\text{}`. `7t` is not seven tonnes, and `2mg` is the weight of two masses m.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vicur.rewards.notation import TEXT_GROUP, tidy

if TYPE_CHECKING:
    from pint import UnitRegistry

_DEFINITIONS = """\
dollar = [currency_dollar] = USD = _ = dollars = bucks
cent = 0.01 dollar = _ = cents
euro = [currency_euro] = EUR = _ = euros
sterling = [currency_sterling] = GBP = _ = pounds_sterling
yen = [currency_yen] = JPY
yuan = [currency_yuan] = CNY = _ = rmb
rupee = [currency_rupee] = INR = _ = rupees
@alias gram = gm = gms = gramme = grammes
@alias kilogram = kgs
@alias hour = hrs
@alias year = yrs
@alias inch = ins
@alias centimeter = cms
@alias percent = pct = percentage
@alias second = secs
@alias minute = mins
@alias kilometer_per_hour = kmph = kmh
"""
"""Units that pint lacks: currencies, and plurals of abbreviations."""
_PREFIXES = frozenset(
    {"", "kilo", "centi", "milli", "micro", "nano", "pico", "mega", "giga", "deci", "hecto"}
)
_SYMBOLS_NAMES = """\
meter gram second liter newton joule watt volt ampere coulomb farad ohm hertz pascal tesla kelvin mole
electron_volt bar hour minute inch foot yard mile pound ounce degree radian percent weber henry lumen lux
becquerel gray sievert calorie watt_hour year gallon mile_per_hour kilometer_per_hour decibel
kilometer_per_second revolutions_per_minute degree_Celsius degree_Fahrenheit ppm cubic_centimeter dollar
cent euro sterling yen yuan rupee byte bit parsec light_year atmosphere
"""
_SYMBOLS = frozenset(_SYMBOLS_NAMES.split())
_LETTERS = frozenset("mgsLlNJWVACFTKh")
"""Single letters that are units if separated from the number."""
_DEGREES = {"deg": "degree", "degC": "degree_Celsius", "degF": "degree_Fahrenheit"}
_AMBIGUOUS = re.compile(r"[A-Za-zµ]|[mnp](?:[gsNJWVACFTHK]|mol)|[mnp]m(?<!mm)|in|as|at|pt|ft lb")
"""Symbols that are products of variables if they directly follow a number, as in `2mg`."""
_CHINESE = {
    **{"米": "meter", "厘米": "centimeter", "毫米": "millimeter", "分米": "decimeter", "千米": "kilometer"},
    **{"公里": "kilometer", "海里": "nautical_mile", "度": "degree", "秒": "second", "分钟": "minute"},
    **{"小时": "hour", "天": "day", "年": "year", "克": "gram", "千克": "kilogram", "公斤": "kilogram"},
    **{"升": "liter", "毫升": "milliliter", "元": "yuan", "平方米": "meter**2", "平方厘米": "centimeter**2"},
    **{"立方米": "meter**3", "立方厘米": "centimeter**3"},
}
CURRENCIES = {r"\$": "dollar", "$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
_CURRENCY_SIGN = re.compile(r"\\?\$|[€£¥₹]")
_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\^\s*\\circ\s*\}?\s*([CF])\b"), r" deg\1 "),
    (re.compile(r"\bdegrees? (c|f)(?:elsius|ahrenheit)\b", re.I), lambda match: f" deg{match[1].upper()} "),
    (re.compile(r"\^\s*\\circ\s*T\b"), " degree "),  # a true bearing
    (re.compile(r"\\?\^\s*\\circ|\\circ(?![A-Za-z])"), " degree "),
    (re.compile(r"\\Omega(?![A-Za-z])"), " ohm "),
    (re.compile(r"\\mu\s*(?=[A-Za-z])"), "micro_"),
    (re.compile(r"\\mathring\s*\{A\}|\\AA(?![A-Za-z])|Å"), " angstrom "),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|\*(?!\*)"), " * "),
    (re.compile(r"\\(?:,|;|:|!| )|~"), " "),
    (re.compile(r"%"), " percent "),
    (re.compile(r"\bper cent\b", re.I), " percent "),
    (re.compile(r"\bsquareinch"), "square inch"),
    (re.compile(r"\b(?:sq|square)\b\.?\s*", re.I), "square "),
    (re.compile(r"\b(?:cu|cubic)\b\.?\s+", re.I), "cubic "),
    (re.compile(r"\s+per\s+", re.I), " / "),
    (re.compile(r"\^\s*\{\s*(-?[0-9])\s*\}|\^\s*\(?(-?[0-9])\)?|\*\*\s*([0-9])"), r" **\1\2\3 "),
]
_POWER = re.compile(r"\^\s*\{\s*(-?[0-9])\s*\}")
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_FACTOR = re.compile(
    r"\s*(?P<joined>[*/]?)\s*(?P<before>square |cubic )?(?P<name>[^\W\d][\w.]*?)"
    r"(?P<digit>[23])?(?:\s*\*\*\s*(?P<power>-?[0-9])|\s+(?P<after>squared|cubed))?(?=[\s*/]|$)",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"[^\W\d_]{3,}(?: [^\W\d_]{3,})?")
_CHANGING = """\
and or plus minus times over per hundred thousand million billion trillion dozen dozens half halves third
thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths
tenth tenths hundredth hundredths more less than root sqrt sin cos tan log mod not but if then factorial
"""
_NO_NOUNS = frozenset(_CHANGING.split())
"""Words after a number that change its value or meaning."""
_LONGEST = 60


@dataclass(frozen=True)
class Unit:
    """A unit of measurement, or a noun that is counted.

    Attributes:
        name: pint's name of the unit, or the noun; "" for "units".
        scale: size in base units; 0 if that is meaningless, as for degrees Celsius.
        dimension: pint's name of the dimension; the unit's own name if it is dimensionless, such as degrees,
            or a noun.
    """

    name: str
    scale: Fraction
    dimension: str

    def factor(self, other: Unit) -> Fraction | None:
        """The size of this unit in units of `other`; None if they measure different things."""
        if self.name == other.name:
            return Fraction(1)
        if self.dimension != other.dimension or not (self.scale and other.scale):
            return None
        return self.scale / other.scale


ANY = Unit("", Fraction(1), "")
"""The unit of "24 square units"."""


def read_unit(tail: str, attached: bool | None = None, nouns: bool = True) -> Unit | None:
    """The unit that a whole text is.

    Args:
        tail: text after a number: " cm^2", "\\text{ m/s}", "(kg)", "^\\circ".
        attached: whether it directly follows the number, in which case a letter is a variable; read from the
            text if not given.
        nouns: whether one or two other words may be the thing that is counted, as in "12 apples".

    Returns:
        None if the text is something else, as in `12x`.
    """
    if not tail.strip() or len(tail) > _LONGEST:
        return None
    grouped = TEXT_GROUP.sub(r" \1 ", _POWER.sub(r"^\1", tail))
    if attached is None:
        attached = not (grouped[:1].isspace() or grouped[:1] in "([{" or tail[:1] in "([")
    return _read(grouped, attached, nouns)


@functools.lru_cache(maxsize=4096)
def _read(text: str, attached: bool, nouns: bool) -> Unit | None:
    text = text.strip()
    for left, right in ("()", "[]", "{}"):
        if text.startswith(left) and text.endswith(right):
            text, attached = text[1:-1].strip(), False
    plain = " ".join(text.split())
    if text in _CHINESE:
        return _pint_unit(_CHINESE[text])
    if _CURRENCY_SIGN.fullmatch(text):
        return _pint_unit(CURRENCIES[text])
    text = _FRACTION.sub(r"\1 / \2", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = " ".join(text.replace("{}", "").split())
    if re.fullmatch(r"(?:square |cubic )?units?(?: \*\*[23]| squared| cubed)?", text, re.IGNORECASE):
        return ANY
    expression = _expression(text, attached)
    if expression is not None:
        return _pint_unit(expression)
    words = plain.casefold()
    if nouns and not attached and _COUNTED.fullmatch(words) and not _NO_NOUNS.intersection(words.split()):
        noun = " ".join(word.removesuffix("s") for word in words.split())
        return Unit(noun, Fraction(0), noun)
    return None


def _expression(text: str, attached: bool) -> str | None:
    """A product of units in pint's notation; None if the text is not one."""
    end = 0
    parts: list[tuple[str, str]] = []
    while end < len(text):
        match = _FACTOR.match(text, end)
        if match is None or len(parts) == 6:
            return None
        first = attached and not parts and not re.match(r"m ?/ ?s\b", text)
        name = _known(match["name"], first)
        if name is None or (match["joined"] and not parts):
            return None
        words = (match["before"] or match["after"] or "").strip().lower()
        power = match["power"] or match["digit"] or {"s": "2", "c": "3"}.get(words[:1], "1")
        parts.append((match["joined"] or "*", f"{name}**{power}"))
        end = match.end()
    return "".join(sign + part for sign, part in parts).removeprefix("*") or None


def _known(name: str, attached: bool) -> str | None:
    """pint's name of a unit that is spelled out or a common symbol; None for any other text."""
    name = name.strip(".").replace("micro_", "µ")
    if name.lower() in _NO_NOUNS:
        return None
    if name in _DEGREES:
        return _DEGREES[name]
    if (attached and _AMBIGUOUS.fullmatch(name)) or (len(name) == 1 and name not in _LETTERS):
        return None
    for spelled in dict.fromkeys((name, name.lower() if len(name) > 2 else name)):
        for prefix, unit, _ in _registry().parse_unit_name(spelled):
            written_out = len(spelled) > 3 and (not prefix or spelled.startswith(prefix))
            if written_out or (prefix in _PREFIXES and unit in _SYMBOLS):
                return f"{prefix}{unit}"
    return None


@functools.lru_cache(maxsize=1024)
def _pint_unit(expression: str) -> Unit | None:
    from pint import errors

    try:
        unit: Any = _registry().parse_units(expression)
        dimension, name = str(unit.dimensionality), str(unit)
        if dimension == "dimensionless":
            return Unit(name, Fraction(0), name)
        scale = (1 * unit).to_base_units().magnitude
    except errors.OffsetUnitCalculusError:
        return Unit(expression, Fraction(0), expression)
    except errors.UndefinedUnitError:
        return None
    if str(unit) in ("degree_Celsius", "degree_Fahrenheit"):
        return Unit(name, Fraction(0), name)
    # pint computes in floats: twelve digits are reliable.
    return Unit(name, Fraction(f"{scale:.12g}"), dimension)


def currency(text: str) -> tuple[Unit, int] | None:
    """The unit and the end of the currency sign at the start of a text; None if there is none."""
    match = _CURRENCY_SIGN.match(text)
    if match is None:
        return None
    unit = _pint_unit(CURRENCIES[match.group()])
    return None if unit is None else (unit, match.end())


def leading_unit(words: str) -> int:
    """Length of the unit at the start of the text after a number: 3 for " cm long"; 0 if there is none."""
    pieces = list(re.finditer(r"\s*[^\s,.;:!?()]+", words[:_LONGEST]))[:3]
    for last in reversed(pieces):
        if pieces[0].start() == 0 and read_unit(words[: last.end()], nouns=False) is not None:
            return last.end()
    return 0


def is_unit(text: str) -> bool:
    """Whether a text is a unit of measurement, not a noun."""
    return read_unit(" " + tidy(text), nouns=False) is not None


def is_common_unit(word: str) -> bool:
    """Whether a word is a unit that is rarely anything else: "minutes" and "kilograms", but not "cups"."""
    unit = read_unit(" " + word, nouns=False)
    return unit is not None and any(unit.name.removeprefix(prefix) in _SYMBOLS for prefix in _PREFIXES)


@functools.cache
def _registry() -> UnitRegistry[Any]:
    from pint import UnitRegistry

    registry: UnitRegistry[Any] = UnitRegistry()
    for definition in _DEFINITIONS.splitlines():
        registry.define(definition)
    return registry
