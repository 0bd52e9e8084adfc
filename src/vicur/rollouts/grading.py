"""Grades rollouts."""

from __future__ import annotations

from vicur.data.sample import Sample
from vicur.rewards.grader import Grade, Grader
from vicur.rollouts.rollout import Rollouts


def grade(rollouts: Rollouts, grader: Grader) -> tuple[Grade | None, ...]:
    """The grade of every response, in the flat order; None if its problem cannot be graded."""
    return tuple(
        grade_response(grader, sample, text)
        for sample, texts in zip(rollouts.samples, rollouts.texts, strict=True)
        for text in texts
    )


def grade_response(grader: Grader, sample: Sample, text: str) -> Grade | None:
    """The grade of one response; None if the problem cannot be graded."""
    return grader.grade(text, sample.answer, choices=sample.meta.get("choices"), meta=sample.meta)
