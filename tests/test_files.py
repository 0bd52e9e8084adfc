"""Files are complete or absent, replace only what may be replaced, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vicur.files import (
    is_still,
    open_locked,
    write_folder,
    write_json,
    write_or_rescue,
    write_rows,
    write_text,
    write_whole,
)


def test_what_exists_is_replaced_only_where_that_is_allowed(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "first", replace=False)
    with pytest.raises(OSError, match=r"a\.txt cannot be written: File exists\.$") as caught:
        write_text(path, "second", replace=False)
    assert caught.value.errno == errno.EEXIST and path.read_text() == "first"
    write_text(path, "second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_a_file_that_appears_during_the_writing_is_kept(tmp_path):
    path = tmp_path / "a.txt"

    def write(partial):
        partial.write_text("ours")
        path.write_text("theirs")

    with pytest.raises(OSError, match="File exists"):
        write_whole(path, write, replace=False)
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("vicur.files.os.link", refuse)
    write_text(tmp_path / "a.txt", "first", replace=False)
    with pytest.raises(OSError, match="File exists"):
        write_text(tmp_path / "a.txt", "second", replace=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize("error", [OSError(28, "x"), KeyboardInterrupt(), ValueError("no"), MemoryError()])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(partial):
        partial.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x"),
        lambda path: write_json(path, {}),
        lambda path: write_rows(path, [{"a": 1}]),
        lambda path: write_or_rescue(path, lambda partial: partial.write_text("x")),
    ],
)
def test_every_error_names_the_file_and_the_reason(tmp_path, monkeypatch, write):
    def full(file):
        raise OSError(errno.ENOSPC, "the library's own words", "another name")

    monkeypatch.setattr("vicur.files.os.fsync", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match=r"^/.*r\.x cannot be written: No space left on device\.$") as caught:
        write(tmp_path / "r.x")
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after_it(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def flush(file):
        events.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    def rename(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr("vicur.files.os.fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    write_text(tmp_path / "a.txt", "x")
    assert events == ["file", "rename", "folder"]


def _special(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(os.path.relpath(path))  # the length of such names is limited
        bound.close()
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_replaced(tmp_path, kind, linked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    special = path = tmp_path / "special"
    _special(kind, special)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(special)
    before = (special.stat().st_mode, sorted(tmp_path.iterdir()))
    for attempt in (
        lambda: write_text(path, "x"),
        lambda: write_text(path, "x", replace=False),
        lambda: open_locked(path),
    ):
        with pytest.raises(OSError, match=r"cannot be written: it is a .*only files are replaced"):
            attempt()
    assert (special.stat().st_mode, sorted(tmp_path.iterdir())) == before


@pytest.mark.parametrize("there", [False, True])
def test_through_a_link_its_target_is_written(tmp_path, there):
    target, link = tmp_path / "disk" / "a.txt", tmp_path / "a.txt"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    with pytest.raises(OSError, match="File exists"):
        write_text(link, "newer", replace=False)
    assert [file.name for file in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("replace", [False, True])
def test_writers_at_the_same_time_do_not_mix(tmp_path, replace):
    path, contents = tmp_path / "a.txt", [letter * 200_000 for letter in "abcdefgh"]
    start, refused = threading.Barrier(len(contents)), []

    def write(text):
        start.wait()
        try:
            write_text(path, text, replace=replace)
        except OSError as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents and list(tmp_path.iterdir()) == [path]
    assert len(refused) == (0 if replace else len(contents) - 1)


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_any_name_that_the_file_system_takes(tmp_path_factory, name):
    name = name.encode()[:255].decode(errors="ignore")
    if name in ("", ".", ".."):
        return
    path = tmp_path_factory.mktemp("names") / name
    write_text(path, "x", replace=False)
    assert list(path.parent.iterdir()) == [path]


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_growing_file_is_locked_while_it_is_open(tmp_path):
    path = tmp_path / "new" / "a"
    file = open_locked(path)
    with pytest.raises(BlockingIOError):
        open_locked(path)
    assert is_still(file, path)
    path.unlink()
    assert not is_still(file, path)
    other = open_locked(path)
    assert is_still(other, path) and not is_still(file, path)
    os.close(file)
    os.close(other)


def test_a_lock_on_a_file_that_was_just_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    """The process that had it removes it between the opening and the locking."""
    import fcntl

    path, flock, calls = tmp_path / "a", fcntl.flock, []

    def late(file, how):
        if not calls:
            path.unlink()
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr("vicur.files.fcntl.flock", late)
    file = open_locked(path)
    assert is_still(file, path) and len(calls) == 2
    os.close(file)


@pytest.mark.parametrize("mask, expected", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_all_files_have_the_permissions_of_the_umask(tmp_path, mask, expected):
    """Also those that safetensors writes, which are private to their owner."""

    def save(path):
        save_file({"a": torch.zeros(2)}, path)
        path.chmod(0o600)

    def write(folder):
        (folder / "deep").mkdir(mode=0o700)
        save(folder / "deep" / "a.safetensors")
        save(folder / "b.safetensors")
        (folder / "c.txt").write_text("c")

    before = os.umask(mask)
    try:
        write_whole(tmp_path / "whole.safetensors", save)
        write_folder(tmp_path / "folder", write)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(files) == 4 and len(folders) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {expected}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o777 & ~mask}
