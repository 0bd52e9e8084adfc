"""The grader's verdict on a response, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from vicur.data.sample import Sample
from vicur.rewards.grader import Grader
from vicur.rollouts.grading import grade_response


@dataclass(frozen=True)
class Verdict:
    """The grade of one response, or why there is none.

    Attributes:
        correct: whether it counts as right; None where it cannot be graded.
        reward: the reward as a number.
        extracted: the answer that was found in the response; None if none was looked for or found.
        lacks_answer: whether it counts as wrong because no answer was found in it.
        kind: why it does not count towards the accuracy, as a category; None if it counts.
        excluded: the same reason with details of this problem.
    """

    correct: bool | None = None
    reward: float | None = None
    extracted: str | None = None
    lacks_answer: bool = False
    kind: str | None = None
    excluded: str | None = None

    @classmethod
    def unasked(cls, kind: str, reason: str) -> Verdict:
        """The verdict on a problem that the model was not asked."""
        return cls(kind=kind, excluded=f"{kind}: {reason}")


def verdict_of(grader: Grader, sample: Sample, response: str) -> Verdict:
    """Grade a response to a problem."""
    grade = grade_response(grader, sample, response)
    by_user = grader.config.function is not None
    if grade is not None:
        extracted = None if by_user else grade.extracted
        lacks_answer = extracted is None and not by_user
        return Verdict(grade.correct, grade.reward, extracted, lacks_answer=lacks_answer)
    kind = "rewards.function returned None" if by_user else grader.exclusion(sample.answer)
    assert kind is not None
    detail = "" if by_user or not sample.answer else f": {sample.answer.strip()[:80]}"
    return Verdict(kind=kind, excluded=f"{kind}{detail}")
