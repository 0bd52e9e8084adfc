"""CueBench files in the geometry3k convention, read back by the ordinary source."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from vicur.cuebench import generate
from vicur.cuebench.boxes import cue_boxes
from vicur.cuebench.generate import scenes, to_sample, write_parquet
from vicur.data.sample import Sample
from vicur.data.sources import FileSource


@pytest.mark.parametrize("family", ["segments", "chords"])
def test_parquet_round_trip(family, tmp_path):
    path = tmp_path / "deep" / "train.parquet"
    write_parquet(family, "train", 5, path, seed=2)
    assert {"images", "problem", "answer", "cue", "rationale"} <= set(pq.read_schema(path).names)
    source, stream = FileSource(path), scenes(family, "train", 2)
    for sample in source:
        expected = to_sample(next(stream))
        assert (sample.id, sample.messages, sample.answer) == (
            expected.id,
            expected.messages,
            expected.answer,
        )
        assert sample.privilege == expected.privilege
        assert sample.target_response == expected.target_response
        assert np.array_equal(np.asarray(sample.images[0]), np.asarray(expected.images[0]))
        assert cue_boxes(sample) == cue_boxes(expected)
    assert not list(path.parent.glob("*.partial"))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vicur.files.pq.write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_parquet("segments", "train", 2, tmp_path / "train.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_finite_family_says_when_it_is_used_up(monkeypatch):
    monkeypatch.setitem(generate.BUCKETS, "validation", range(0))
    monkeypatch.setattr(generate, "MOST_MISSES", 50)
    with pytest.raises(ValueError, match="only 0 different scenes"):
        next(scenes("chords", "validation"))


@pytest.mark.parametrize(
    "held", ["[" * 200_000, "x", [1], [["a", "b", 1, 2, 3]], "[[1, 2, 3, 4, 5, 'x']]", {"a": 1}]
)
def test_boxes_of_another_form_are_refused_in_a_sentence(held):
    sample = Sample("s", (), meta={"cue_boxes": held})
    with pytest.raises(ValueError, match=r"^Sample s: cue_boxes must be a list of \[name, value, left"):
        cue_boxes(sample)
