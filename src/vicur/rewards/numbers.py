"""Reads the number at the start of an answer, exactly: `1,250.75`, `3 1/2`, `1.6 \\times 10^{-19}`,
`213_5`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
"""Digits without a sign, with or without commas between thousands."""

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SMALL_WORDS = {word: value for value, word in enumerate(ONES)} | {
    word: 10 * value for value, word in enumerate(TENS, 2)
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_UNSIGNED = rf"(?:[0-9]{{1,3}}(?: [0-9]{{3}})+(?![0-9])|{NUMBER}|[0-9]+\.(?![0-9]))"
_EXPONENT = r"[-+]?[0-9]{1,4}"
_VALUE = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    rf"\\frac\s*\{{\s*(?P<upper>-?{_UNSIGNED})\s*\}}\s*\{{\s*(?P<lower>{_UNSIGNED})\s*\}}"
    r"|\\frac\s*(?P<upper_digit>[0-9])\s*(?P<lower_digit>[0-9])(?![0-9])"
    r"|(?P<whole>[0-9]+)(?:(?: | and )(?P<mixed_upper>[0-9]+)/(?P<mixed_lower>[0-9]+)(?![0-9])"
    r"|\s*\\frac\s*\{\s*(?P<latex_upper>[0-9]+)\s*\}\s*\{\s*(?P<latex_lower>[0-9]+)\s*\})"
    rf"|10\s*\^\s*(?:\{{\s*(?P<power_alone>{_EXPONENT})\s*\}}|(?P<digit_alone>-?[0-9]+)(?![0-9]))"
    r"|(?P<digits>[0-9][0-9A-F]*)\s*_\s*(?:\{\s*(?P<base>[0-9]{1,2})\s*\}|(?P<base_digits>[0-9]{1,2}))"
    r"|(?P<finite>[0-9]*\.[0-9]*)\\overline\s*\{\s*(?P<period>[0-9]{1,18})\s*\}"
    rf"|(?P<plain>{_UNSIGNED})(?:\s*/\s*(?P<divisor>{_UNSIGNED})"
    rf"|[eE](?P<exponent>{_EXPONENT})(?![0-9A-Za-z])"
    rf"|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*(?P<power>{_EXPONENT})\s*\}}"
    r"|(?P<digit>-?[0-9]+)(?![0-9])))?"
    r")"
)
_WORD = re.compile(
    rf"(?P<minus>minus |negative )?(?P<words>(?:{'|'.join([*SMALL_WORDS, *SCALES])})"
    rf"(?:(?:\s+and\s+|[\s-]+)(?:{'|'.join([*SMALL_WORDS, *SCALES])}))*)(?![\w-])",
    re.IGNORECASE,
)
_SCALED = re.compile(rf"\s*(?:\\text\s*\{{\s*)?(?P<scale>{'|'.join(SCALES)})\b(?:\s*\}})?", re.IGNORECASE)
_MOST_DIGITS = 2000


@dataclass(frozen=True)
class Number:
    """An exact number.

    Attributes:
        value: the number's value.
        base: the base that it is written in.
        end: end of the number in the text.
    """

    value: Fraction
    base: int
    end: int


def read_number(text: str) -> Number | None:
    """The number that a tidied text starts with; None if it starts with something else."""
    if word := _WORD.match(text):
        count = _in_words(word["words"])
        return None if count is None else Number(Fraction(-count if word["minus"] else count), 10, word.end())
    match = _VALUE.match(text)
    if match is None or match.end() - match.start() > _MOST_DIGITS:
        return None
    base = int(match["base"] or match["base_digits"] or 10)
    if match["digits"] is not None and not _fits(match["digits"], base):
        return None
    value, end = _value(match, base), match.end()
    if value is None:
        return None
    if scaled := _SCALED.match(text, end):
        value, end = value * SCALES[scaled["scale"].lower()], scaled.end()
    return Number(-value if match["sign"] == "-" else value, base, end)


def _value(match: re.Match[str], base: int) -> Fraction | None:
    def number(group: str) -> Fraction:
        return Fraction(re.sub("[ ,]", "", match[group]).removesuffix("."))

    if match["digits"]:
        return Fraction(int(match["digits"], base))
    if match["period"]:
        return _periodic(match["finite"], match["period"])
    if match["upper"]:
        upper, lower = number("upper"), number("lower")
    elif match["upper_digit"]:
        upper, lower = number("upper_digit"), number("lower_digit")
    elif match["whole"]:
        kind = "mixed" if match["mixed_upper"] else "latex"
        upper, lower = number(f"{kind}_upper"), number(f"{kind}_lower")
    elif match["plain"]:
        upper, lower = number("plain"), number("divisor") if match["divisor"] else Fraction(1)
    else:
        upper, lower = Fraction(1), Fraction(1)
    if lower == 0:
        return None
    exponents = ("exponent", "power", "digit", "power_alone", "digit_alone")
    exponent = int(next((match[name] for name in exponents if match[name]), "0"))
    if abs(exponent) > 9999:
        return None
    return (upper / lower + (number("whole") if match["whole"] else 0)) * Fraction(10) ** exponent


def _fits(digits: str, base: int) -> bool:
    return 2 <= base <= 16 and all(int(digit, 16) < base for digit in digits)


def _periodic(finite: str, period: str) -> Fraction:
    """`0.1\\overline{6}` is 1/6."""
    whole, _, decimals = finite.partition(".")
    start = Fraction(int(whole or "0")) + Fraction(int(decimals or "0"), 10 ** len(decimals))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))


def _in_words(words: str) -> int | None:
    """ "two hundred and twenty-one" is 221; None for a mere list of number words: "one two"."""
    total = group = 0
    last = 1000  # value of the previous word: only ones may follow tens, and nothing may follow ones
    for word in re.split(r"[\s-]+", words.lower()):
        if word == "and":
            continue
        if word in SCALES and SCALES[word] > 100:
            total, group, last = total + max(group, 1) * SCALES[word], 0, 1000
        elif word == "hundred":
            if group >= 100:
                return None
            group, last = max(group, 1) * 100, 100
        else:
            value = SMALL_WORDS[word]
            if last < 20 or (last < 100 and not 0 < value < 10):
                return None
            group, last = group + value, value
    return total + group
