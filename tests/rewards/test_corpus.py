"""Answers in the style of many models: no wrong one is rewarded, and most right ones are."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from vicur.rewards.grader import Grader, RewardConfig

ROWS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()]
KINDS = sorted({row["kind"] for row in ROWS})
FLOOR = 0.9
"""The share of right answers of a kind that must be recognised; docs/grading.md has the present shares."""


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[tuple[dict[str, Any], bool]]]:
    grader = Grader(RewardConfig(time_limit=60.0))
    result = defaultdict(list)
    for row in ROWS:
        grade = grader.grade(row["response"], row["gold"], choices=row["choices"])
        assert grade is not None, f"gold answer {row['gold']!r} is excluded"
        result[row["kind"]].append((row, grade.correct))
    assert grader.timeouts == 0
    grader.close()
    return result


def test_the_corpus_is_large_and_balanced():
    right = sum(row["verdict"] for row in ROWS)
    assert len(ROWS) >= 300 and 0.45 <= right / len(ROWS) <= 0.55
    assert len({row["style"] for row in ROWS}) >= 6
    for kind in KINDS:
        of_kind = {row["verdict"] for row in ROWS if row["kind"] == kind}
        assert of_kind == {True, False}, kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_answer_is_rewarded(verdicts, kind):
    rewarded = [row for row, correct in verdicts[kind] if correct and not row["verdict"]]
    assert rewarded == []


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_are_recognised(verdicts, kind, capsys):
    right = [(row, correct) for row, correct in verdicts[kind] if row["verdict"]]
    missed = [row for row, correct in right if not correct]
    with capsys.disabled():
        print(f"\n{kind}: {len(right) - len(missed)} of {len(right)} recognised", end="")
    assert len(missed) <= (1 - FLOOR) * len(right), missed
