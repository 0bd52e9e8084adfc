from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vicur.rewards.comparison import compare, is_words
from vicur.rewards.notation import tidy
from vicur.rewards.options import split_option

TOLERANCE = 1e-6


@pytest.mark.parametrize(
    "candidate, gold, equal",
    [
        # by value
        ("7.0", "7", True),
        ("17", "7", False),
        (".5", "0.5", True),
        ("1,000", "1000", True),
        ("1{,}000", "1000", True),
        ("1\\,000", "1000", True),
        ("\u22125", "-5", True),
        ("5", "-5", False),
        ("0.5", "1/2", True),
        ("\\frac{1}{2}", "1/2", True),
        ("\\dfrac12", "0.5", True),
        ("-\\frac{1}{2}", "-0.5", True),
        ("3 1/2", "3.5", True),
        ("3 1/2", "31/2", False),
        ("6.63\\times 10^{-34}", "6.63e-34", True),
        ("0", "6.63e-34", False),
        ("$12$", "12.", True),
        ("\\text{12}", "12", True),
        ("seven", "7", True),
        ("no idea", "7", False),
        # with a label before the value
        ("x = 12", "12", True),
        ("12", "x=12", True),
        ("y = 12", "x=12", False),
        ("m\\angle ABC = 45^\\circ", "45", True),
        ("3 + 4 = 7", "7", True),
        ("2x = 8", "8", False),
        ("\\$12", "12", True),
        # units
        ("12 cm", "12", True),
        ("12cm", "12", True),
        ("12", "12 cm", True),
        ("12\\text{ centimetres}", "12\\,\\mathrm{cm}", True),
        ("12 m", "12 cm", False),
        ("2.5 cm", "25 cm", False),
        ("24 square cm", "24 \\text{ cm}^2", True),
        ("24 cm", "24 cm^2", False),
        ("24 square units", "24", True),
        ("5 m/s", "5 \\text{m}/\\text{s}", True),
        ("5 km/h", "5 m/s", False),
        ("45^\\circ", "45", True),
        ("45\u00b0", "45^{\\circ}", True),
        ("45 degrees", "45\u00b0", True),
        ("12 apples", "12", True),
        ("12 apples", "12 pears", False),
        ("3 pm", "3 am", False),
        ("30%", "30", True),
        ("30\\%", "0.3", True),
        ("0.3", "30%", True),
        ("40%", "0.3", False),
        ("30%", "30 cm", False),
        # what only looks like the same number
        ("12x", "12", False),
        ("12 x", "12", False),
        ("12 and 13", "12", False),
        ("12 million", "12", False),
        ("12, 13", "12", False),
        ("7 red 8", "7", False),
        ("max 3 7 =", "7", False),
        ("3:4", "0.75", False),
        ("0.75", "3:4", False),
        ("6:8", "3:4", True),
        ("4:3", "3:4", False),
        ("1:15", "2:30", False),
        # words
        ("YES", "Yes", True),
        ("No", "Yes", False),
        ("silent", "listen", False),
        ("red", "\\text{Red}", True),
        ("on", "no", False),
        # several letters
        ("C and A", "A, C", True),
        ("A, C", "AC", True),
        ("A", "A, C", False),
        ("AD", "A, C", False),
        # maths
        ("2\\sqrt{221}", "2 \\sqrt { 221 }", True),
        ("\\sqrt{2}", "1.5", None),
        ("4^2", "16", None),
        ("12m", "12", False),
        ("12", "12x", None),
        ("\\sqrt{12}", "2\\sqrt{3}", None),
        ("[1,2)", "(1,2)", False),
    ],
)
def test_comparison(candidate, gold, equal):
    assert compare(candidate, gold, TOLERANCE) is equal


def test_tolerance_is_relative_to_the_gold_answer():
    # 0.05 of 200 is 10
    assert compare("210", "200", 0.05)
    assert not compare("211", "200", 0.05)
    assert compare("0.0105", "0.01", 0.05 + 1e-9)
    assert not compare("0.0106", "0.01", 0.05)
    assert not compare("3.00001", "3", TOLERANCE)
    assert compare("3.000001", "3", TOLERANCE)


def written(value: int) -> list[str]:
    """An integer as models and data sets write it."""
    plain, commas = str(value), f"{value:,}"
    forms = [
        plain,
        commas,
        commas.replace(",", "{,}"),
        commas.replace(",", "\\,"),
        f"+{plain}".replace("+-", "-"),
    ]
    forms += [f"{plain}.0", f"{plain}/1", f"\\frac{{{plain}}}{{1}}", f"{plain}e0", f"x = {plain}"]
    dressed = [f"${plain}$", f"\\({plain}\\)", f"**{plain}**", f"\\text{{{plain}}}", f" {{{plain}}}. "]
    return forms + dressed + [f"{plain} cm", f"{plain}^\\circ", f"{plain}\\%"]


@given(st.integers(-(10**12), 10**12), st.data())
def test_a_number_equals_itself_however_it_is_written(value, data):
    candidate, gold = (data.draw(st.sampled_from(written(value))) for _ in range(2))
    units = [{unit for unit in ("cm", "circ", "%") if unit in text} for text in (candidate, gold)]
    assume(not all(units) or units[0] == units[1])
    assert compare(candidate, gold, 0.0) is True


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.data())
def test_different_numbers_differ_however_they_are_written(one, other, data):
    candidate, gold = (data.draw(st.sampled_from(written(value))) for value in (one, other))
    assume(one != other and "%" not in candidate + gold)
    assert compare(candidate, gold, TOLERANCE) is False


@given(st.text(), st.text())
@example("", "°0")
def test_comparing_any_text_raises_nothing(candidate, gold):
    compare(candidate, gold, TOLERANCE)
    is_words(gold)
    split_option(candidate)
    assert compare(gold, gold, TOLERANCE) is True
    assert tidy(tidy(gold)) == tidy(gold)


@pytest.mark.parametrize(
    "text, option",
    [
        ("B", ("B", "")),
        ("(B)", ("B", "")),
        ("(b)", ("B", "")),
        ("B.", ("B", "")),
        ("[B]", ("B", "")),
        ("B. 12", ("B", "12")),
        ("(B) 12 cm", ("B", "12 cm")),
        ("(B)12", ("B", "12")),
        ("\\text{B}", ("B", "")),
        ("\\textbf{(B)}\\ 12", ("B", "12")),
        ("$\\mathrm{B}$", ("B", "")),
        ("**B**", ("B", "")),
        ("**B**: 12", ("B", "12")),
        ("option B", ("B", "")),
        ("Option (B)", ("B", "")),
        ("the correct option is", None),
        ("Be", None),
        ("B = 12", None),
        ("A triangle", None),
        ("BD", None),
        ("x", None),
        ("(A, B)", None),
        ("12", None),
    ],
)
def test_options(text, option):
    assert split_option(text) == option


@pytest.mark.parametrize(
    "candidate",
    ["red", "7 red 8", "3 4", "max 3", ". , .", "= = 3", "+", "3 +", "1,2", "I read red 3", "-", "is 4 is"],
)
def test_garbage_is_settled_without_maths(candidate):
    """Texts of untrained models for a gold answer that is a number."""
    assert compare(candidate, "7", TOLERANCE) is False
