"""Responses are stored as they come, and serve a later run with the same settings only."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.evaluation.responses import METADATA, ResponseStore, StoredResponse

SETTINGS = {"model": "m", "sampling.temperature": 0.0, "seed": None}


def stored(name, text="It is 4.", number=0):
    return StoredResponse(name, number, f"digest of {name}", text, [1, 2, 3], 3, "stop")


def table(*responses):
    return pa.Table.from_pylist([vars(response) for response in responses])


def test_what_a_killed_process_leaves_is_found_again(tmp_path):
    out = tmp_path / "deep" / "r.parquet"
    first = ResponseStore(out, SETTINGS)
    first.add([stored("a"), stored("b", "Ä \u2028 {")])
    first.add([stored("c")])
    # Not closed: the process is gone, in the middle of a line.
    with first.lines_path.open("a") as file:
        file.write('{"id": "d", "diges')
    lines = first.lines_path.read_text().splitlines()
    assert json.loads(lines[1])["response"] == "It is 4."
    first.close()
    with ResponseStore(out, SETTINGS) as second:
        assert list(second) == ["a", "b", "c"] and second.get("b") == [stored("b", "Ä \u2028 {")]
        assert second.get("d") == [] and "incomplete" in second.notes[0]
        second.add([stored("d")])
    with ResponseStore(out, SETTINGS) as third:
        assert list(third) == ["a", "b", "c", "d"] and third.notes == []
        third.finish(table(*(third.get(own)[0] for own in third)))
    assert [path.name for path in out.parent.iterdir()] == ["r.parquet"]
    with ResponseStore(out, SETTINGS) as fourth:
        assert fourth.get("c") == [stored("c")]
    assert [path.name for path in out.parent.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize("finished", [False, True])
def test_responses_of_other_settings_are_refused(tmp_path, finished):
    out = tmp_path / "r.parquet"
    with ResponseStore(out, SETTINGS) as store:
        store.add([stored("a")])
        if finished:
            store.finish(table(stored("a")))
    other = SETTINGS | {"sampling.temperature": 0.7}
    with pytest.raises(ValueError, match=r"sampling\.temperature was 0\.0 and is now 0\.7\..*overwrite=true"):
        ResponseStore(out, other)
    with ResponseStore(out, SETTINGS) as store:
        assert len(store) == 1
    with ResponseStore(out, other, overwrite=True) as store:
        assert len(store) == 0
        store.add([stored("b")])
    with ResponseStore(out, other, overwrite=True) as store:  # an interrupted new start is not lost again
        assert list(store) == ["b"]


def test_files_of_others_are_left_alone(tmp_path):
    foreign = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), foreign)
    with pytest.raises(ValueError, match="was not written by this command"):
        ResponseStore(foreign, SETTINGS)
    text = tmp_path / "t.parquet"
    text.write_text("hello")
    with pytest.raises(ValueError, match="is not a parquet file"):
        ResponseStore(text, SETTINGS)
    lines = tmp_path / "x.parquet.responses.jsonl"
    lines.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match=r"x\.parquet\.responses\.jsonl was not written by this command"):
        ResponseStore(tmp_path / "x.parquet", SETTINGS)
    assert text.read_text() == "hello" and lines.read_text() == "[1, 2]\n"


def test_two_processes_cannot_write_one_output(tmp_path):
    with (
        ResponseStore(tmp_path / "r.parquet", SETTINGS),
        pytest.raises(ValueError, match="Another process is writing"),
    ):
        ResponseStore(tmp_path / "r.parquet", SETTINGS)


def test_a_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch):
    out, spare = tmp_path / "o" / "r.parquet", tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    write = pq.write_table

    def full(content, path, **options):
        if path.is_relative_to(out.parent):
            raise OSError(28, "No space left on device")
        write(content, path, **options)

    with ResponseStore(out, SETTINGS) as store:
        store.add([stored("a")])
        monkeypatch.setattr("vicur.evaluation.responses.pq.write_table", full)
        with pytest.raises(
            OSError, match=r"(?s)No space left.*written to .*spare.*also in .*responses\.jsonl"
        ):
            store.finish(table(stored("a")))
    assert len(list(spare.glob("*/r.parquet"))) == 1
    with ResponseStore(out, SETTINGS) as store:
        assert store.get("a") == [stored("a")]


def test_a_full_disk_in_the_middle_keeps_what_was_there(tmp_path, monkeypatch):
    with ResponseStore(tmp_path / "r.parquet", SETTINGS) as store:
        store.add([stored("a")])
        import os

        real = os.write

        def full(file, content):
            real(file, content[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("vicur.evaluation.responses.os.write", full)
        with pytest.raises(
            OSError, match=r"cannot be written: No space left on device\. It holds the 1 responses"
        ):
            store.add([stored("b")])
        monkeypatch.undo()
        store.add([stored("c")])
    with ResponseStore(tmp_path / "r.parquet", SETTINGS) as store:
        assert list(store) == ["a", "c"] and store.notes == []


@given(st.lists(st.text(), max_size=4), st.integers(0, 400))
def test_any_cut_leaves_whole_responses(tmp_path_factory, texts, cut):
    out = tmp_path_factory.mktemp("cut") / "r.parquet"
    with ResponseStore(out, SETTINGS) as store:
        store.add([stored(str(number), text) for number, text in enumerate(texts)] or [stored("0")])
        count = len(store)
    path = store.lines_path
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    with ResponseStore(out, SETTINGS) as store:
        found = [store.get(own)[0] for own in store]
        assert len(found) <= count
        assert all(own == stored(own.id, texts[int(own.id)] if texts else "It is 4.") for own in found)


def test_a_first_line_that_is_nested_too_deeply_is_not_ours(tmp_path):
    lines = tmp_path / "r.parquet.responses.jsonl"
    content = b'{"settings": ' + b"[" * 200_000 + b"\n"
    lines.write_bytes(content)
    with pytest.raises(ValueError, match="was not written by this command"):
        ResponseStore(tmp_path / "r.parquet", SETTINGS)
    assert lines.read_bytes() == content
    with ResponseStore(tmp_path / "r.parquet", SETTINGS, overwrite=True) as store:
        assert list(store) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"response": 4},
        {"id": 1},
        {"response_ids": [1, 2.5]},
        {"response_ids": ["a"]},
        {"number": "0"},
        {"response_tokens": 1.5},
        {"finish_reason": "tool"},
    ],
)
def test_stored_values_of_other_types_are_not_ours(tmp_path, changed):
    """Each from the parquet file, and from the file of lines."""
    row = {**vars(stored("a")), **changed}
    metadata = {METADATA: json.dumps(SETTINGS).encode()}
    out = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([row]).replace_schema_metadata(metadata), out)
    with pytest.raises(ValueError, match=r"r\.parquet exists and was not written by this command"):
        ResponseStore(out, SETTINGS)
    with ResponseStore(out, SETTINGS, overwrite=True) as store:
        assert list(store) == []
    lines = tmp_path / "x.parquet.responses.jsonl"
    lines.write_text(f"{json.dumps({'settings': SETTINGS})}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=r"x\.parquet\.responses\.jsonl was not written by this command"):
        ResponseStore(tmp_path / "x.parquet", SETTINGS)


@pytest.mark.parametrize("metadata", [b"[" * 200_000, b"[1]", b"\xff"])
def test_damaged_metadata_of_an_output(tmp_path, metadata):
    out = tmp_path / "r.parquet"
    pq.write_table(table(stored("a")).replace_schema_metadata({METADATA: metadata}), out)
    with pytest.raises(ValueError, match="has damaged metadata"):
        ResponseStore(out, SETTINGS)


def test_several_responses_to_a_problem_are_kept_by_number(tmp_path):
    out = tmp_path / "r.parquet"
    with ResponseStore(out, SETTINGS) as store:
        store.add([stored("a", "second", 1), stored("a", "first"), stored("b")])
        assert len(store) == 3 and list(store) == ["a", "b"]
    with ResponseStore(out, SETTINGS) as store:
        assert [response.response for response in store.get("a")] == ["first", "second"]
        store.discard("a")
        assert len(store) == 1
