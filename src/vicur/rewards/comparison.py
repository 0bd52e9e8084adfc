"""Compare an answer with the gold answer, each read as what it is: a number with its unit, a ratio, a time, a
point, a set, an interval, an equation, a formula or words.

What takes algebra is put to `maths`; without one it stays undecided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from fractions import Fraction

from vicur.rewards.notation import TEXT_GROUP, key, tidy, words_key
from vicur.rewards.structure import (
    Collection,
    Labelled,
    Quantity,
    expand_signs,
    expression_label,
    read_clock,
    read_collection,
    read_label,
    read_quantity,
    read_ratio,
    split_top,
    split_unit,
    without_hedge,
    without_qualifier,
)
from vicur.rewards.units import Unit

Maths = Callable[[str, str, float], bool | None]
"""Whether formulas (gold answer, found) are equal within a relative tolerance; None if that is not known."""


class Kind(Enum):
    """What a comparison says of answers that are not of its kind."""

    OTHER = "other"


Verdict = bool | None | Kind

_FUNCTIONS_NAMES = """\
arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp lim max min gcd lcm mod det sqrt pi
"""
_FUNCTIONS = frozenset(_FUNCTIONS_NAMES.split())
_CALCULATED = frozenset({"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "e"})
_LETTERS = re.compile(r"[^\W\d_]+")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|lt|gt)(?![A-Za-z])")
_SYMMETRIC = r"\\(?:parallel|perp|cong|sim)"
_SEGMENT = re.compile(r"(?:\\overline\s*\{?|\\bar\s*\{?|(?:line )?segment\s+|side\s+)\s*([A-Z]{2})\s*\}?")
_MOST_ITEMS = 16
_ROUNDED = 0.02
"""How far an approximation may be from what it approximates, in `\\frac{22}{7} \\approx 3.14`."""


def compare(found: str, gold: str, tolerance: float, maths: Maths | None = None) -> bool | None:
    """Whether two answers are equal, or None where that takes maths and none is given.

    Args:
        found: what a response says.
        gold: what it should say.
        tolerance: largest difference of two numbers, relative to the gold answer.
        maths: decides about formulas.
    """
    return _Comparison(tolerance, maths or _undecided).answers(tidy(found), tidy(gold))


def is_words(text: str) -> bool:
    """Whether a text is words, in which math-verify would see products: "listen" is "silent" to it."""
    text = TEXT_GROUP.sub(r"\1", text)
    if re.search(r"[\\+*^=<>_{}|]|[0-9]/", text):
        return False
    runs = _LETTERS.findall(text)
    return text.casefold() in ("no", "up") or any(
        (len(run) >= 3 and run.casefold() not in _FUNCTIONS) or not run.isascii() for run in runs
    )


def _undecided(gold: str, found: str, tolerance: float) -> bool | None:
    return None


class _Comparison:
    def __init__(self, tolerance: float, maths: Maths) -> None:
        self.tolerance, self.maths = tolerance, maths

    def answers(self, found: str, gold: str) -> bool | None:
        """Compare whole answers: their labels, then their values."""
        if key(found) == key(gold):
            return True
        if not found or not gold:
            return False
        if "\\ldots" in found or "\\ldots" in gold:
            return False  # sequences are not equal because their beginnings are
        for alternative in _notations(gold):
            if alternative != gold and (same := self.answers(found, alternative)) is not False:
                return same
        found, gold = without_qualifier(found), without_qualifier(gold)
        if (rounded := self._approximations(found, gold)) is not None:
            return rounded
        own, theirs = read_label(gold), read_label(found)
        if not _may_agree(own, theirs):
            return False
        if (
            bool(own.label) != bool(theirs.label)
            and "=" in found
            and "=" in gold
            and own.named | theirs.named
        ):
            return self.maths(gold, found, self.tolerance)  # `y = 3 - x` and `x + y = 3`
        if not own.label and not _RELATION.search(gold) and not theirs.label:
            theirs = Labelled("", expression_label(theirs.value), False)
        return self._values(theirs.value, own.value)

    def _approximations(self, found: str, gold: str) -> bool | None:
        """`2\\sqrt{13} \\approx 7.21` states one number twice, provided that it does."""
        sides = split_top(found, r"\\approx")
        if len(sides) == 1 or not sides[0]:
            return None
        if len(sides) == 2:
            named = read_label(f"{sides[0]} = {sides[1]}")
            if named.label:
                return self.answers(sides[1], gold)
            exact = read_label(sides[0]).value
            agree = self._same_number(exact, sides[1])
            if agree:
                return _any([self.answers(sides[0], gold), self.answers(sides[1], gold)])
            return agree
        return False

    def _same_number(self, one: str, other: str) -> bool | None:
        return _Comparison(_ROUNDED, self.maths)._values(one, other)

    def _values(self, found: str, gold: str) -> bool | None:
        if key(found) == key(gold):
            return True
        if not found:
            return False
        for kind in (
            self._clocks,
            self._ratios,
            self._quantities,
            self._letters,
            self._collections,
            self._words,
        ):
            verdict = kind(found, gold)
            if not isinstance(verdict, Kind):
                return verdict
        return self._formulas(found, gold)

    def _clocks(self, found: str, gold: str) -> Verdict:
        first, second = read_clock(found), read_clock(gold)
        if first is None or second is None:
            return Kind.OTHER
        (*own, half), (*theirs, other_half) = first, second
        if half and other_half:
            return _minutes(own, half) == _minutes(theirs, other_half) and own[1:] == theirs[1:]
        return own == theirs or (
            bool(half or other_half) and _afternoon(own, half) == _afternoon(theirs, other_half)
        )

    def _ratios(self, found: str, gold: str) -> Verdict:
        own, theirs = read_ratio(gold), read_ratio(found)
        if own is None:
            return Kind.OTHER if theirs is None or read_clock(gold) else False
        if theirs is None:
            if len(own) != 2 or not re.search(r"/|\\frac", found):
                return False
            return self._values(found, rf"\frac{{{own[0]}}}{{{own[1]}}}")
        if len(own) != len(theirs):
            return False
        shares = [_shares(parts) for parts in (own, theirs)]
        if shares[0] is not None and shares[1] is not None:
            return shares[0] == shares[1]
        if len(own) == 2:
            return self._values(*(rf"\frac{{{parts[0]}}}{{{parts[1]}}}" for parts in (theirs, own)))
        return _all([self._values(*pair) for pair in zip(theirs, own, strict=True)])

    def _quantities(self, found: str, gold: str) -> Verdict:
        own, theirs = read_quantity(gold), read_quantity(found)
        if own is None:
            return Kind.OTHER
        if theirs is not None:
            return _close(theirs, own, self.tolerance)
        return Kind.OTHER if may_be_number(split_unit(found)[0]) or read_collection(found) else False

    def _letters(self, found: str, gold: str) -> Verdict:
        """Lists of options: "C and A" is "A, C" and "AC"."""
        lists = []
        for text in (found, gold):
            text = TEXT_GROUP.sub(r" \1 ", text)
            letters = re.sub(r"\band\b|[\s,;&()]", "", text)
            if not re.fullmatch("[A-J]{1,10}", letters):
                return Kind.OTHER
            lists.append((sorted(letters), bool(re.search(r"[,;&\s]", text.strip()))))
        if not any(separated for _, separated in lists):
            return Kind.OTHER
        return lists[0][0] == lists[1][0]

    def _collections(self, found: str, gold: str) -> Verdict:
        if is_words(gold) and not re.search(r"[0-9\\]", gold) and "," not in gold and " and " not in gold:
            return Kind.OTHER
        own, theirs = (_expanded(read_collection(text), text) for text in (gold, found))
        if own is None and theirs is None:
            return Kind.OTHER
        if own is None or theirs is None:
            other = found if theirs is None else gold
            interval = own or theirs
            assert interval is not None
            spans = interval.opening in ("(", "[", "\\cup")
            return self.maths(gold, found, self.tolerance) if spans and _RELATION.search(other) else False
        if max(len(own.items), len(theirs.items)) > _MOST_ITEMS or len(own.items) != len(theirs.items):
            return False
        if own.opening == theirs.opening and own.closing == theirs.closing:
            return self._in_order(theirs, own) if own.ordered else self._in_any_order(theirs, own)
        return self._other_brackets(theirs, own)

    def _other_brackets(self, found: Collection, gold: Collection) -> bool | None:
        """A list without brackets may be the set or the point; other brackets are other answers."""
        kinds = {found.opening + found.closing, gold.opening + gold.closing}
        if kinds == {"", "\\{\\}"}:
            return self._in_any_order(found, gold)
        if kinds == {"", "()"} or (kinds == {"", "[]"} and len(gold.items) > 2):
            return self._in_order(found, gold)
        return False

    def _in_order(self, found: Collection, gold: Collection) -> bool | None:
        return _all([self.answers(tidy(a), tidy(b)) for a, b in zip(found.items, gold.items, strict=True)])

    def _in_any_order(self, found: Collection, gold: Collection) -> bool | None:
        left = list(found.items)
        verdicts: list[bool | None] = []
        for item in gold.items:
            same = {place: self.answers(tidy(own), tidy(item)) for place, own in enumerate(left)}
            place = next((place for place, verdict in same.items() if verdict), None)
            if place is None:
                verdicts.append(None if None in same.values() else False)
            else:
                verdicts.append(True)
                del left[place]
        return _all(verdicts)

    def _words(self, found: str, gold: str) -> Verdict:
        if words_key(found) == words_key(gold) and (is_words(gold) or len(words_key(gold)) > 3):
            return True
        if _geometry(found) == _geometry(gold):
            return True
        if is_words(gold) or is_words(found):
            return False
        return Kind.OTHER

    def _formulas(self, found: str, gold: str) -> bool | None:
        (found_formula, found_unit), (gold_formula, gold_unit) = split_unit(found), split_unit(gold)
        if found_unit and gold_unit and found_unit.factor(gold_unit) != 1:
            return False
        found, gold = without_hedge(found_formula), without_hedge(gold_formula)
        if key(found) == key(gold):
            return True
        if bool(_RELATION.search(found)) != bool(_RELATION.search(gold)):
            return False
        if _is_prose(found) or _is_prose(gold) or re.search(r"[0-9]\s+[0-9]", found):
            return False
        if read_quantity(gold) and not read_quantity(found) and not may_be_number(found):
            return False
        if found_unit or gold_unit:
            return self._quantities_or_maths(found, gold)
        return self.maths(gold, found, self.tolerance)

    def _quantities_or_maths(self, found: str, gold: str) -> bool | None:
        verdict = self._quantities(found, gold)
        return self.maths(gold, found, self.tolerance) if isinstance(verdict, Kind) else verdict


def may_be_number(text: str) -> bool:
    """Whether maths could make a number of a text that is none as it stands.

    Untrained models write much that has digits in it, and a worker for each would cost seconds.
    """
    if "\\" in text:
        text = TEXT_GROUP.sub(r"\1", text)
        if "\\" in text:
            runs = re.findall("[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", " ", text))
            return all(run in _FUNCTIONS for run in runs)
    if not re.search("[0-9]|[!^√]", text) and "pi" not in text:
        return False
    if any(run not in _CALCULATED for run in _LETTERS.findall(text)):
        return False  # a variable, as in 12x
    several = re.search(r"[0-9]\s+[0-9]|[,;:]|\band\b", text)
    # Something must be left to work out, with something on each side of it.
    return several is None and re.search(r"[-+*/^!=(√]|[^\W\d_]", text.strip("-+*/=")) is not None


def _close(found: Quantity, gold: Quantity, tolerance: float) -> bool:
    if found.base != gold.base:
        return False
    values = [found.value]
    if found.unit and gold.unit and found.unit.name and gold.unit.name:
        factor = found.unit.factor(gold.unit)
        if factor is None and not _same_things(found.unit, gold.unit):
            return False
        values = [found.value * (factor or 1)]
    elif "percent" in (found.unit and found.unit.name, gold.unit and gold.unit.name):
        # 30 % is 30 to some and 0.3 to others
        values.append(found.value / 100 if found.unit and found.unit.name else found.value * 100)
    largest = Fraction(tolerance) * (abs(gold.value) or 1)
    return any(abs(value - gold.value) <= largest for value in values)


def _same_things(one: Unit, other: Unit) -> bool:
    """Whether "apple" may be what another calls "red apple"."""
    words = set(one.name.split()), set(other.name.split())
    return not (one.scale or other.scale) and (words[0] <= words[1] or words[1] <= words[0])


def _may_agree(gold: Labelled, found: Labelled) -> bool:
    """Labels contradict each other if both are symbols, or both are words that share none."""
    if not gold.label or not found.label or gold.label == found.label:
        return True
    if gold.named and found.named:
        return False
    words = [set(re.findall(r"[a-z]{4,}", label.label)) for label in (gold, found)]
    return not (words[0] and words[1]) or bool(words[0] & words[1])


def _notations(gold: str) -> Sequence[str]:
    """A gold answer in two notations, `x<-4:(-\\infty,-4)`, as two."""
    sides = split_top(gold, "[:]")
    if len(sides) == 2 and _RELATION.search(sides[0]) and read_collection(sides[1]):
        return sides
    return [gold]


def _expanded(collection: Collection | None, text: str) -> Collection | None:
    if collection is None:
        signs = expand_signs(text)
        return Collection("", "", tuple(signs)) if len(signs) > 1 and not _RELATION.search(text) else None
    items = [sign for item in collection.items for sign in expand_signs(item)]
    return Collection(collection.opening, collection.closing, tuple(items))


def _shares(parts: Sequence[str]) -> list[Fraction] | None:
    """What each part of a ratio is of the first."""
    quantities = [read_quantity(part) for part in parts]
    values = [quantity.value for quantity in quantities if quantity is not None]
    if len(values) != len(parts) or not all(values):
        return None
    return [value / values[0] for value in values]


def _minutes(time: Sequence[int], half: str) -> int:
    return (time[0] % 12 + (12 if half == "p" else 0)) * 60 + time[1]


def _afternoon(time: Sequence[int], half: str) -> tuple[int, ...]:
    """19:05 and 7:05 PM are the same, 7:05 and 7:05 PM are taken for the same elsewhere."""
    return (time[0] % 12 + 12 if half == "p" else time[0], *time[1:])


def _geometry(text: str) -> str:
    """`\\overline{AB}` as AB, and the two sides of `AB \\parallel CD` in one order."""
    text = _SEGMENT.sub(r"\1", TEXT_GROUP.sub(r"\1", text))
    sides = split_top(text, _SYMMETRIC)
    if len(sides) == 2:
        sign = re.search(_SYMMETRIC, text)
        assert sign is not None
        return sign.group().join(sorted(map(key, sides)))
    return key(text)


def _is_prose(text: str) -> bool:
    """Whether words stand in a formula, which math-verify would take for variables or pass over."""
    plain = re.sub(r"\\[A-Za-z]+", " ", TEXT_GROUP.sub(r" \1 ", text))
    return any(
        len(run) >= 4 and run.islower() and run not in _FUNCTIONS for run in re.findall("[A-Za-z]+", plain)
    )


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _any(verdicts: Sequence[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False
