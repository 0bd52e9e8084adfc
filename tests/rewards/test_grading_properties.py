"""The wrapping of an answer, the notation of a number and the order of options change no verdict."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vicur.rewards.comparison import compare
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rewards.units import read_unit

WRAPPINGS = [
    "{}",
    "\\boxed{{{}}}",
    "The answer is {}.",
    "<answer>{}</answer>",
    "<think>It may be 99, or (J).</think>\n\n**Final answer:** {}",
    "**Answer:** {}\n\nThis follows from the figure.",
    "So we add them up.\n\nAnswer: {}<|im_end|>",
    "<|begin_of_box|>{}<|end_of_box|>",
    "Therefore, the correct answer is {}",
    "\u7b54\u6848\uff1a{}\u3002",
]
FRUIT = ["apple", "pear", "plum", "fig", "quince"]


@pytest.fixture(scope="module")
def grader():
    grader = Grader(RewardConfig(time_limit=60.0))
    yield grader
    grader.close()


def graded(grader: Grader, response: str, gold: str, choices: list[str] | None = None) -> bool:
    grade = grader.grade(response, gold, choices=choices)
    assert grade is not None
    return grade.correct


@given(
    st.integers(-999, 999),
    st.integers(-999, 999),
    st.sampled_from(WRAPPINGS),
    st.sampled_from(["", "^\\circ", " cm"]),
)
def test_the_wrapping_of_a_number_changes_no_verdict(grader, candidate, gold, wrapping, unit):
    assert graded(grader, wrapping.format(f"{candidate}{unit}"), f"{gold}{unit}") is (candidate == gold)


@given(
    st.permutations(FRUIT),
    st.sampled_from(FRUIT),
    st.sampled_from(FRUIT),
    st.sampled_from(WRAPPINGS),
    st.data(),
)
def test_options_may_come_in_any_order(grader, choices, candidate, gold, wrapping, data):
    letter, right = "ABCDE"[choices.index(candidate)], "ABCDE"[choices.index(gold)]
    said = data.draw(
        st.sampled_from(
            [letter, f"({letter})", f"{letter}. {candidate}", f"({letter}) {candidate}", candidate]
        )
    )
    key = data.draw(st.sampled_from([right, gold, str(choices.index(gold))]))
    assert graded(grader, wrapping.format(said), key, list(choices)) is (candidate == gold)


@given(
    st.sets(st.sampled_from("ABCDE"), min_size=2), st.sampled_from("ABCDE"), st.sampled_from(WRAPPINGS[1:])
)
def test_naming_several_options_never_wins(grader, letters, gold, wrapping):
    listed = ", ".join(f"({letter})" for letter in sorted(letters))
    assert not graded(grader, wrapping.format(listed), gold, FRUIT)
    assert not graded(grader, wrapping.format(listed), gold)


@given(st.sampled_from("ABCDE"), st.sampled_from(FRUIT))
def test_a_letter_with_the_text_of_another_option_never_wins(grader, letter, text):
    place = FRUIT.index(text)
    right = graded(grader, f"The answer is {letter} ({text}).", letter, FRUIT)
    assert right is ("ABCDE"[place] == letter)


def notations(value: Fraction) -> list[str]:
    """A fraction as models write it."""
    upper, lower = value.numerator, value.denominator
    sign, size = ("-" if upper < 0 else ""), abs(upper)
    forms = [
        f"{upper}/{lower}",
        f"{sign}\\frac{{{size}}}{{{lower}}}",
        f"\\frac{{{upper}}}{{{lower}}}",
        f"x = {upper}/{lower}",
    ]
    whole, rest = divmod(size, lower)
    if whole and rest:
        forms += [f"{sign}{whole} {rest}/{lower}", f"{sign}{whole}\\frac{{{rest}}}{{{lower}}}"]
    if lower in (1, 2, 4, 5, 8, 10):
        forms += [str(upper / lower), f"{upper / lower}\\text{{ cm}}", f"about {upper / lower}"]
    return forms


fractions = st.fractions(-50, 50, max_denominator=10)


@given(fractions, st.data())
def test_equal_fractions_are_equal_in_any_notation(value, data):
    candidate, gold = (data.draw(st.sampled_from(notations(value))) for _ in range(2))
    assert compare(candidate, gold, 1e-9) is True


@given(fractions, fractions, st.data())
def test_different_fractions_differ_in_any_notation(one, other, data):
    assume(one != other)
    candidate, gold = (data.draw(st.sampled_from(notations(value))) for value in (one, other))
    assert compare(candidate, gold, 1e-9) is False


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_powers_of_ten_do_not_underflow(one, other):
    assert compare(f"10^{{-{one}}}", f"10^{{-{other}}}", 1e-6) is (one == other)
    assert compare(f"3e-{one}", f"3 \\times 10^{{-{other}}}", 1e-6) is (one == other)


@given(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(2, 99))
def test_a_letter_directly_after_a_number_is_not_a_unit(letter, value):
    assert read_unit(letter) is None
    # Where the letter is a number, as e, only maths can tell; without it there is no verdict.
    assert compare(f"{value}{letter}", str(value), 1e-6) is not True
    assert compare(str(value), f"{value}{letter}", 1e-6) is not True


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_sets_have_no_order_and_points_have(values, random):
    other = list(values)
    random.shuffle(other)
    assert (
        compare(rf"\{{{', '.join(map(str, other))}\}}", rf"\{{{', '.join(map(str, values))}\}}", 1e-6) is True
    )
    assert compare(f"({', '.join(map(str, other))})", f"({', '.join(map(str, values))})", 1e-6) is (
        other == values
    )


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 9))
def test_ratios_are_proportions(one, other, factor):
    if other < 10:  # 1:10 and 2:20 may be times of day, which are compared as they are
        assert compare(f"{one * factor}:{other * factor}", f"{one}:{other}", 1e-6) is True
    assert compare(rf"\frac{{{one}}}{{{other}}}", f"{one}:{other}", 1e-6) is True
    assert compare(f"{one}:{other}", rf"\frac{{{one}}}{{{other}}}", 1e-6) is False


@pytest.mark.parametrize(
    "candidate, gold, equal",
    [
        ("1.2 m", "120 cm", True),
        ("1.2 m", "12 cm", False),
        ("3 km/h", "3 kilometres per hour", True),
        ("30 degrees", "30%", False),
        ("5 \\text{ kg}", "5 m", False),
        ("2 hours", "120 min", True),
        ("20 \u00b0C", "20 \u00b0F", False),
        ("7 dollars", "7 euros", False),
        ("150 cents", "$1.50", True),
    ],
)
def test_units_are_converted(candidate, gold, equal):
    assert compare(candidate, gold, 1e-9) is equal
