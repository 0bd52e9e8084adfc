"""Options in columns of their own: every form, how they are written, and when they are not written again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.bad_rows import RowProblem
from vicur.data.choices import Choices, check_format, choice_columns, letter, option_lines, read_choices
from vicur.data.choices import states_options as states
from vicur.data.sources import DataConfig, FileSource
from vicur.data.tables import ListTable

COLOURS = ("dark red", "pale blue")
FORMS = [
    list(COLOURS),
    str(list(COLOURS)),
    json.dumps(COLOURS),
    "dark red\npale blue\n",
    "A. dark red\nB. pale blue",
    "(A) dark red (B) pale blue",
    ["A. dark red", "B) pale blue"],
    {"A": "dark red", "B": "pale blue", "C": None},
    {"B": "pale blue", "A": "dark red"},
    {"label": ["A", "B"], "text": list(COLOURS)},
    {"text": list(COLOURS)},
    [{"label": "B", "text": "pale blue"}, {"label": "A", "text": "dark red"}],
    [{"text": "dark red"}, {"text": "pale blue"}],
    [{"A": "dark red"}, {"B": "pale blue"}],
    json.dumps([{"key": "A", "value": "dark red"}, {"key": "B", "value": "pale blue"}]),
]


def source(tmp_path, *rows, **settings) -> FileSource:
    return FileSource(ListTable("a.json", (tmp_path,), rows), **settings)


def asked(sample) -> str:
    return "".join(part.get("text", f"<{part['type']}>") for part in sample.messages[-1]["content"])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form)[:40])
def test_every_form_reaches_student_and_grader(tmp_path, form):
    (sample,) = source(tmp_path, {"question": "Which?", "options": form, "answer": "B"})
    assert asked(sample) == "Which?\nA. dark red\nB. pale blue"
    assert sample.meta["choices"] == list(COLOURS) and sample.answer == "B"


@pytest.mark.parametrize(
    "names",
    [
        ("A", "B"),
        ("option_a", "option_b"),
        ("choice1", "choice2"),
        ("Option 1", "Option 2"),
        ("optA", "optB"),
    ],
)
def test_options_in_a_column_each(tmp_path, names):
    row = {"question": "Which?", "answer": 1, "a": "no option"} | dict(zip(names, COLOURS, strict=True))
    fewer = row | {names[1]: None}
    first, second = source(tmp_path, row, fewer)
    assert asked(first) == "Which?\nA. dark red\nB. pale blue" and first.meta["choices"] == list(COLOURS)
    assert first.meta["a"] == "no option" and names[0] not in first.meta and first.answer == "1"
    assert second.meta["choices"] == ["dark red"]


@pytest.mark.parametrize("value", [None, [], "[]", "", float("nan"), {}, [None, None]])
def test_no_options_are_none(tmp_path, value):
    (sample,) = source(tmp_path, {"question": "Why?", "choices": value})
    assert asked(sample) == "Why?" and "choices" not in sample.meta


def test_options_that_cannot_be_split_are_shown_as_they_are(tmp_path):
    (sample,) = source(tmp_path, {"question": "Why?", "choices": "dark or pale"})
    assert asked(sample) == "Why?\ndark or pale" and sample.meta == {"options": "dark or pale"}


@pytest.mark.parametrize("value", [[b"\x89PNG"], [["a"], ["b"]], {"a": ["x"], "b": ["y", "z"]}])
def test_options_that_are_no_texts_make_a_bad_row(value):
    with pytest.raises(RowProblem, match="option"):
        read_choices(value)


@pytest.mark.parametrize(
    "options, lines",
    [
        ("letters", "\nA. dark red\nB. pale blue"),
        ("({letter}) {text}", "\n(A) dark red\n(B) pale blue"),
        ("{number}) {text}", "\n1) dark red\n2) pale blue"),
        ("- {text}", "\n- dark red\n- pale blue"),
        (None, ""),
        ("off", ""),
    ],
)
def test_the_format_of_options_is_a_setting(tmp_path, options, lines):
    (sample,) = source(tmp_path, {"question": "Which?", "choices": list(COLOURS)}, options=options)
    assert asked(sample) == f"Which?{lines}" and sample.meta["choices"] == list(COLOURS)
    assert DataConfig(options=options).options == options


@pytest.mark.parametrize("options", ["{letter}.", "{x} {text}", "{text", "{} {text}"])
def test_invalid_formats(options):
    with pytest.raises(ValueError, match=r"data\.options"):
        DataConfig(options=options)
    with pytest.raises(ValueError, match=r"data\.options"):
        check_format(options)


STATED = [
    "Which? A. dark red B. pale blue",
    "Which?\n(A) dark red\n(B) pale  blue",
    "Which?\ndark red\npale blue",
    "Which one? Choices: dark red, pale blue",
    "Which?\n- dark red\n- pale blue",
    "1) Dark red 2) Pale blue",
]
NOT_STATED = [
    "Which?",
    "Is it dark red or pale blue?",
    "A pale blue bird and a dark red one: which sings?",
    "A. dark red is a colour. Which?",
    "A. dark reddish B. pale blueish",
    "Which of A and B?",
]


@pytest.mark.parametrize("question", STATED)
def test_a_question_that_lists_them_is_left_alone(tmp_path, question):
    (sample,) = source(tmp_path, {"question": question, "choices": list(COLOURS)})
    assert asked(sample) == question and sample.meta["choices"] == list(COLOURS)


@pytest.mark.parametrize("question", NOT_STATED)
def test_a_question_that_only_mentions_them_is_not(question):
    assert not states(question, COLOURS)


def test_options_that_are_only_letters_are_in_the_image():
    assert states("Which angle?", ["A", "B", "C"]) and not states("Which angle?", ["B", "A"])


def test_options_follow_the_last_question_of_a_chat_and_its_parts(tmp_path):
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": "It is B."},
    ]
    (sample,) = source(tmp_path, {"messages": chat, "choices": list(COLOURS)})
    assert asked(sample) == "Which?\nA. dark red\nB. pale blue"
    assert asked(type(sample)("x", sample.messages[:1])) == "Hello"


def test_gold_answers(tmp_path):
    """Indices stay as they are, stated labels become letters, several are one text."""
    rows = [
        {"question": "?", "choices": list(COLOURS), "answer": 1.0},
        {"question": "?", "choices": {"label": ["1", "2"], "text": list(COLOURS)}, "answer": "2"},
        {"question": "?", "choices": list(COLOURS), "answer": ["A", "B"]},
    ]
    assert source(tmp_path, *rows).column("answer") == ["1", "B", "A, B"]


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L"]), min_size=2), min_size=1, max_size=30))
def test_written_options_read_back(texts):
    """Lines of options in the default format are these options, and a question with them lists them."""
    lines = option_lines(texts, "{letter}. {text}")
    assert len(lines.splitlines()) == len(texts) and states(f"Which?\n{lines}", texts)
    if len(texts) > 1 and len(texts) <= 26:
        assert read_choices(lines) == Choices(tuple(texts), tuple(letter(i) for i in range(len(texts))))


def test_letters():
    assert [letter(i) for i in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        *("A", "B", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA")
    ]
    assert choice_columns(["A", "x", "B", "C"]) == ("A", "B", "C") and choice_columns(["B", "C"]) == ()
