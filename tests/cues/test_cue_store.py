"""The store: what was acknowledged survives kills and damage, and other people's files survive the store."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.cues import store as store_module
from vicur.cues.store import OLD_MAGIC, CueStore, Failure

CUES = {"a": "One square.", "b": "Zwei größere\nDreiecke \u2028 \x00.", "c": "", "d": "x" * 300}


def fill(path):
    """Four cues and a failure."""
    with CueStore(path) as store:
        for key, cue in CUES.items():
            store.add(key, cue, cost=0.25, id=key)
        store.add_failure("e", "no reply", 4)


def old_line(record):
    body = json.dumps(record).encode()
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode() + b" " + body + b"\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "cues"
    fill(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def old():
    """The lines of a file of the format before SQLite."""
    cues = [{"kind": "cue", "key": key, "cue": cue, "cost": 0.25, "id": key} for key, cue in CUES.items()]
    failed = {"kind": "failed", "key": "e", "reason": "no reply", "tries": 4}
    return [OLD_MAGIC, *(old_line(record) for record in [*cues, failed])]


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
    assert [path.name for path in tmp_path.iterdir()] == ["cues"]


def test_the_last_cue_of_a_key_counts(tmp_path):
    with CueStore(tmp_path / "cues") as store:
        store.add("a", "First.")
        store.add("a", "Second.")
        assert store.cue("a") == "Second." and len(store) == 1
    with CueStore(tmp_path / "cues") as store:
        assert store.cue("a") == "Second."


WRITER = """
import runpy, sys
from pathlib import Path
CueStore = runpy.run_path(sys.argv[1])["CueStore"]  # the file alone is quicker than all of vicur
with CueStore(Path(sys.argv[2])) as store:
    for number in range(10**6):
        key = f"{sys.argv[3]}-{number}"
        store.add(key, "A cue. " * 40, cost=1.0)
        print(key, flush=True)
