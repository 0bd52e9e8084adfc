from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.rewards.answers import extract_answer, unwrap_gold
from vicur.rewards.notation import closing_brace


@pytest.mark.parametrize(
    "response, answer",
    [
        ("I read red 3. The answer is 7.", "7"),
        ("<think>The answer is 3.</think> So \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("<reason>\\boxed{1}</reason> It is 2", "2"),
        ("<think>a</think> \\boxed{1} <think>b</think> \\boxed{2}", "2"),
        ("<think>\\boxed{3}</think>", None),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("<answer> B </answer> \\boxed{3}", "B"),
        ("<ANSWER>B</Answer>", "B"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> put it in <answer></answer>", "1"),
        ("<answer>\\boxed{3}</answer>", "3"),
        ("<answer>The answer is 3.</answer>", "3"),
        ("<answer>7 \\boxed{3}", "3"),
        ("first 3, then 4.5", "4.5"),
        ("The answer is 1. Wait, the answer is: 12", "12"),
        ("The answer is 7. Check: it is.", "7"),
        ("The answer is **7**.", "7"),
        ("The answer is 2.5 cm.", "2.5 cm"),
        ("**Final Answer:** $\\frac12$", "$\\frac12$"),
        ("Answer:\n7\nbye", "7"),
        ("The answer is B. 12 cm", "B"),
        ("The answer is 7 because 3 + 4 = 7", "7"),
        ("The answer isn't 5 but 6", "6"),
        ("\\boxed{unbalanced", None),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{1} then put it in \\boxed{}", "1"),
        ("\\boxed{area = \\boxed{5}}", "5"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),
        ("\\boxed{x} }}}", "x"),
        ("\\boxed {5}", "5"),
        ("\\boxed 5 it is", "5"),
        ("\\boxed{1}, no, \\boxed B", "B"),
        ("\\fbox{5}", "5"),
        ("\\\\boxed{5}", "5"),
        ("from 3 to 1/2", "1/2"),
        ("it is 12,345.5", "12,345.5"),
        ("7-4", "7-4"),
        ("it is -4", "-4"),
        ("I compared 3 and 4.\n**B**", "B"),
        ("I compared 3 and 4.\n(B) 12", "(B) 12"),
        ("With 3 sides, option C is right", "C"),
        ("A triangle", "A triangle"),
        ("left", "left"),
        ("I have no idea what this is about", None),
        ("", None),
    ],
)
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response", ["first 3, then 4.5", "(B)", "B"])
def test_strict_extraction_needs_a_marked_answer(response):
    assert extract_answer(response) is not None
    assert extract_answer(response, lenient=False) is None
    assert extract_answer(f"{response} \\boxed{{5}}", lenient=False) == "5"


PIECES = [
    *("<answer>", "</answer>", "\\boxed{", "\\boxed{}", "\\boxed ", "\\fbox", "{", "}", "\\", "\\{"),
    *("answer is", "answer:", " ", "\n", "1", "1,", "1,234", ".", "-", "/", "option ", "(B", "</think>"),
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("end", ["", "}" * 50_000, "</answer>"])
def test_a_long_hostile_response_is_read(piece, end):
    """Anything worse than linear would take minutes here."""
    extract_answer(piece * (100_000 // len(piece)) + end)


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join), st.booleans())
def test_extraction_never_raises(response, lenient):
    answer = extract_answer(response, lenient)
    assert answer is None or answer.strip()


@given(
    before=st.lists(st.sampled_from(["\\boxed{3}", "\\boxed{", "{", "}", "answer is 4. "]) | st.text()).map(
        "".join
    ),
    after=st.text(st.characters(exclude_characters="<\\{}")),
)
def test_a_final_box_decides_whatever_surrounds_it(before, after):
    assert extract_answer(before.replace("<", "") + "\\boxed{\\frac{1}{2}}" + after) == "\\frac{1}{2}"


@pytest.mark.parametrize(
    "text, gold",
    [
        ("\\boxed{5}", "5"),
        (" \\boxed {\\frac{1}{2}}\n", "\\frac{1}{2}"),
        ("<answer> B </answer>", " B "),
        ("\\boxed{5} or \\boxed{6}", "\\boxed{5} or \\boxed{6}"),
        ("\\boxed{a}{b}", "\\boxed{a}{b}"),
        ("\\boxed{5", "\\boxed{5"),
        ("<answer>1</answer> <answer>2</answer>", "<answer>1</answer> <answer>2</answer>"),
        ("</answer>1<answer>", "</answer>1<answer>"),
        (" 5 ", " 5 "),
        ("", ""),
    ],
)
def test_unwrapping_a_gold_answer(text, gold):
    assert unwrap_gold(text) == gold


def test_closing_brace():
    assert closing_brace("{a{b}\\}}c}", 0) == 7
    assert closing_brace("{a{b}", 0) is None
