"""Reads a response given its question, and compares it with the gold answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vicur.rewards.answers import (
    Response,
    fallback,
    first_line,
    is_program,
    is_refusal,
    last_line,
    read_response,
    stated,
)
from vicur.rewards.comparison import Maths, compare, is_words
from vicur.rewards.formulas import last_formula, only_formula
from vicur.rewards.notation import key, tidy, words_key
from vicur.rewards.options import Key, contained, mentioned, named, read_key, split_option
from vicur.rewards.structure import read_quantity, read_ratio

_LAST_SENTENCE = re.compile(r"[.!?。！？]\s+|\n")
_ENDED = re.compile(r"[.!?。！？)\]}$*]\s*$")
_LETTER_ALONE = re.compile(r"^[ \t]*[*(\[]*([A-J])[)\].*]*[ \t]*$", re.MULTILINE)
_ENDS_WITH_LETTER = re.compile(r"\b(?:is|be)\s+(?:letter\s+)?[*]*\(?([A-J])\)?[.\s*]*$")
_LONGEST_BARE = 200


@dataclass(frozen=True)
class Verdict:
    """Whether a response is correct, and the answer in it."""

    correct: bool
    extracted: str | None


class Judge:
    """Compares responses with gold answers.

    Args:
        maths: compares formulas.
        tolerance: largest difference of two numbers, relative to the gold answer.
        lenient: whether to read an answer if none is marked.
        max_length: maximum number of characters in an answer.
    """

    def __init__(self, maths: Maths, tolerance: float, lenient: bool, max_length: int) -> None:
        self.maths, self.tolerance, self.lenient, self.max_length = maths, tolerance, lenient, max_length

    def judge(self, response: str, gold: str, choices: Sequence[str] | None) -> Verdict:
        """Whether a response states the gold answer.

        Args:
            response: what the model wrote.
            gold: a gold answer that can be graded against, without a box or tags around it.
            choices: the texts of the options; None for an open question.
        """
        read = read_response(response)
        if not read.text:
            return Verdict(False, None)
        right = read_key(gold, choices, self.equal)
        if right is not None:
            return self._choice(read, right)
        return self._open(read, gold, choices)

    def equal(self, answer: str, gold: str) -> bool:
        """Whether two answers are equal; an answer that is too long equals nothing."""
        if max(len(answer), len(gold)) > self.max_length:
            return False
        return compare(answer, gold, self.tolerance, self.maths) is True

    def _choice(self, read: Response, right: Key) -> Verdict:
        places = self._named(read, right)
        text = ", ".join(
            right.options.letters[place] or right.options.texts[place] for place in sorted(places)
        )
        if not places:
            text = stated(read) or (fallback(read.text) if self.lenient else None) or ""
            return Verdict(False, text[: self.max_length] or None)
        return Verdict(places == right.right or self._same_text(places, right), text)

    def _same_text(self, places: frozenset[int], right: Key) -> bool:
        """Whether all named options have the right one's text: some questions list an option twice."""
        texts = {key(tidy(right.options.texts[place])) for place in places | right.right}
        return len(texts) == 1 and "" not in texts

    def _named(self, read: Response, right: Key) -> frozenset[int]:
        """The options that a response chooses."""
        places: frozenset[int] = frozenset()
        box: frozenset[int] = frozenset()
        for statement in read.statements:
            current = self._of(statement.text, right)
            if not current and (is_refusal(statement.text) or split_option(statement.text)):
                places = box = frozenset()
            if statement.kind == "box":
                box = current
            elif box and current and current != box:
                return box | current  # a box, then a different answer
            places = current or places
        boxed = any(statement.kind == "box" for statement in read.statements)
        if places or boxed or (read.statements and not self.lenient):
            return places  # the content of a box is the answer, even if it is not an option
        if read.tagged or self.lenient:
            return self._unmarked(read.text, right)
        return frozenset()

    def _of(self, text: str, right: Key) -> frozenset[int]:
        if len(text) > self.max_length:
            return frozenset()
        return named(text, right.options, lambda answer, option: self._is_option(answer, option, right))

    def _is_option(self, answer: str, option: str, right: Key) -> bool:
        """Whether an answer equals an option; a ratio may be a fraction if some option is a ratio."""
        if self.equal(answer, option):
            return True
        ratios = any(read_ratio(tidy(text)) for text in right.options.texts)
        parts = read_ratio(tidy(answer)) if ratios else None
        return (
            parts is not None
            and len(parts) == 2
            and self.equal(rf"\frac{{{parts[0]}}}{{{parts[1]}}}", option)
        )

    def _unmarked(self, text: str, right: Key) -> frozenset[int]:
        """The options named by a response that marks no answer: in its only sentence, in its first or last
        line, or in a complete last sentence.

        An option that is only mentioned along the way is not an answer, least of all in a truncated response.
        """
        sentences = [sentence for sentence in _LAST_SENTENCE.split(text) if sentence.strip()]
        lines = [line for line in dict.fromkeys((first_line(text), last_line(text))) if line]
        if len(text) <= _LONGEST_BARE and len(sentences) == 1 and (places := self._of(text, right)):
            return places
        places = frozenset()
        for line in lines:
            places |= self._of_line(line, right)
        if places:
            return places
        if alone := set(_LETTER_ALONE.findall(text)):
            return self._of(", ".join(sorted(alone)), right)
        sentence = sentences[-1]
        if is_refusal(text[-_LONGEST_BARE:]) or (len(sentences) > 1 and not _ENDED.search(text)):
            return frozenset()
        ends = _ENDS_WITH_LETTER.search(sentence)
        if ends and (places := self._of(ends[1], right)):
            return places
        if places := mentioned(sentence, right.options) or contained(sentence, right.options):
            return places
        formula = last_formula(text) if len(self._texts_in(sentence, right)) < 2 else None
        return self._of(formula[1], right) if formula and not is_program(text) else frozenset()

    def _texts_in(self, sentence: str, right: Key) -> list[str]:
        words = f" {' '.join(re.findall(r'[A-Za-z0-9]+', sentence.casefold()))} "
        texts = {" ".join(re.findall(r"[A-Za-z0-9]+", text.casefold())) for text in right.options.texts}
        return [text for text in texts if text and f" {text} " in words]

    def _of_line(self, line: str, right: Key) -> frozenset[int]:
        """The options that a line names, if it is an option or starts with one."""
        option = split_option(line)
        if option is not None and option[0] in right.options.letters:
            return self._of(line, right)
        begun = re.match(r"[*\"']*([A-Za-z]+)[*\"']*(?=[,.;:!]|\s*$)", line)
        if begun and words_key(begun[1]) in map(words_key, right.options.texts):
            return self._of(begun[1], right)
        return (
            self._of(line, right)
            if len(line) <= 40 and words_key(line) in map(words_key, right.options.texts)
            else frozenset()
        )

    def _open(self, read: Response, gold: str, choices: Sequence[str] | None) -> Verdict:
        answer = self._final(read, gold)
        if answer is None:
            return Verdict(False, None)
        if len(answer) > self.max_length:
            return Verdict(False, answer[: self.max_length])
        correct = self._answers(answer, gold, choices)
        if (
            not correct
            and self.lenient
            and not read.statements
            and len(read.text) <= _LONGEST_BARE
            and "\n" not in read.text
        ):
            return Verdict(self.equal(read.text, gold), answer)
        later = self._after_box(read, gold)
        if correct and later is not None and not self._answers(later, gold, choices):
            return Verdict(False, f"{answer}; {later}")  # a box, then a different answer
        return Verdict(correct, answer)

    def _answers(self, answer: str, gold: str, choices: Sequence[str] | None) -> bool:
        if self.equal(answer, gold):
            return True
        option = split_option(answer)
        if option is None:
            formula = only_formula(answer) if is_words(tidy(answer)) and read_quantity(tidy(gold)) else None
            return formula is not None and not is_refusal(answer) and self.equal(formula, gold)
        place = ord(option[0]) - ord("A")
        texts = [option[1], choices[place] if choices and place < len(choices) else ""]
        return any(self.equal(text, gold) for text in texts if text)

    def _final(self, read: Response, gold: str) -> str | None:
        """The last box, or the last phrase whose answer is of the gold answer's kind."""
        boxes = [statement.text for statement in read.statements if statement.kind == "box"]
        if boxes:
            return boxes[-1]
        phrases = [statement.text for statement in read.statements]
        fitting = [phrase for phrase in phrases if _fits(phrase, gold)]
        if fitting or phrases:
            return (fitting or phrases)[-1]
        if read.tagged:
            return read.text
        return fallback(read.text) if self.lenient else None

    def _after_box(self, read: Response, gold: str) -> str | None:
        """The text of a phrase after the last box, if it is an answer of the gold answer's kind."""
        later = None
        for statement in read.statements:
            later = None if statement.kind == "box" else statement.text
        boxed = any(statement.kind == "box" for statement in read.statements)
        if later is None or not boxed or "\\boxed" in later or not read_quantity(tidy(gold)):
            return None
        return later if read_quantity(tidy(later)) else None


def _fits(phrase: str, gold: str) -> bool:
    """Whether a phrase could state this gold answer: for a number, it must contain one."""
    if is_words(tidy(gold)):
        return True
    return re.search(r"[0-9\\$=]|\b[a-zA-Z]\b", phrase) is not None or read_quantity(tidy(phrase)) is not None
