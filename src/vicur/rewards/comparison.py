"""Compares an answer with the gold answer by kind: a number with its unit, a ratio, a time, a point, a set,
an interval, an equation, a formula or words.

Comparisons that need algebra are passed to `maths`; without it they stay undecided.
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
"""(gold answer, answer, tolerance) -> whether two formulas are equal; None if that is not known."""


class Kind(Enum):
    """The result of a comparison for answers that are not of its kind."""

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
"""Largest relative distance of an approximation from its exact value, in `\\frac{22}{7} \\approx 3.14`."""


def compare(answer: str, gold: str, tolerance: float, maths: Maths | None = None) -> bool | None:
    """Whether two answers are equal; None if that needs `maths` and there is none.

    Args:
        answer: answer of a response.
        gold: the gold answer.
        tolerance: largest difference of two numbers, relative to the gold answer.
        maths: compares formulas.
    """
    return _Comparison(tolerance, maths or _undecided).answers(tidy(answer), tidy(gold))


def is_words(text: str) -> bool:
    """Whether a text is words, which math-verify reads as products: for it, "listen" equals "silent"."""
    text = TEXT_GROUP.sub(r"\1", text)
    if re.search(r"[\\+*^=<>_{}|]|[0-9]/", text):
        return False
    runs = _LETTERS.findall(text)
    return text.casefold() in ("no", "up") or any(
        (len(run) >= 3 and run.casefold() not in _FUNCTIONS) or not run.isascii() for run in runs
    )


def _undecided(gold: str, answer: str, tolerance: float) -> bool | None:
    return None


class _Comparison:
    def __init__(self, tolerance: float, maths: Maths) -> None:
        self.tolerance, self.maths = tolerance, maths

    def answers(self, answer: str, gold: str) -> bool | None:
        """Compare whole answers: their labels, then their values."""
        if key(answer) == key(gold):
            return True
        if not answer or not gold:
            return False
        if "\\ldots" in answer or "\\ldots" in gold:
            return False  # equal beginnings do not make sequences equal
        for alternative in _notations(gold):
            if alternative != gold and (same := self.answers(answer, alternative)) is not False:
                return same
        answer, gold = without_qualifier(answer), without_qualifier(gold)
        if (rounded := self._approximations(answer, gold)) is not None:
            return rounded
        gold_label, answer_label = read_label(gold), read_label(answer)
        if not _may_agree(gold_label, answer_label):
            return False
        if (
            bool(gold_label.label) != bool(answer_label.label)
            and "=" in answer
            and "=" in gold
            and gold_label.named | answer_label.named
        ):
            return self.maths(gold, answer, self.tolerance)  # `y = 3 - x` and `x + y = 3`
        if not gold_label.label and not _RELATION.search(gold) and not answer_label.label:
            answer_label = Labelled("", expression_label(answer_label.value), False)
        return self._values(answer_label.value, gold_label.value)

    def _approximations(self, answer: str, gold: str) -> bool | None:
        """Compare `2\\sqrt{13} \\approx 7.21`: either side counts if the two sides agree."""
        sides = split_top(answer, r"\\approx")
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

    def _same_number(self, first: str, second: str) -> bool | None:
        return _Comparison(_ROUNDED, self.maths)._values(first, second)

    def _values(self, answer: str, gold: str) -> bool | None:
        if key(answer) == key(gold):
            return True
        if not answer:
            return False
        for kind in (
            self._clocks,
            self._ratios,
            self._quantities,
            self._letters,
            self._collections,
            self._words,
        ):
            verdict = kind(answer, gold)
            if not isinstance(verdict, Kind):
                return verdict
        return self._formulas(answer, gold)

    def _clocks(self, answer: str, gold: str) -> Verdict:
        first, second = read_clock(answer), read_clock(gold)
        if first is None or second is None:
            return Kind.OTHER
        (*answer_time, answer_half), (*gold_time, gold_half) = first, second
        if answer_half and gold_half:
            return (
                _minutes(answer_time, answer_half) == _minutes(gold_time, gold_half)
                and answer_time[1:] == gold_time[1:]
            )
        return answer_time == gold_time or (
            bool(answer_half or gold_half)
            and _as_24_hours(answer_time, answer_half) == _as_24_hours(gold_time, gold_half)
        )

    def _ratios(self, answer: str, gold: str) -> Verdict:
        gold_parts, answer_parts = read_ratio(gold), read_ratio(answer)
        if gold_parts is None:
            return Kind.OTHER if answer_parts is None or read_clock(gold) else False
        if answer_parts is None:
            if len(gold_parts) != 2 or not re.search(r"/|\\frac", answer):
                return False
            return self._values(answer, rf"\frac{{{gold_parts[0]}}}{{{gold_parts[1]}}}")
        if len(gold_parts) != len(answer_parts):
            return False
        shares = [_shares(parts) for parts in (gold_parts, answer_parts)]
        if shares[0] is not None and shares[1] is not None:
            return shares[0] == shares[1]
        if len(gold_parts) == 2:
            return self._values(
                *(rf"\frac{{{parts[0]}}}{{{parts[1]}}}" for parts in (answer_parts, gold_parts))
            )
        return _all([self._values(*pair) for pair in zip(answer_parts, gold_parts, strict=True)])

    def _quantities(self, answer: str, gold: str) -> Verdict:
        gold_quantity, answer_quantity = read_quantity(gold), read_quantity(answer)
        if gold_quantity is None:
            return Kind.OTHER
        if answer_quantity is not None:
            return _close(answer_quantity, gold_quantity, self.tolerance)
        return Kind.OTHER if may_be_number(split_unit(answer)[0]) or read_collection(answer) else False

    def _letters(self, answer: str, gold: str) -> Verdict:
        """Lists of options: "C and A" is "A, C" and "AC"."""
        lists = []
        for text in (answer, gold):
            text = TEXT_GROUP.sub(r" \1 ", text)
            letters = re.sub(r"\band\b|[\s,;&()]", "", text)
            if not re.fullmatch("[A-J]{1,10}", letters):
                return Kind.OTHER
            lists.append((sorted(letters), bool(re.search(r"[,;&\s]", text.strip()))))
        if not any(separated for _, separated in lists):
            return Kind.OTHER
        return lists[0][0] == lists[1][0]

    def _collections(self, answer: str, gold: str) -> Verdict:
        if is_words(gold) and not re.search(r"[0-9\\]", gold) and "," not in gold and " and " not in gold:
            return Kind.OTHER
        gold_collection, answer_collection = (
            _expanded(read_collection(text), text) for text in (gold, answer)
        )
        if gold_collection is None and answer_collection is None:
            return Kind.OTHER
        if gold_collection is None or answer_collection is None:
            other = answer if answer_collection is None else gold
            interval = gold_collection or answer_collection
            assert interval is not None
            spans = interval.opening in ("(", "[", "\\cup")
            return self.maths(gold, answer, self.tolerance) if spans and _RELATION.search(other) else False
        if max(len(gold_collection.items), len(answer_collection.items)) > _MOST_ITEMS or len(
            gold_collection.items
        ) != len(answer_collection.items):
            return False
        if (
            gold_collection.opening == answer_collection.opening
            and gold_collection.closing == answer_collection.closing
        ):
            return (
                self._in_order(answer_collection, gold_collection)
                if gold_collection.ordered
                else self._in_any_order(answer_collection, gold_collection)
            )
        return self._other_brackets(answer_collection, gold_collection)

    def _other_brackets(self, answer: Collection, gold: Collection) -> bool | None:
        """A list without brackets may be a set or a point; different brackets make different answers."""
        kinds = {answer.opening + answer.closing, gold.opening + gold.closing}
        if kinds == {"", "\\{\\}"}:
            return self._in_any_order(answer, gold)
        if kinds == {"", "()"} or (kinds == {"", "[]"} and len(gold.items) > 2):
            return self._in_order(answer, gold)
        return False

    def _in_order(self, answer: Collection, gold: Collection) -> bool | None:
        return _all([self.answers(tidy(a), tidy(b)) for a, b in zip(answer.items, gold.items, strict=True)])

    def _in_any_order(self, answer: Collection, gold: Collection) -> bool | None:
        left = list(answer.items)
        verdicts: list[bool | None] = []
        for item in gold.items:
            same = {place: self.answers(tidy(candidate), tidy(item)) for place, candidate in enumerate(left)}
            place = next((place for place, verdict in same.items() if verdict), None)
            if place is None:
                verdicts.append(None if None in same.values() else False)
            else:
                verdicts.append(True)
                del left[place]
        return _all(verdicts)

    def _words(self, answer: str, gold: str) -> Verdict:
        if words_key(answer) == words_key(gold) and (is_words(gold) or len(words_key(gold)) > 3):
            return True
        if _geometry(answer) == _geometry(gold):
            return True
        if is_words(gold) or is_words(answer):
            return False
        return Kind.OTHER

    def _formulas(self, answer: str, gold: str) -> bool | None:
        (answer_formula, answer_unit), (gold_formula, gold_unit) = split_unit(answer), split_unit(gold)
        if answer_unit and gold_unit and answer_unit.factor(gold_unit) != 1:
            return False
        answer, gold = without_hedge(answer_formula), without_hedge(gold_formula)
        if key(answer) == key(gold):
            return True
        if bool(_RELATION.search(answer)) != bool(_RELATION.search(gold)):
            return False
        if _is_prose(answer) or _is_prose(gold) or re.search(r"[0-9]\s+[0-9]", answer):
            return False
        if read_quantity(gold) and not read_quantity(answer) and not may_be_number(answer):
            return False
        if answer_unit or gold_unit:
            return self._quantities_or_maths(answer, gold)
        return self.maths(gold, answer, self.tolerance)

    def _quantities_or_maths(self, answer: str, gold: str) -> bool | None:
        verdict = self._quantities(answer, gold)
        return self.maths(gold, answer, self.tolerance) if isinstance(verdict, Kind) else verdict


def may_be_number(text: str) -> bool:
    """Whether maths could turn a text that is not a number into one.

    Untrained models write many texts with digits, and asking the worker about each would cost seconds.
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
    # There must be an operator left to evaluate, with operands.
    return several is None and re.search(r"[-+*/^!=(√]|[^\W\d_]", text.strip("-+*/=")) is not None


