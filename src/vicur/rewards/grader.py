"""Grades responses against gold answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from vicur.rewards.answers import extract_answer, unwrap_gold
from vicur.rewards.functions import load_function
from vicur.rewards.judge import Judge
from vicur.rewards.latex import LatexComparer
from vicur.rewards.notation import is_balanced
from vicur.settings.section import Count, NonNegative, Number, PathText, section


@section
class RewardConfig:
    """Settings for grading responses."""

    function: PathText | None = None
    """Your own reward function, `package.module:name` or `path/to/file.py:name`. It is called as
    `function(response, gold, meta)` and returns a bool, a number, or None for a response that cannot be
    graded. It replaces the built-in grader: of these settings only `correct_from` still applies."""
    tolerance: NonNegative = 1e-6
    """Relative tolerance: numbers are equal if they differ by at most this fraction of the gold answer."""
    lenient: bool = True
    """Whether to accept unmarked answers: if a response marks no answer, use the whole response if it is
    short, otherwise its option letter or its last formula."""
    time_limit: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Time limit in seconds for comparing two LaTeX answers. If it is exceeded, the response counts as
    wrong."""
    max_answer_length: Count = 512
    """Maximum length of an answer in characters. A longer answer counts as wrong, and a problem with a longer
    gold answer is not graded."""
    correct_from: Number = 1.0
    """A response counts as correct if its reward is at least this."""


@dataclass(frozen=True)
class Grade:
    """The grade of a response.

    Attributes:
        reward: 1 or 0, or the result of the user's function.
        correct: whether the response counts as correct.
        extracted: the answer in the response; None if there is none. Options are given by letter.
    """

    reward: float
    correct: bool
    extracted: str | None = field(default=None, compare=False)


class Grader:
    """Grades responses. The process that compares LaTeX starts when the first answer needs it.

    Args:
        config: settings for grading.

    Attributes:
        config: settings for grading.

    Raises:
        ValueError: the user's function cannot be loaded.
    """

    def __init__(self, config: RewardConfig | None = None) -> None:
        self.config = config or RewardConfig()
        self._function = None if self.config.function is None else load_function(self.config.function)
        self._latex = LatexComparer(self.config.tolerance, self.config.time_limit)
        self._judge = Judge(
            self._latex.equal, self.config.tolerance, self.config.lenient, self.config.max_answer_length
        )

    @property
    def timeouts(self) -> int:
        """Number of LaTeX comparisons that hit a limit so far; their responses counted as wrong."""
        return self._latex.timeouts

    def grade(
        self,
        response: str,
        gold: str | None,
        *,
        choices: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Grade | None:
        """Grade one response.

        Whether a gold answer can be graded against depends only on it, never on the response: if only
        lucky matches counted for an unreadable gold answer, they would raise the accuracy.

        Args:
            response: what the model wrote.
            gold: the gold answer; None is passed on to the user's function.
            choices: texts of the options A, B, ... of a multiple-choice question. The letter and the
                text of an option are then the same answer, and an integer that is not an option's text is the
                option's index, counted from 0.
            meta: the problem's other columns, for the user's function.

        Returns:
            the grade; None if the gold answer is excluded (see `exclusion`), or if the user's function
            returned None.

        Raises:
            ValueError: the user's function failed, or math-verify is needed and cannot start.
        """
        if self._function is not None:
            reward = self._function(response, gold, {} if meta is None else meta)
            if reward is None:
                return None
            extracted = extract_answer(response, self.config.lenient)
            return Grade(float(reward), reward >= self.config.correct_from, extracted)
        if self.exclusion(gold) is not None:
            return None
        assert gold is not None
        verdict = self._judge.judge(response, unwrap_gold(gold).strip(), choices)
        reward = float(verdict.correct)
        return Grade(reward, reward >= self.config.correct_from, verdict.extracted)

    def can_grade(self, gold: str | None) -> bool:
        """Whether responses can be graded against this gold answer."""
        return self.exclusion(gold) is None

    def exclusion(self, gold: str | None) -> str | None:
        """Why responses cannot be graded against a gold answer; None if they can.

        A gold answer that math-verify cannot parse is compared as text, not excluded.

        Args:
            gold: the gold answer.

        Returns:
            one of four reasons, so that they can be counted: "no gold answer", "empty gold answer", "gold
            answer of more than 512 characters" or "gold answer with unbalanced braces".
        """
        if gold is None:
            return "no gold answer"
        gold = unwrap_gold(gold).strip()
        if not gold:
            return "empty gold answer"
        if len(gold) > self.config.max_answer_length:
            return f"gold answer of more than {self.config.max_answer_length} characters"
        return None if is_balanced(gold) else "gold answer with unbalanced braces"

    def close(self) -> None:
        """End the worker, which otherwise ends with this object. Grading again starts another one."""
        self._latex.close()


def is_correct(response: str, gold: str | None) -> bool | None:
    """Whether a response states the gold answer, with default settings.

    Returns:
        None if the gold answer is missing or excluded (see `Grader.exclusion`).
    """
    grade = _default_grader().grade(response, gold)
    return None if grade is None else grade.correct


@functools.cache
def _default_grader() -> Grader:
    return Grader()
