"""Chats and placeholders in any convention."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.chat import RowMedia, place_media
from vicur.data.columns import Columns
from vicur.data.sources import FileSource
from vicur.data.tables import ListTable
from vicur.data.views import TeacherPrompt


def source(tmp_path, *rows, **settings) -> FileSource:
    return FileSource(ListTable("a.json", (tmp_path,), rows), **settings)


def turns_of(messages) -> list[tuple[str, str]]:
    return [(m["role"], "".join(p.get("text", f"<{p['type']}>") for p in m["content"])) for m in messages]


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, 0, 0))


def shades(sample) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in sample.images]


@pytest.mark.parametrize("form", ["<image {}>", "<image{}>", "<image_{}>", "<image-{}>"])
def test_numbered_placeholders_take_the_image_they_name(tmp_path, form):
    """In MMMU's columns, or a list; twice the same image is shown twice; no text mentions the third."""
    text = f"{form.format(2)} or {form.format(1)}?"
    numbered = {f"image_{i}": shade(10 * i) for i in (1, 2, 3)} | {"image_4": None}
    options = f"['{form.format(1)}', 'none']"
    (sample,) = source(tmp_path, {"question": text, "options": options} | numbered)
    assert turns_of(sample.messages) == [("user", "<image> or <image>?\nA. <image>\nB. none")]
    assert shades(sample) == [20, 10, 10] and sample.meta == {"choices": [form.format(1), "none"]}
    (sample,) = source(tmp_path, {"question": text, "images": [shade(10), shade(20)]})
    assert shades(sample) == [20, 10]


def test_numbers_may_begin_at_zero_and_columns_need_no_placeholder(tmp_path):
    (sample,) = source(tmp_path, {"question": "<image 1><image 0>", "images": [shade(1), shade(2)]})
    assert shades(sample) == [2, 1]
    (sample,) = source(tmp_path, {"question": "Why?", "image_2": shade(2), "image_1": shade(1)})
    assert turns_of(sample.messages) == [("user", "<image><image>Why?")] and shades(sample) == [1, 2]


@pytest.mark.parametrize(
    "text, message",
    [
        ("<image 3>?", r"have <image 3>, but the row has 2 image"),
        ("<image 1>?", "no placeholder names image 2"),
        ("<image 1> <image>?", "some image placeholders have a number and some have none"),
        ("<image 0> <image 2>?", "have <image 2>, but"),
    ],
)
def test_numbers_that_fit_no_image(text, message):
    row = {"question": text, "images": ["a", "b"]}
    with pytest.raises(RowProblem, match=message) as caught:
        Columns(("question", "images")).read(row)
    assert caught.value.kind == "placeholders"


@given(st.permutations(range(1, 5)), st.integers(1, 4))
def test_any_order_of_numbers(order, count):
    """The media come in the order of the text, whatever the order of the columns."""
    mentioned = [number for number in order if number <= count]
    chat = [{"role": "user", "content": "".join(f"<image {number}>x" for number in mentioned)}]
    row_images = RowMedia(tuple(f"i{n}" for n in range(1, count + 1)), tuple(range(1, count + 1)))
    _, images, _ = place_media(chat, row_images, RowMedia())
    assert images == [f"i{number}" for number in mentioned]


def test_a_teacher_is_shown_numbered_images_in_the_students_order(tmp_path):
    row = {"question": "<image 2><image 1>?", "images": [shade(1), shade(2)]}
    for prompt in ("<image 2><image 1>!", "<image><image>!"):
        (sample,) = source(tmp_path, row | {"teacher_prompt": prompt})
        assert turns_of(TeacherPrompt().show(sample).messages) == [("user", "<image><image>!")]
    with pytest.raises(ValueError, match="teacher_prompt shows the images in a different order"):
        source(tmp_path, row | {"teacher_prompt": "<image 1><image 2>!"})


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>How many?"},
    {"role": "assistant", "content": "Three."},
]


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(CHAT),
        str(CHAT),
        "[" + "\n ".join(map(str, CHAT)) + "]",  # as numpy prints an array of objects
        json.dumps({"role": [m["role"] for m in CHAT], "content": [m["content"] for m in CHAT]}),
    ],
    ids=["json", "python", "numpy", "lists"],
)
def test_chats_rewards_and_images_as_text(tmp_path, written):
    shade(9).save(tmp_path / "a.png")
    row = {
        "prompt": written,
        "images": "['a.png']",
        "reward_model": json.dumps({"style": "rule", "ground_truth": "3"}),
        "extra_info": "{'index': 5, 'split': 'train'}",
    }
    (sample,) = source(tmp_path, row)
    assert turns_of(sample.messages) == [("system", "Be brief."), ("user", "<image>How many?")]
    assert (sample.answer, sample.id, sample.target_response) == ("3", "5", "Three.")


