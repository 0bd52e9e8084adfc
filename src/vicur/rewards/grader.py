"""Grade responses against gold answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicur.paths import PathText
from vicur.rewards.answers import extract_answer, unwrap_gold
from vicur.rewards.comparison import compare, needs_maths, split_option, tidy
from vicur.rewards.functions import load_function
from vicur.rewards.latex import LatexComparer


@dataclass(frozen=True)
class RewardConfig:
    """How responses are graded."""

    function: PathText | None = None
    """A function of your own, `package.module:name` or `path/to/file.py:name`. It is called as
    `function(response, gold, meta)` and returns a bool, a number, or None for a response that cannot be
    graded. It replaces all of the comparison, so that only `correct_from` still counts."""
    tolerance: float = 1e-6
    """Numbers are equal if they differ by at most this, relative to the gold answer."""
    lenient: bool = True
    """Where a response marks no answer, take its last number or option letter for one."""
    time_limit: float = 5.0
    """Seconds for comparing two LaTeX answers; beyond it the response counts as wrong."""
    max_answer_length: int = 512
    """Characters. A longer answer counts as wrong; a longer gold answer cannot be graded against."""
    correct_from: float = 1.0
    """A response counts as correct if its reward is at least this."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be 0 or more, not {self.tolerance}.")
        if not 0 < self.time_limit < math.inf:
            raise ValueError(f"time_limit must be more than 0 seconds, not {self.time_limit}.")
        if self.max_answer_length < 1:
            raise ValueError(f"max_answer_length must be at least 1, not {self.max_answer_length}.")
        if not math.isfinite(self.correct_from):
            raise ValueError(f"correct_from must be a number, not {self.correct_from}.")


@dataclass(frozen=True)
class Grade:
    """What a response is worth.

    Attributes:
        reward: 1 or 0, or what the user's function says.
        correct: whether it counts as correct.
    """

    reward: float
    correct: bool


class Grader:
    """Grades responses. The process that compares LaTeX starts when an answer first needs it.

    Args:
        config: how to grade.

    Attributes:
        config: as given.

    Raises:
        ValueError: the user's function cannot be loaded.
    """

    def __init__(self, config: RewardConfig | None = None) -> None:
        self.config = config or RewardConfig()
        self._function = None if self.config.function is None else load_function(self.config.function)
        self._latex = LatexComparer(self.config.tolerance, self.config.time_limit)

    @property
    def timeouts(self) -> int:
        """LaTeX comparisons given up at a limit, so far; their responses counted as wrong."""
        return self._latex.timeouts

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker that compares LaTeX; None while there is none."""
        return self._latex.pid

    def grade(
        self,
        response: str,
        gold: str | None,
        *,
        choices: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Grade | None:
        """Grade one response.

        Whether a gold answer can be graded against depends on it alone, never on the response: if only
        lucky matches counted for an unreadable gold answer, they would raise the accuracy.

        Args:
            response: what the model wrote.
            gold: the answer to find. The user's function also gets None.
            choices: texts of the options A, B, ... of a multiple-choice question. The letter and the
                text of an option are then the same answer.
            meta: for the user's function.

        Returns:
            None where there is no gold answer or it cannot be parsed, or where the user's function
            returned None.

        Raises:
            ValueError: the user's function failed, or math-verify is needed and cannot start.
        """
        if self._function is not None:
            reward = self._function(response, gold, {} if meta is None else meta)
        else:
            reward = self._matches(response, gold, choices)
        return None if reward is None else Grade(float(reward), reward >= self.config.correct_from)

    def can_grade(self, gold: str | None) -> bool:
        """Whether a response could be right by this gold answer: it is there, not too long, and parses.

        Args:
            gold: the answer to find.

        Raises:
            ValueError: math-verify is needed and cannot start.
        """
        gold = unwrap_gold(gold or "").strip()
        if not gold or len(gold) > self.config.max_answer_length:
            return False
        return not needs_maths(gold) or self._latex.parses(tidy(gold))

    def close(self) -> None:
        """End the worker, which else ends with this object. A later question starts another."""
        self._latex.close()

    def _matches(self, response: str, gold: str | None, choices: Sequence[str] | None) -> bool | None:
        if not self.can_grade(gold):
            return None
        gold = unwrap_gold(gold or "").strip()
        found = extract_answer(response, self.config.lenient)
        if found is None or len(found) > self.config.max_answer_length:
            return False
        gold_option, found_option = split_option(gold), split_option(found)
        if gold_option is None:
            # "B. 12", or a B whose text is 12, for the gold answer 12
            texts = [found]
            if found_option is not None:
                texts += [found_option[1], _choice(choices, found_option[0])]
            return any(self._equal(text, gold) for text in texts if text)
        letter, text = gold_option
        if found_option is not None:
            return found_option[0] == letter
        texts = [text, _choice(choices, letter)]
        return bool(compare(found, letter, 0.0)) or any(self._equal(found, own) for own in texts if own)

    def _equal(self, found: str, gold: str) -> bool:
        equal = compare(found, gold, self.config.tolerance)
        return self._latex.equal(tidy(gold), tidy(found)) if equal is None else equal


def is_correct(response: str, gold: str | None) -> bool | None:
    """Whether a response states the gold answer, with default settings.

    Returns:
        None where there is no gold answer or it cannot be parsed.
    """
    grade = _default_grader().grade(response, gold)
    return None if grade is None else grade.correct


@functools.cache
def _default_grader() -> Grader:
    return Grader()


def _choice(choices: Sequence[str] | None, letter: str) -> str:
    """The text of an option without its own letter; "" where it is not known."""
    index = ord(letter) - ord("A")
    if choices is None or index >= len(choices):
        return ""
    option = split_option(choices[index])
    return option[1] if option is not None and option[0] == letter else choices[index]