"""


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path):
    acknowledged = []
    for turn, count in enumerate((1, 7, 40)):
        arguments = [sys.executable, "-c", WRITER, store_module.__file__, str(tmp_path / "cues"), str(turn)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            acknowledged += [process.stdout.readline().strip() for _ in range(count)]
            process.kill()
            acknowledged += process.stdout.read().split()
    assert len(acknowledged) >= 48 and all(acknowledged)
    with CueStore(tmp_path / "cues", read_only=True) as store:
        assert all(key in store for key in acknowledged)
    with CueStore(tmp_path / "cues") as store:
        assert all(store.cue(key) == "A cue. " * 40 for key in acknowledged) and not store.notes
        assert len(acknowledged) <= len(store) <= len(acknowledged) + 3


@given(st.data())
def test_a_damaged_byte_is_never_taken_for_a_cue(tmp_path_factory, filled, data):
    place = data.draw(st.integers(0, len(filled) - 1))
    value = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "cues"
    path.write_bytes(filled[:place] + bytes([value]) + filled[place + 1 :])
    try:
        with CueStore(path) as store:
            right = [key for key, cue in CUES.items() if key in store and store.cue(key) == cue]
            assert len(right) == len(store) >= 3
    except (ValueError, OSError) as error:
        assert str(path) in str(error)


def test_a_damaged_record_is_reported_and_the_others_are_kept(tmp_path, filled):
    path = tmp_path / "cues"
    path.write_bytes(filled.replace(b"One square", b"Two square"))
    with CueStore(path) as store:
        assert "a" not in store and store.cue("d") == CUES["d"]
        assert "1 damaged record(s)" in store.notes[0]
        store.add("a", "Another.")
    with CueStore(path) as store:
        assert store.cue("a") == "Another."


def test_a_truncated_store_is_refused_and_left_unchanged(tmp_path, filled):
    path = tmp_path / "cues"
    path.write_bytes(filled[:6000])
    with pytest.raises(ValueError, match=r"(?s)is damaged .* and was left unchanged"):
        CueStore(path)
    assert path.read_bytes() == filled[:6000]


@pytest.mark.parametrize("content", [b"PAR1 my precious data", b"{}\n", b"vicur-cues 2\n", b"vix"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_file_is_left_alone(tmp_path, content, read_only):
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a cue store and was left unchanged"):
        CueStore(path, read_only=read_only)
    assert path.read_bytes() == content


def test_a_foreign_database_is_left_alone(tmp_path):
    path = tmp_path / "data"
    with sqlite3.connect(path) as database:
        database.execute("create table replies (key text)")
    database.close()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="is not a cue store and was left unchanged"):
        CueStore(path)
    assert path.read_bytes() == content


def test_two_writers_are_refused_and_the_first_is_not_disturbed(tmp_path):
    path = tmp_path / "cues"
    with CueStore(path) as store:
        with pytest.raises(ValueError, match="Another process is using the store"):
            CueStore(path)
        arguments = [sys.executable, "-c", WRITER, store_module.__file__, str(path), "0"]
        other = subprocess.run(arguments, capture_output=True, text=True)
        assert "Another process is using the store" in other.stderr
        store.add("a", "Still here.")
    with CueStore(path) as store:
        assert store.cue("a") == "Still here."


def test_it_can_be_read_while_it_is_written(tmp_path):
    path = tmp_path / "cues"
    with CueStore(path) as store:
        store.add("a", "First.")
        with CueStore(path, read_only=True) as reader:
            assert reader.cue("a") == "First."
            store.add("b", "Second.")
        with CueStore(path, read_only=True) as reader:
            assert reader.cue("b") == "Second."
            with pytest.raises(OSError, match="cannot be written"):
                reader.add("c", "Third.")


def test_reading_changes_no_file(tmp_path, filled):
    path = tmp_path / "cues"
    path.write_bytes(filled)
    with CueStore(path, read_only=True) as store:
        assert len(store) == 4
    assert path.read_bytes() == filled and [file.name for file in tmp_path.iterdir()] == ["cues"]


def test_a_full_disk_leaves_no_half_record(tmp_path):
    path = tmp_path / "cues"
    with CueStore(path) as store:
        store.add("a", "First.")
        pages = sqlite3.connect(path).execute("pragma page_count").fetchone()[0]
        store._database.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(
            OSError, match="cannot be written: database or disk is full; earlier replies are kept"
        ):
            store.add("b", "x" * 100_000)
        assert "b" not in store
        store.add("b", "Second.")
    with CueStore(path) as store:
        assert store.cue("b") == "Second." and len(store) == 2 and not store.notes


def test_anybody_can_read_it(tmp_path):
    with CueStore(tmp_path / "cues") as store:
        store.add("k", "A cue.", model="m")
    database = sqlite3.connect(tmp_path / "cues")
    ((key, kind, record),) = database.execute("select key, kind, record from replies")
    database.close()
    assert (key, kind) == ("k", "cue") and json.loads(record)["cue"] == "A cue."


# The format before SQLite


def test_an_old_store_is_converted_once_and_kept(tmp_path, old):
    path, content = tmp_path / "cues", b"".join(old)
    path.write_bytes(content)
    with CueStore(path) as store:
        assert {key: store.cue(key) for key in CUES} == CUES and store.cost == 1.0
        assert store.failure("e") == Failure("no reply", 4)
        (note,) = store.notes
        assert "was converted to an SQLite database" in note and str(tmp_path / "cues.old") in note
        store.add("new", "Another.")
        with pytest.raises(ValueError, match="Another process"):
            CueStore(path)
    assert (tmp_path / "cues.old").read_bytes() == content
    with CueStore(path) as store:
        assert store.cue("new") == "Another." and len(store) == 5 and not store.notes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cues", "cues.old"]


def test_an_older_copy_is_not_overwritten(tmp_path, old):
    (tmp_path / "cues").write_bytes(b"".join(old))
    (tmp_path / "cues.old").write_bytes(b"precious")
    CueStore(tmp_path / "cues").close()
    assert (tmp_path / "cues.old").read_bytes() == b"precious"
    assert (tmp_path / "cues.old.old").read_bytes() == b"".join(old)


def test_reading_an_old_store_converts_nothing(tmp_path, old):
    """A dry run keeps even the unfinished record at the end of the file."""
    path, content = tmp_path / "cues", b"".join(old)[:-5]
    path.write_bytes(content)
    with CueStore(path, read_only=True) as store:
        assert len(store) == 4 and store.failure("e") is None
        assert "1 damaged or unfinished" in store.notes[0]
    assert path.read_bytes() == content and [file.name for file in tmp_path.iterdir()] == ["cues"]


@given(st.data())
def test_an_old_store_cut_anywhere_keeps_all_records_before(tmp_path_factory, old, data):
    content = b"".join(old)
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.mktemp("cut") / "cues"
    path.write_bytes(content[:cut])
    ends = [sum(map(len, old[: number + 1])) for number in range(len(old))]
    with CueStore(path, read_only=True) as store:
        # A record that lacks nothing but its line end is whole.
        whole = min(4, sum(end <= cut or end - 1 == cut for end in ends[1:]))
        assert (
            [store.cue(key) for key in list(CUES)[:whole]]
            == list(CUES.values())[:whole]
            == list(CUES.values())[: len(store)]
        )


def test_a_damaged_record_of_an_old_store_costs_that_record(tmp_path, old):
    path = tmp_path / "cues"
    path.write_bytes(b"".join(old).replace(b"One square", b"Two square"))
    with CueStore(path) as store:
        assert "a" not in store and len(store) == 3
        assert any("1 damaged or unfinished record" in note for note in store.notes)


def test_a_dry_run_after_a_kill_reads_everything_and_changes_nothing(tmp_path):
    """SQLite would complete the killed writer's work in the file, and create others beside it."""
    folder = tmp_path / "stores"
    arguments = [sys.executable, "-c", WRITER, store_module.__file__, str(folder / "cues"), "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(5)]
        process.kill()
        acknowledged += process.stdout.read().split()
    (folder / "cues-shm").unlink()
    (tmp_path / "link").symlink_to(folder / "cues")

    def state():
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}

    before = state()
    assert set(before) == {"cues", "cues-wal"}
    for path in (folder / "cues", tmp_path / "link"):
        with CueStore(path, read_only=True) as store:
            assert all(key in store for key in acknowledged)
            with pytest.raises(OSError, match="cannot be written"):
                store.add("c", "Third.")
        assert state() == before


