"""Numbers in a text, in every form that an answer may hide in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.audit.values import find_values

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spoken(number: int) -> str:
    if number >= 100:
        return f"{ONES[number // 100]} hundred" + (f" and {spoken(number % 100)}" if number % 100 else "")
    if number >= 20:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return ONES[number]


@pytest.mark.parametrize(
    "text, number",
    [
        ("labeled 12,", 12),
        ("it is 1,200 m", 1200),
        ("12cm", 12),
        ("2.50", 2.5),
        ("-3", -3),
        ("minus four", -4),
        ("9/2", 4.5),
        (r"\frac{9}{2}", 4.5),
        (r"\dfrac{ 18 }{ 2 }", 9),
        (r"\frac92", 4.5),
        ("18 over 2", 9),
        ("(18)/(2)", 9),
        ("four and a half", 4.5),
        ("nine halves", 4.5),
        ("three quarters", 0.75),
        ("a half", 0.5),
        ("4½", 4.5),
        ("4 1/2", 4.5),
        ("3 percent", 3),
        ("seven point two five", 7.25),
        (r"2\sqrt{3}", 2 * 3**0.5),
        ("3π", 3 * 3.141592653589793),
        ("one hundred and five", 105),
    ],
)
def test_one_number(text, number):
    values = find_values(text)
    assert [value.number for value in values] == pytest.approx([number])


@pytest.mark.parametrize("text", ["A1", "x2", "12x", "x^2", "B12b", "nobody", "tent"])
def test_no_number(text):
    assert not find_values(text)


@given(st.integers(0, 999))
def test_words_read_back(number):
    (value,) = find_values(f"It is {spoken(number)}.")
    assert value.number == number and value.in_words


@given(st.text(alphabet="0123456789/.,+-% \\frac{}sqrt()ninehalf½ pi", max_size=60))
def test_spans_are_in_the_text_and_in_order(text):
    end = 0
    for value in find_values(text):
        assert 0 <= value.start < value.end <= len(text)
        assert value.end > end
        end = value.end


@pytest.mark.parametrize(
    "said, gold, same",
    [
        ("0.33", "1/3", True),
        ("0.34", "1/3", False),
        ("3.46", r"2\sqrt{3}", True),
        ("4.0", "4", True),
        ("5", "4.6", False),  # nobody rounds without saying so
        ("30%", "0.3", True),
        ("18/2", "9", True),
        ("-9", "9", False),
    ],
)
def test_equal_forms(said, gold, same):
    (found,), (wanted,) = find_values(said), find_values(gold)
    assert found.equals(wanted, 1e-6) == same
