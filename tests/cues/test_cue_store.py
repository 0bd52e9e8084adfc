"""The store: what was paid for survives a kill at any byte."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.cues.store import MAGIC, CueStore, Failure

CUES = {"a": "One square.", "b": "Zwei größere\nDreiecke \u2028 \x00.", "c": "", "d": "x" * 300}


def fill(path):
    """Four cues and a failure; the offsets at which records end."""
    ends = [len(MAGIC)]
    with CueStore(path) as store:
        for key, cue in CUES.items():
            store.add(key, cue, cost=0.25, id=key)
            ends.append(path.stat().st_size)
        store.add_failure("e", "no reply", 4)
        ends.append(path.stat().st_size)
    return ends


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "cues"
    return fill(path), path.read_bytes()


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
    fill(tmp_path / "cues")
    with CueStore(tmp_path / "cues") as store:
        assert {key: store.cue(key) for key in CUES} == CUES
        assert store.failure("e") == Failure("no reply", 4)
        assert store.failure("a") is None and "e" not in store and len(store) == 4
        assert store.cost == 1.0 and not store.notes
        assert store.record("a")["id"] == "a"
        store.add("e", "After all.")
        assert store.failure("e") is None and store.cue("e") == "After all."


def test_cut_at_every_byte_it_keeps_all_records_before(tmp_path, filled, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a thousand of them take seconds
    ends, content = filled
    path = tmp_path / "cues"
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        with CueStore(path) as store:
            # A record that lacks nothing but its line end is whole.
            whole = sum(end <= cut or end - 1 == cut for end in ends[1:])
            assert len(store) == min(whole, 4), cut
            assert [store.cue(key) for key in list(CUES)[:whole]] == list(CUES.values())[:whole]
            assert bool(store.notes) == (cut > len(MAGIC) and cut not in (*ends, *(e - 1 for e in ends)))
            store.add("new", "Another.")
        with CueStore(path) as store:
            assert store.cue("new") == "Another." and len(store) == min(whole, 4) + 1 and not store.notes


@given(st.data())
def test_a_damaged_byte_costs_one_record_at_most(tmp_path_factory, filled, data):
    _, content = filled
    place = data.draw(st.integers(len(MAGIC), len(content) - 1))
    value = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "cues"
    path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    with CueStore(path) as store:
        right = [key for key, cue in CUES.items() if key in store and store.cue(key) == cue]
        # A line end that becomes something else joins two records.
        lost = 2 if content[place : place + 1] == b"\n" else 1
        assert len(right) >= 4 - lost and len(right) == len(store)
        store.add("new", "Another.")
    with CueStore(path) as store:
        assert store.cue("new") == "Another."


def test_a_damaged_record_in_the_middle_is_told_and_those_behind_it_stay(tmp_path, filled):
    _, content = filled
    path = tmp_path / "cues"
    path.write_bytes(content.replace(b"One square", b"Two square"))
    with CueStore(path) as store:
        assert "a" not in store and store.cue("d") == CUES["d"]
        assert "damaged in 1 place" in store.notes[0]
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize(
    "content", [b"PAR1 my precious data", b"{}\n", MAGIC[:-1] + b"2\n", b"vicur"[:3] + b"x"]
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a store of cues and was left as it is"):
        CueStore(path)
    assert path.read_bytes() == content


def test_two_writers_are_refused_and_the_first_is_not_disturbed(tmp_path):
    path = tmp_path / "cues"
    with CueStore(path) as store:
        with pytest.raises(ValueError, match="Another process is building with the store"):
            CueStore(path)
        store.add("a", "Still here.")
    with CueStore(path) as store:
        assert store.cue("a") == "Still here."


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    path = tmp_path / "cues"
    write = os.pwrite
    with CueStore(path) as store:
        store.add("a", "First.")
        size = path.stat().st_size

        def half(file, data, offset):
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return write(file, data[: len(data) - 10], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="cannot be written: No space left on device"):
            store.add("b", "Second.")
        monkeypatch.undo()
        assert path.stat().st_size == size and "b" not in store
        store.add("b", "Second.")
    with CueStore(path) as store:
        assert store.cue("b") == "Second." and not store.notes


def test_it_is_synced_at_most_once_a_second_and_when_it_is_closed(tmp_path, monkeypatch):
    now, synced = [0.0], []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    with CueStore(tmp_path / "cues", clock=lambda: now[0]) as store:
        for number in range(10):
            now[0] += 0.3
            store.add(str(number), "A cue.")
    assert synced == [pytest.approx(1.2), pytest.approx(2.4), pytest.approx(3.0)]


def test_records_are_lines_that_anybody_can_read(tmp_path):
    with CueStore(tmp_path / "cues") as store:
        store.add("k", "A cue.", model="m")
    magic, line = (tmp_path / "cues").read_text().splitlines()
    assert magic == "vicur-cues 1"
    assert json.loads(line.partition(" ")[2])["cue"] == "A cue."
