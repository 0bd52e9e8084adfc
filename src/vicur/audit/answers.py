"""Checks whether a cue states the gold answer: the answer itself, a form that the grader accepts as equal, or
its option.

An answer in an answering construction ("the answer is", "x =") is a definite leak. A plain number that equals
it is not a leak if it is drawn in the image, a definite leak if it is known not to be (then it was worked
out), and a possible leak if that is unknown. A number that is drawn once may be stated once.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vicur.audit.findings import Finding, Severity
from vicur.audit.values import Value, find_values
from vicur.audit.visible import counts_something, counts_visible
from vicur.rewards.answers import unwrap_gold
from vicur.rewards.comparison import compare
from vicur.rewards.notation import tidy
from vicur.rewards.options import split_option
from vicur.rewards.units import is_unit

_FILLER = (
    r"(?:\s*(?:exactly|precisely|just|simply|then|about|approximately|roughly|equal to|"
    r"the (?:number|value|digit)|(?:option|choice)|clearly|thus|therefore|\$|\\\(|\\boxed\{|[({\[\"'*`]))*\s*"
)
_QUANTITY = (
    r"(?:answer|solution|result|reply|response|outcome|sum|total|difference|product|maximum|unknown|value|"
    r"number|missing \w+|final \w+|asked(?: for)?|looking for|in question)"
)
_VERB = (
    r"(?:(?:comes?|amounts?|adds? up|sums?|leads?|points?|works? out|ends? up|arrives?) (?:out )?"
    r"(?:to|at|with|towards)|makes?|gives?|yields?|gets?|finds?|leaves?|"
    r"(?:must|has to|should|can only|would|will) be)"
)
_BEFORE = re.compile(
    rf"(?:=|≈|→|⇒|[-=]+>|\bequals?|\b{_VERB}\b|\b{_QUANTITY}\b[^.;\n\d]{{0,40}}?"
    rf"(?:\b(?:is|are|was|be|of|as|to|equals?|becomes?)\b|[:,(])|(?<![\w'])[a-z] (?:is|has (?:the )?length))"
    rf"{_FILLER}$",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"[\s)}\]\"'*$`,]*(?:is|are|as|being) (?:the|our|your|an?) (?:correct |right |final )?"
    r"(?:answer|solution|result)\b",
    re.IGNORECASE,
)
_SO = re.compile(
    r"\b(?:therefore|hence|thus|consequently|it follows|so(?! that| on| far| called|-))\b[^.;]*$",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?P<name>(?:\\angle|∠|(?:\bm\s*)?\bangle|\barc|\bside|\bsegment|\bline)?\s*\b[A-Z][A-Z0-9']{0,3})\s*"
    rf"(?:is|=|measures|equals|:){_FILLER}$"
)
_COUNTING = re.compile(r"\bhow many\b|\bnumber of\b|\bcount\b", re.IGNORECASE)
_ASKED_NAME = re.compile(
    r"\b(?i:find|what is|what's|determine|calculate|compute|solve for|value of|length of|measure of)\b"
    r"(?:\s+(?:the|measure|length|value|size|area|side|segment|angle|arc|of|m))*\s*[$\\({]*(?:\\?angle|∠)?\s*"
    r"(?P<name>[A-Z][A-Z0-9']{0,3}|[a-z])(?![\w'])"
)
_BREAK = re.compile(r"[.!?](?=\s)|[;\n]")
_OPTION_LINE = re.compile(r"(?:^|[\s(])\(?([A-J])[.):]\s*")
_SHORT_WORDS = frozenset({"yes", "no", "true", "false", "none", "a", "an", "the", "one"})

TOLERANCE = 1e-6
"""Numbers are equal if they differ by at most this, relative to the gold answer."""
Known = Callable[[str], bool | int | None]
"""Whether a value, as it is written, is drawn in the image, or how often; None if unknown."""


@dataclass(frozen=True)
class Gold:
    """The forms of an answer that a cue must not state.

    Attributes:
        texts: the answer, and the text of the option that it is.
        letter: the letter of that option.
        letters: the letters of all options, if known.
    """

    texts: tuple[str, ...]
    letter: str | None = None
    letters: tuple[str, ...] = ()


def gold_forms(answer: str, question: str, choices: tuple[str, ...]) -> Gold:
    """The answer, and letter and text of the option that it refers to.

    Args:
        answer: the gold answer as in the data.
        question: may list the options: "A. 12 B. 14".
        choices: the options, if the data has them in a column.
    """
    answer = unwrap_gold(answer).strip()
    options = dict(zip("ABCDEFGHIJ", choices, strict=False)) if choices else _options(question)
    options = {letter: _bare(letter, text) for letter, text in options.items()}
    option = split_option(answer)
    if option is not None and (not options or option[0] in options):
        texts = [option[1], options.get(option[0], "")]
        letter: str | None = option[0]
    else:
        texts = [answer]
        letter = next((mark for mark, text in options.items() if text and compare(text, answer, 1e-6)), None)
    return Gold(tuple(dict.fromkeys(text for text in texts if text)), letter, tuple(options))


def answer_findings(text: str, question: str, gold: Gold, known: Known) -> list[Finding]:
    """Every place where a cue states the answer.

    Args:
        text: the cue.
        question: the question of the cue's problem.
        gold: the forms of the answer that must not be stated.
        known: whether a value is drawn.
    """
    findings: list[Finding] = []
    if gold.letter is not None:
        findings += _letter(text, gold)
    for answer in gold.texts:
        number = gold_number(answer)
        if number is not None:
            findings += _numbers(text, question, answer, number, known)
        else:
            findings += _words(text, question, answer, known)
    return findings


@functools.lru_cache(maxsize=4096)
def gold_number(answer: str) -> Value | None:
    """The number that a gold answer is, without its "x =" and its unit; None if it is not a number."""
    bare = re.sub(r"^\s*[^\d=]{1,16}=\s*(?=[^=]+$)", "", tidy(answer))
    values = find_values(bare)
    if len(values) != 1 or bare[: values[0].start].strip(" $({"):
        return None
    rest = bare[values[0].end :].strip(" $)}")
    if rest and not (compare(bare, bare[: values[0].end], 1e-9) or is_unit(rest)):
        return None
    return values[0]


def _numbers(text: str, question: str, answer: str, gold: Value, known: Known) -> list[Finding]:
    findings: list[Finding] = []
    reads = 0
    for value in find_values(text):
        if not value.equals(gold, TOLERANCE) or _other_unit(text, value, answer):
            continue
        place = _place(text, question, value.start, value.end, value)
        if isinstance(place, Finding):
            findings.append(place)
            continue
        if place is None:
            continue
        words = text[value.start : value.end]
        drawn = known(words)
        odd = value.worked_out and not gold.worked_out  # no side is labelled 18/3
        if place == "counted":
            findings += [] if drawn else [_mention(words, value.start, value.end, None)]
        elif not drawn or odd:
            findings.append(_mention(words, value.start, value.end, drawn, odd))
        elif drawn is not True and reads >= drawn:
            reason = f'"{words}" is the answer, and is stated more often than it is drawn.'
            findings.append(Finding("answer", "possible", "repeated", value.start, value.end, reason))
        reads += place == "plain"
    return findings


def _place(
    text: str, question: str, start: int, end: int, value: Value | None
) -> Finding | Literal["plain", "counted"] | None:
    """The finding for an answer at this place.

    "plain" where that depends on what is drawn, "counted" where it may only count things.
    """
    words = text[start:end]
    before, after = _around(text, start, end)

    def definite(rule: str, reason: str) -> Finding:
        return Finding("answer", "definite", rule, start, end, reason)

    if not before.strip(" \"'$*(\\{") and not after.strip(" \"'$*.)\\}"):
        return definite("alone", f'"{words}" is the whole sentence, and is the answer.')
    named = _NAMED.search(before)
    if named and (asked := _ASKED_NAME.search(question)) and named["name"].split()[-1] != asked["name"]:
        return "plain"  # AB = 12 reads a label if the question does not ask for AB
    stated = _BEFORE.search(before) is not None or _AFTER.match(after) is not None
    if value is not None and words.lower() == "one":
        # "one chord", "the other one": only a number if it can be nothing else.
        noun = re.match(r"\s+[a-z]", after) is not None and not re.match(r"\s+(?:is|as|for|in)\b", after)
        if noun or not stated:
            return None
    if stated:
        return definite("stated", f'"{words}" is the answer, and the surrounding words say so.')
    if value is not None and counts_something(text, value):
        if _COUNTING.search(question):
            return definite("count", f'"{words}" is a count, and the question asks how many.')
        return None if counts_visible(text, value) else "counted"
    if value is not None and counts_visible(text, value):
        return None
    if _SO.search(before):
        return definite("stated", f'"{words}" is the answer, stated as a conclusion.')
    return "plain"


def _mention(words: str, start: int, end: int, drawn: bool | int | None, odd: bool = False) -> Finding:
    """A plain mention of an answer that is not known to be drawn."""
    if drawn is None and not odd:
        reason = f'"{words}" is the answer; it may be a label in the image.'
        return Finding("answer", "possible", "mentioned", start, end, reason)
    reason = f'"{words}" is the answer, and is not drawn in the image.'
    if odd:
        reason = f'"{words}" is the answer in a form that had to be worked out.'
    return Finding("answer", "definite", "not drawn", start, end, reason)


def _words(text: str, question: str, answer: str, known: Known) -> list[Finding]:
    """An answer that is not a number: words, or an expression, compared without spaces and dollar signs."""
    pattern = _spaced(tidy(answer))
    if pattern is None:
        return []
    findings = []
    for match in pattern.finditer(text):
        start, end = match.span()
        if answer.strip().casefold() in _SHORT_WORDS:
            before, after = _around(text, start, end)
            stated = re.search(r"\b(?:answer|result|solution)\b", before, re.IGNORECASE)
            if not stated and (before + after).strip(" ."):
                continue
        place = _place(text, question, start, end, None)
        if place in ("plain", "counted"):
            drawn = known(match.group())
            if not drawn:
                findings.append(_mention(match.group(), start, end, drawn))
        elif isinstance(place, Finding):
            findings.append(place)
    return findings


@functools.lru_cache(maxsize=4096)
def _spaced(answer: str) -> re.Pattern[str] | None:
    pieces = re.findall(r"\w+|[^\w\s$]", answer)
    if not pieces or len(answer) > 200:
        return None
    body = r"[\s$]*".join(re.escape(piece) for piece in pieces)
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def _letter(text: str, gold: Gold) -> list[Finding]:
    letter = gold.letter
    assert letter is not None
    pattern = re.compile(
        rf"\b(?:option|choice|answer)\s*(?:is|:)?\s*[(\[\"'*]*{letter}\b|\({letter}\)|(?<![\w'])"
        rf"{letter}(?=[)\"'*]*\s+is\s+(?:the\s+)?(?:correct|right|answer|true|best))"
        rf"|(?:correct|right|best|true)\s+(?:one\s+|option\s+|choice\s+|answer\s+)?(?:is|:)\s*[(\[\"'*]*{letter}\b",
        re.IGNORECASE,
    )
    findings = []
    for match in pattern.finditer(text):
        if letter not in match.group():  # "option a thin line": only capitals name options
            continue
        start, end = match.span()
        before, after = _around(text, start, end)
        surely = re.search(r"answer|correct|right|best|true", match.group() + after[:24], re.IGNORECASE)
        surely = surely or re.search(r"\b(?:answer|correct|therefore|hence|thus|so)\b", before, re.IGNORECASE)
        others = [other for other in gold.letters if other != letter]
        described = [
            other for other in others if re.search(rf"(?:option|choice)\s+\(?{other}\b|\({other}\)", text)
        ]
        if not surely and described:
            continue  # the options are drawn, and all are described
        severity: Severity = "definite" if surely else "possible"
        findings.append(Finding("answer", severity, "letter", start, end, f"It points to option {letter}."))
    return findings


def _around(text: str, start: int, end: int) -> tuple[str, str]:
    """The rest of the sentence before and after, up to 120 and 60 characters."""
    before = text[max(0, start - 120) : start]
    after = text[end : end + 60]
    breaks = list(_BREAK.finditer(before))
    stop = _BREAK.search(after)
    return before[breaks[-1].end() if breaks else 0 :], after[: stop.start() if stop else len(after)]


def _options(question: str) -> dict[str, str]:
    """The options that a question lists, if they start with A and follow the alphabet."""
    marks = list(_OPTION_LINE.finditer(question))
    options: dict[str, str] = {}
    for mark, following in itertools.zip_longest(marks, marks[1:]):
        if mark.group(1) == "ABCDEFGHIJ"[len(options) : len(options) + 1]:
            options[mark.group(1)] = question[mark.end() : following.start() if following else None].strip(
                " ,;\n"
            )
    return options if len(options) >= 2 else {}


def _bare(letter: str, text: str) -> str:
    option = split_option(text)
    return option[1] if option is not None and option[0] == letter and option[1] else text


def _other_unit(text: str, value: Value, answer: str) -> bool:
    """Whether the number has a unit other than the answer's: 12 degrees are not 12 cm."""
    unit = _unit_of(answer)
    word = re.match(r"\s*(?:[A-Za-z]+|°)", text[value.end : value.end + 16])
    if not unit or word is None or not is_unit(word.group()):
        return False
    return compare(f"1 {word.group().strip()}", f"1 {unit}", 0.0) is not True


@functools.lru_cache(maxsize=4096)
def _unit_of(answer: str) -> str:
    number = gold_number(answer)
    bare = re.sub(r"^\s*[^\d=]{1,16}=\s*(?=[^=]+$)", "", tidy(answer))
    return "" if number is None else bare[number.end :].strip(" $)}")
