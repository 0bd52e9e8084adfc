"""Answers and steps of a solution in cues: what is a leak, how sure, and where it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.audit import CueRow, audit_cues, default_givens
from vicur.audit.givens import listed_givens
from vicur.audit.reasoning import reasoning_findings
from vicur.data.sample import Sample

QUESTION = "What is the sum of cyan and pink?"


def flags(text, answer="9", question=QUESTION, givens=default_givens, **options):
    row = CueRow("a", text, question, answer, **options)
    return [flag for flag in audit_cues([row], givens=givens).flags if flag.category == "answer"]


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 9.",
        "The segments are cyan 4 and pink 5, so x = 9.",
        "The sum is nine.",
        "Cyan 4 and pink 5 make 9.",
        "Together that gives 9.0.",
        r"It equals $\frac{18}{2}$.",
        "That comes to 18/2 in total.",
        "9 is the answer.",
        "4 + 5 = 9",
        "Therefore the two have 9.",
    ],
)
def test_certain(text):
    (flag,) = flags(text)
    assert flag.severity == "definite"
    assert text[flag.start : flag.end] == flag.excerpt != ""


@pytest.mark.parametrize("text", ["A side is labeled 9.", "The segments are cyan 9 and pink 5."])
def test_a_label_is_a_possible_leak_until_it_is_known(text):
    assert [flag.severity for flag in flags(text)] == ["possible"]
    assert flags(text, givens=lambda row, value: True) == []
    assert [flag.severity for flag in flags(text, givens=lambda row, value: False)] == ["definite"]


def test_a_given_is_still_a_leak_where_it_is_called_the_answer():
    (flag,) = flags(
        "The segments are cyan 9 and pink 5, so the maximum is 9.", givens=lambda row, value: True
    )
    assert flag.start == 54 and flag.severity == "definite"


def test_what_is_drawn_once_is_read_out_once():
    text = "The cyan segment shows 9. The pink segment shows 5 and near it 9."
    assert len(flags(text, givens=lambda row, value: 1)) == 1
    assert flags(text, givens=lambda row, value: 2) == []


def test_the_question_gives_what_it_states_but_not_its_options():
    assert flags("The base is labeled 9.", question="The base is 9. Find x.") == []
    assert flags("The base is labeled 9.", question="Find x. A. 8 B. 9 C. 10") != []


def test_counts_are_no_labels():
    assert flags("Two chords cross.", answer="2", question="Find x.") == []
    assert flags("One chord meets the other one.", answer="1", question="Find x.") == []
    assert flags("There are two chords.", answer="2", question="How many chords are there?") != []


def test_another_unit_is_another_quantity():
    assert flags("The angle is labeled 12 degrees.", answer="12 cm") == []
    assert flags("The side is labeled 12 cm.", answer="12 cm") != []


def test_a_named_length_is_a_label_unless_it_is_asked_for():
    asked = {"answer": "12", "question": "Find AB."}
    assert [flag.severity for flag in flags("AB = 12.", **asked)] == ["definite"]
    assert [flag.severity for flag in flags("CD = 12.", **asked)] == ["possible"]


def test_options_by_letter_and_text():
    question = "Find x. A. 8 B. 9 C. 10"
    assert [flag.rule for flag in flags("The correct option is B.", answer="B", question=question)] == [
        "letter"
    ]
    assert [flag.rule for flag in flags("So x is 9.", answer="B", question=question)] == ["stated"]
    assert [flag.rule for flag in flags("Choice B it is.", answer="9", question=question)] == ["letter"]
    assert flags("Point B lies on the line.", answer="B", question=question) == []
    assert flags("Options (A), (B) and (C) are drawn.", answer="B", question=question) == []
    assert flags("So x is 9.", answer="B", question="Find x.", choices=("8", "9")) != []


def test_words_and_expressions():
    assert flags("The answer is yes.", answer="yes") != []
    assert flags("Yes, there are two lines.", answer="yes") == []
    assert flags("The result is $2x + 3$.", answer="2x+3")[0].severity == "definite"


@given(answer=st.integers(20, 400), others=st.lists(st.integers(401, 900), max_size=3))
def test_no_answer_no_leak(answer, others):
    text = "The sides are labeled " + ", ".join(map(str, others)) + "."
    assert flags(text, answer=str(answer)) == []
    assert flags(f"{text} So x = {answer}.", answer=str(answer))[0].severity == "definite"


@given(st.text(max_size=80), st.text(max_size=12), st.text(max_size=40))
def test_any_text_is_audited(text, answer, question):
    report = audit_cues([CueRow("a", text, question, answer)])
    for flag in report.flags:
        assert text[flag.start : flag.end] == flag.excerpt


@pytest.mark.parametrize(
    "text, rule",
    [
        ("By the Pythagorean theorem this fits.", "theorem"),
        ("The law of cosines applies.", "theorem"),
        ("a^2 + b^2 = c^2", "equation"),
        ("x * 8 = 24", "equation"),
        ("They are 4 + 5.", "arithmetic"),
        ("Four plus five.", "arithmetic"),
        ("Therefore the sides match.", "derivation"),
        ("Solving for x is next.", "derivation"),
        ("Multiply the two pieces.", "derivation"),
    ],
)
def test_steps(text, rule):
    found = reasoning_findings(text, "Find x.")
    assert rule in {one.rule for one in found}
    assert {one.severity for one in found} == {"definite"}


@pytest.mark.parametrize(
    "text",
    [
        "The chord is divided into pieces labeled x and 8.",
        "AB = 12 and the angle is 30 degrees.",
        "One angle is labeled (3x + 7) degrees.",
        "The bar for 2019-2020 is red.",
        "A ruler lies on the table.",
        "Two chords cross, and the first has the pieces 4 and 6.",
    ],
)
def test_descriptions_are_no_steps(text):
    assert reasoning_findings(text, "Find x.") == []


def test_what_is_drawn_or_asked_is_no_certain_step():
    assert reasoning_findings("The line y = 2x + 1 is red.", "Where does y = 2x + 1 cross the axis?") == []
    (finding,) = reasoning_findings("A line labeled y = 2x + 1.", "Find the slope.")
    assert finding.severity == "possible"


@pytest.mark.parametrize("listed", ["[" * 200_000, "[9", '["4"]'])
def test_a_list_of_givens_that_cannot_be_read_is_none(listed):
    """And a list as JSON is one."""
    sample = Sample("a", (), meta={"givens": listed})
    row = CueRow("a", "", QUESTION, "9", outline=lambda: sample)
    assert listed_givens(row, "4") == (1 if listed == '["4"]' else None)