def _close(answer: Quantity, gold: Quantity, tolerance: float) -> bool:
    if answer.base != gold.base:
        return False
    values = [answer.value]
    if answer.unit and gold.unit and answer.unit.name and gold.unit.name:
        factor = answer.unit.factor(gold.unit)
        if factor is None and not _same_things(answer.unit, gold.unit):
            return False
        values = [answer.value * (factor or 1)]
    elif "percent" in (answer.unit and answer.unit.name, gold.unit and gold.unit.name):
        # 30 % is 30 to some and 0.3 to others
        values.append(answer.value / 100 if answer.unit and answer.unit.name else answer.value * 100)
    largest = Fraction(tolerance) * (abs(gold.value) or 1)
    return any(abs(value - gold.value) <= largest for value in values)


def _same_things(first: Unit, second: Unit) -> bool:
    """Whether two nouns may mean the same things, such as "apple" and "red apple"."""
    words = set(first.name.split()), set(second.name.split())
    return not (first.scale or second.scale) and (words[0] <= words[1] or words[1] <= words[0])


def _may_agree(gold: Labelled, answer: Labelled) -> bool:
    """Whether labels do not contradict each other: as two symbols, or as texts without a common word."""
    if not gold.label or not answer.label or gold.label == answer.label:
        return True
    if gold.named and answer.named:
        return False
    words = [set(re.findall(r"[a-z]{4,}", label.label)) for label in (gold, answer)]
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
    """The ratio of each part to the first."""
    quantities = [read_quantity(part) for part in parts]
    values = [quantity.value for quantity in quantities if quantity is not None]
    if len(values) != len(parts) or not all(values):
        return None
    return [value / values[0] for value in values]


def _minutes(time: Sequence[int], half: str) -> int:
    return (time[0] % 12 + (12 if half == "p" else 0)) * 60 + time[1]


def _as_24_hours(time: Sequence[int], half: str) -> tuple[int, ...]:
    """19:05 and 7:05 PM are the same. That 7:05 may be 7:05 PM is checked elsewhere."""
    return (time[0] % 12 + 12 if half == "p" else time[0], *time[1:])


def _geometry(text: str) -> str:
    """Write `\\overline{AB}` as AB, and put the two sides of `AB \\parallel CD` in a fixed order."""
    text = _SEGMENT.sub(r"\1", TEXT_GROUP.sub(r"\1", text))
    sides = split_top(text, _SYMMETRIC)
    if len(sides) == 2:
        sign = re.search(_SYMMETRIC, text)
        assert sign is not None
        return sign.group().join(sorted(map(key, sides)))
    return key(text)


def _is_prose(text: str) -> bool:
    """Whether a formula contains words, which math-verify would take for variables or ignore."""
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
