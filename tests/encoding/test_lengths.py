"""Prompt lengths without pixels: equal to those of the tensors; overlong prompts are dropped or rejected."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.tables import ListTable
from vicur.data.views import Plain, Shown, teacher_view
from vicur.encoding.lengths import PromptMeter, Reader, fit_prompts, prompt_length, visual_tokens
from vicur.encoding.prompts import PromptEncoder
from vicur.media.images import SizeOnly
from vicur.media.pixels import PixelLimits
from vicur.media.video import Video

sides = st.integers(1, 200)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 200 * min(size))
words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)
videos = st.tuples(st.integers(1, 9), sizes, st.floats(0.2, 9.0))
bounds = st.one_of(st.none(), st.integers(500, 30_000))


def encoder(base, limits=None) -> PromptEncoder:
    return PromptEncoder(base.processor, base.model.model.get_rope_index, limits)


@given(st.lists(st.one_of(sizes, videos, words), max_size=5), words, bounds, bounds)
def test_lengths_are_those_of_the_tensors(shared_student, parts, system, image_bound, frame_bound):
    """Text, images and videos in any order and number, under limits; only sizes are read."""
    content, images, films = [], [], []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif len(part) == 2:
            content.append({"type": "image"})
            images.append(part)
        else:
            content.append({"type": "video"})
            films.append(part)
    messages = (
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    )

    def shown(make) -> Shown:
        made = tuple(Video((make(size),) * count, rate) for count, size, rate in films)
        return Shown(messages, tuple(make(size) for size in images), made)

    own = encoder(shared_student, PixelLimits(max_pixels=image_bound, max_frame_pixels=frame_bound))
    (prompt,) = own.encode([shown(lambda size: Image.new("RGB", size))])
    assert prompt_length(own, shown(SizeOnly)) == len(prompt)


def png(size) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(data, format="PNG")
    return data.getvalue()


@pytest.fixture
def table(tmp_path) -> ListTable:
    """Images of 4, 16 and 64 tokens; the second problem has a long cue, the third none."""
    rows = [
        {"id": str(i), "problem": "<image>Why?", "images": [png((side, side))], "cue": cue}
        for i, (side, cue) in enumerate([(32, "x"), (64, "x is 7 " * 30), (128, None)])
    ]
    return ListTable("a.json", (tmp_path,), rows)


def lengths(own, table, view) -> list[int]:
    return [len(prompt) for prompt in own.encode([view.show(sample) for sample in FileSource(table)])]


def fitting(table, own, student=None, teacher=None, overlong="drop", **options):
    """The problems whose prompts fit limits, and what was dropped; the teacher is shown the cue."""
    readers = [Reader("student", Plain(), own, student), Reader("teacher", teacher_view("cue"), own, teacher)]
    meter = PromptMeter(readers)
    return fit_prompts(FileSource(table, observe=meter, **options), meter, overlong)


def ids(source) -> list[str]:
    return [sample.id for sample in source]


def test_prompts_over_a_limit_are_found(base, table):
    own = encoder(base)
    plain, hinted = lengths(own, table, Plain()), lengths(own, table, teacher_view("cue"))
    assert plain[1] - plain[0] == 12 and plain[2] - plain[0] == 60 and hinted[2] == plain[2]
    fitted, overlong = fitting(table, own, student=plain[1])
    assert ids(fitted) == ["0", "1"]
    assert [(o.row, o.id, o.role, o.tokens) for o in overlong] == [(2, "2", "student", plain[2])]
    fitted, overlong = fitting(table, own, student=plain[2], teacher=hinted[1] - 1)
    assert ids(fitted) == ["0", "2"] and [(o.row, o.role) for o in overlong] == [(1, "teacher")]
    assert ids(fitting(table, own)[0]) == ["0", "1", "2"]
    smaller = encoder(base, PixelLimits(max_pixels=32 * 32))
    assert ids(fitting(table, smaller, student=plain[0])[0]) == ["0", "1", "2"]


def test_what_becomes_of_long_prompts(base, table):
    own = encoder(base)
    plain = lengths(own, table, Plain())
    message = (
        rf"a\.json, row 1 \(1\): the student's prompt has {plain[1]} tokens, more than {plain[0]}, and 1 more"
    )
    with pytest.raises(ValueError, match=message):
        fitting(table, own, student=plain[0], overlong="error")
    with pytest.raises(ValueError, match=r"every prompt is too long, the first: row 0"):
        fitting(table, own, student=1)


def test_sizes_are_those_of_every_reader(base, table):
    own = encoder(base)
    meter = PromptMeter([Reader("student", Plain(), own), Reader("teacher", teacher_view("cue"), own)])
    source = FileSource(table, observe=meter)
    measured = meter.measured_of(source)
    assert [problem.id for problem in measured] == ["0", "1", "2"]
    for role, view in (("student", Plain()), ("teacher", teacher_view("cue"))):
        sizes = [problem.sizes[role] for problem in measured]
        assert [size.tokens for size in sizes] == lengths(own, table, view)
        assert [size.visual_tokens for size in sizes] == [4, 16, 64]
        assert [size.visual_tokens for size in sizes] == [
            visual_tokens(own, view.show(sample)) for sample in source
        ]
        assert [size.raw_pixels for size in sizes] == [32 * 32, 64 * 64, 128 * 128]


@given(st.integers(1, 200), st.integers(1, 20))
def test_without_a_limit_some_problems_at_even_distances_are_measured(shared_student, count, sampled):
    meter = PromptMeter([Reader("student", Plain(), encoder(shared_student))], sampled)
    meter._measure = lambda outline: outline  # type: ignore[method-assign]  # only which ones matters here
    for row in range(count):
        meter(row, Sample(str(row), ()))
    rows = list(meter.measured)
    assert min(count, sampled) <= len(rows) <= 2 * sampled
    assert rows == list(range(0, count, rows[1] - rows[0] if len(rows) > 1 else count))


def test_under_a_limit_every_problem_is_measured(base, table):
    meter = PromptMeter([Reader("student", Plain(), encoder(base), 5000)], sampled=1)
    FileSource(table, observe=meter)
    assert len(meter.measured) == 3


def test_a_source_of_which_nothing_was_measured_is_measured_by_its_first_problem(base, table):
    own = encoder(base)
    meter = PromptMeter([Reader("student", Plain(), own)], sampled=1)
    source = FileSource(table, observe=meter).select([1])
    assert list(meter.measured) == [0, 2]
    (problem,) = meter.measured_of(source)
    assert problem.id == "1" and problem.sizes["student"].tokens == lengths(own, table, Plain())[1]


def test_the_row_of_a_long_prompt_is_that_of_the_file(base, tmp_path):
    rows = [{"problem": "", "id": "a"}, {"problem": "Why? " * 50, "id": "b"}, {"problem": "Why?", "id": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    fitted, (overlong,) = fitting(tmp_path / "a.json", encoder(base), student=40, bad_rows="skip")
    assert overlong.row == 1 and fitted.row_number(0) == 2
