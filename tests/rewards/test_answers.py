from __future__ import annotations

import pytest

from vicur.rewards.answers import extract_answer, is_correct


@pytest.mark.parametrize(
    "response, answer",
    [
        ("I read red 3. The answer is 7.", "7"),
        ("<think>The answer is 3.</think> So \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("<answer> B </answer> \\boxed{3}", "B"),
        ("first 3, then 4.5", "4.5"),
        ("The answer is 1. Wait, the answer is: 12", "12"),
        ("\\boxed{unbalanced", None),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("<answer>\\boxed{3}</answer>", "3"),
        ("The answer is 7. Check: it is.", "7"),
        ("The answer is **7**.", "7"),
        ("The answer is 2.5 cm.", "2.5 cm"),
        ("no idea", None),
        ("", None),
    ],
)
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response, gold, right",
    [
        ("The answer is 7.", "7", True),
        ("The answer is 7.0", "7", True),
        ("The answer is 1,000", "1000", True),
        ("The answer is 17.", "7", False),
        ("\\boxed{$2\\sqrt{221}$}", "2 \\sqrt{221}", True),
        ("nothing", "7", False),
        ("The answer is 2.5 cm", "25 cm", False),
        ("The answer is 1.2\\pi", "12\\pi", False),
        ("The answer is 7.", None, None),
        ("The answer is 7.", " ", None),
    ],
)
def test_grading(response, gold, right):
    assert is_correct(response, gold) is right