@pytest.mark.parametrize("text", ["[1, 2] is a list?", "{x}", "[1, 2]", "[]", '{"a": 1}', '["role"]'])
def test_texts_that_only_look_like_it_stay_texts(tmp_path, text):
    (sample,) = source(tmp_path, {"question": text, "answer": text})
    assert turns_of(sample.messages) == [("user", text)] and sample.answer == text


def test_parts_as_json_text(tmp_path):
    parts = json.dumps([{"type": "image"}, {"type": "text", "text": "Why?"}])
    (sample,) = source(tmp_path, {"messages": [{"role": "user", "content": parts}], "image": shade(3)})
    assert turns_of(sample.messages) == [("user", "<image>Why?")]


def test_tool_calls_are_written_as_qwens_templates_write_them(tmp_path):
    call = {"type": "function", "function": {"name": "crop", "arguments": {"x": 1}}}
    chat = [
        {"role": "user", "content": "<image>Zoom."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "Again:", "tool_calls": [{"name": "look", "arguments": '{"y": 2}'}]},
        {"from": "observation", "value": "seen"},
        {"role": "assistant", "content": "3"},
    ]
    (sample,) = source(tmp_path, {"messages": chat, "images": [shade(1)]})
    assert turns_of(sample.messages) == [
        ("user", "<image>Zoom."),
        ("assistant", '<tool_call>\n{"name": "crop", "arguments": {"x": 1}}\n</tool_call>'),
        ("tool", "done"),
        ("assistant", 'Again:\n<tool_call>\n{"name": "look", "arguments": {"y": 2}}\n</tool_call>'),
        ("tool", "seen"),
    ]
    assert sample.target_response == "3"
    with pytest.raises(ValueError, match="tool_calls must be a list of objects"):
        source(tmp_path, {"messages": [{"role": "user", "content": "", "tool_calls": "x"}]})


def test_rows_with_other_keys_than_the_first(tmp_path):
    """`image` in some and `images` in others, another name for the question, an answer under another name."""
    rows = [
        {"problem": "A?", "image": shade(1), "answer": "1"},
        {"problem": "B?", "images": [shade(2)], "answer": "2"},
        {"question": "C?", "images": None, "image": [shade(3)], "solution": "3"},
        {"problem": "D?", "answer": None, "solution": "a long text"},
    ]
    result = source(tmp_path, *rows)
    assert [shades(sample) for sample in result] == [[1], [2], [3], []]
    assert result.column("question") == ["A?", "B?", "C?", "D?"]
    assert result.column("answer") == ["1", "2", "3", None]


def test_a_question_may_be_inside_its_image(tmp_path):
    rows = [{"question": text, "image": shade(1)} for text in ("", "<image>", None)]
    for sample in source(tmp_path, *rows):
        assert turns_of(sample.messages) == [("user", "<image>")]


def test_many_columns_are_named_in_part(tmp_path):
    with pytest.raises(ValueError, match=r"found c0, c1, .* and 280 more\. Name the column") as caught:
        source(tmp_path, {f"c{i}": 1 for i in range(300)})
    assert len(str(caught.value)) < 500


def test_pictures_are_taken_from_the_column_that_has_them(tmp_path):
    """A broken path next to the image itself, as in MathVista; a good path is used."""
    rows = [{"question": "?", "image": f"gone/{i}.jpg", "decoded_image": shade(i)} for i in range(3)]
    result = source(tmp_path, *rows)
    assert [shades(sample) for sample in result] == [[0], [1], [2]]
    assert result.notes == ["Images are read from decoded_image: those of image cannot be opened."]
    shade(7).save(tmp_path / "a.png")
    there = source(tmp_path, {"question": "?", "image": "a.png", "decoded_image": shade(1)})
    assert shades(there[0]) == [7] and there.notes == []
    with pytest.raises(ValueError, match="there is no file gone"):
        source(tmp_path, {"question": "?", "image": "gone.png", "other": "text"})


def test_media_that_no_problem_shows_are_reported(tmp_path):
    shown = source(tmp_path, {"question": "?", "image": shade(1), "thumbnail": shade(2)})
    assert shown.unused_media() is None and "1 of 1 problem of" in shown.media_in_words()
    hidden = source(tmp_path, {"question": "?", "picture_file": shade(1)}, {"question": "?"})
    assert "--column" not in hidden.unused_media()
    assert hidden.unused_media().endswith("Name it with data.columns.images=picture_file.")
    assert source(tmp_path, {"question": "?", "note": "a.b"}).unused_media() is None