def test_it_knows_the_files_that_were_written_with_it_until_they_change(tmp_path):
    out, partial = tmp_path / "out", tmp_path / "partial"
    with CueStore(tmp_path / "cues") as store:
        assert not store.has_written(out)
        partial.write_text("one")
        store.note_file(out, partial)
        partial.rename(out)
        assert store.has_written(out) and not store.has_written(tmp_path / "other")
    with CueStore(tmp_path / "cues", read_only=True) as store:
        assert store.has_written(out) and len(store) == 0 and store.cost == 0
        out.write_text("changed")
        assert not store.has_written(out)
        out.unlink()
        assert not store.has_written(out)


def test_a_store_and_its_output_may_be_moved_together(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with CueStore(old / "cues") as store:
        (old / "out").write_text("one")
        store.note_file(old / "out", old / "out")
    old.rename(new)
    with CueStore(new / "cues") as store:
        assert store.has_written(new / "out")


def test_a_store_that_is_removed_during_a_build_is_an_error(tmp_path):
    folder = tmp_path / "deep"
    with CueStore(folder / "cues") as store:
        store.add("a", "First.")
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="was removed or replaced during the build"):
            store.add("b", "Second.")


def test_only_a_regular_file_is_a_store(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(OSError, match="only files are replaced"):
            CueStore(tmp_path / name)
