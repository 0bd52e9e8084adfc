"""Prompt lengths without pixels: equal to those of the tensors; overlong prompts are dropped or rejected."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import BadRow, BadRowError
from vicur.data.sources import DataConfig, FileSource
from vicur.data.tables import ListTable
from vicur.data.views import Hinted, Plain, Shown
from vicur.encoding.lengths import fit_prompts, prompt_length, split_by_length
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
def source(tmp_path) -> FileSource:
    """Images of 4, 16 and 64 tokens; the second problem has a long cue, the third none."""
    rows = [
        {"id": str(i), "problem": "<image>Why?", "images": [png((side, side))], "cue": cue}
        for i, (side, cue) in enumerate([(32, "x"), (64, "x is 7 " * 30), (128, None)])
    ]
    return FileSource(ListTable("a.json", (tmp_path,), rows))


def lengths(own, source, view) -> list[int]:
    return [len(prompt) for prompt in own.encode([view.show(sample) for sample in source])]


def test_prompts_over_a_limit_are_found(base, source):
    own = encoder(base)
    plain, hinted = lengths(own, source, Plain()), lengths(own, source, Hinted("cue"))
    assert plain[1] - plain[0] == 12 and plain[2] - plain[0] == 60 and hinted[2] == plain[2]
    limit = DataConfig(max_prompt_tokens=plain[1])
    fitting, overlong = split_by_length(source, own, limit, Hinted("cue"))
    assert fitting == [0, 1]
    assert [(o.row, o.id, o.who, o.tokens) for o in overlong] == [(2, "2", "student", plain[2])]
    limit = DataConfig(max_prompt_tokens=plain[2], max_teacher_prompt_tokens=hinted[1] - 1)
    fitting, overlong = split_by_length(source, own, limit, Hinted("cue"))
    assert fitting == [0, 2] and [(o.row, o.who) for o in overlong] == [(1, "teacher")]
    assert split_by_length(source, own, limit) == ([0, 1, 2], [])
    smaller = encoder(base, PixelLimits(max_pixels=32 * 32))
    assert split_by_length(source, smaller, DataConfig(max_prompt_tokens=plain[0]))[0] == [0, 1, 2]


def test_nothing_is_measured_without_a_limit(source, monkeypatch):
    monkeypatch.setattr(FileSource, "outline", None)
    nothing = PromptEncoder.__new__(PromptEncoder)
    assert split_by_length(source, nothing, DataConfig()) == ([0, 1, 2], [])


def test_overlong_prompts_are_dropped_or_an_error(base, source):
    own = encoder(base)
    plain = lengths(own, source, Plain())
    fitted, overlong = fit_prompts(source, own, DataConfig(max_prompt_tokens=plain[1]))
    assert [sample.id for sample in fitted] == ["0", "1"] and len(overlong) == 1
    assert fit_prompts(source, own, DataConfig(max_prompt_tokens=plain[2])) == (source, [])
    message = (
        rf"a\.json, row 1 \(1\): the student's prompt has {plain[1]} tokens, more than {plain[0]}, and 1 more"
    )
    with pytest.raises(ValueError, match=message):
        fit_prompts(source, own, DataConfig(max_prompt_tokens=plain[0], overlong="error"))
    with pytest.raises(ValueError, match=r"every prompt is too long, the first: row 0"):
        fit_prompts(source, own, DataConfig(max_prompt_tokens=1))


def test_rows_that_turn_out_bad_are_counted_where_bad_rows_are_skipped(base, source, tmp_path, monkeypatch):
    def outline(self, index):
        if index == 0:
            raise BadRowError("a.json", BadRow(0, "0", "unreadable_media", "no frame"))
        return whole(self, index)

    whole = FileSource.outline
    monkeypatch.setattr(FileSource, "outline", outline)
    config = DataConfig(max_prompt_tokens=1000)
    with pytest.raises(BadRowError, match="row 0: no frame"):
        fit_prompts(source, encoder(base), config)
    source.skips_bad_rows = True
    fitted, overlong = fit_prompts(source, encoder(base), config)
    assert [sample.id for sample in fitted] == ["1", "2"] and overlong == []
    assert [bad.reason for bad in source.bad_rows] == ["no frame"] and fitted.bad_rows == source.bad_rows


def test_progress_can_be_shown(base, source):
    seen = []

    def progress(numbers, count):
        for number in numbers:
            seen.append((number, count))
            yield number

    split_by_length(source, encoder(base), DataConfig(max_prompt_tokens=1), progress=progress)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_the_row_of_a_long_prompt_is_that_of_the_file(base, tmp_path):
    rows = [{"problem": "", "id": "a"}, {"problem": "Why? " * 50, "id": "b"}, {"problem": "Why?", "id": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    source = FileSource(tmp_path / "a.json", bad_rows="skip")
    fitted, (overlong,) = fit_prompts(source, encoder(base), DataConfig(max_prompt_tokens=40))
    assert overlong.row == 1 and fitted.row_number(0) == 2
