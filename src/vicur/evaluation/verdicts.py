"""What the grader says of a response, with the reason where it says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from vicur.data.sample import Sample
from vicur.rewards.answers import extract_answer
from vicur.rewards.grader import Grader


@dataclass(frozen=True)
class Verdict:
    """The grade of one response, or why there is none.

    Attributes:
        correct: whether it counts as right; None where it cannot be graded.
        reward: as a number.
        extracted: the answer that was found in the response; None if none was found, or where a function of
            the user's grades.
        lacks_answer: whether it counts as wrong because no answer was found in it.
        kind: why it is not part of the accuracy, in the words that are counted; None where it is.
        excluded: the same with details of this problem.
    """

    correct: bool | None = None
    reward: float | None = None
    extracted: str | None = None
    lacks_answer: bool = False
    kind: str | None = None
    excluded: str | None = None

    @classmethod
    def unasked(cls, kind: str, reason: str) -> Verdict:
        """Of a problem that the model was not asked."""
        return cls(kind=kind, excluded=f"{kind}: {reason}")


def verdict_of(grader: Grader, sample: Sample, response: str) -> Verdict:
    """Grade a response to a problem."""
    grade = grader.grade(response, sample.answer, choices=sample.meta.get("choices"), meta=sample.meta)
    if grader.config.function is not None:
        reason = None if grade else "rewards.function returned None"
        return Verdict(
            None if grade is None else grade.correct,
            None if grade is None else grade.reward,
            kind=reason,
            excluded=reason,
        )
    extracted = extract_answer(response, grader.config.lenient)
    if grade is None:
        kind, reason = _exclusion(grader, sample.answer)
        return Verdict(extracted=extracted, kind=kind, excluded=reason)
    return Verdict(grade.correct, grade.reward, extracted, lacks_answer=extracted is None)


def _exclusion(grader: Grader, gold: str | None) -> tuple[str, str]:
    """Why nothing can be graded against a gold answer, for counting and in detail."""
    if gold is None or not gold.strip():
        kind = "no gold answer"
        return kind, kind
    limit = grader.config.max_answer_length
    if len(gold) > limit:
        kind = "gold answer longer than rewards.max_answer_length"
        return kind, f"{kind} ({len(gold)} > {limit} characters)"
    kind = "gold answer that cannot be parsed"
    return kind, f"{kind}: {gold.strip()}"
