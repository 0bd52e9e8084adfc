"""Paths: what they mean, and that nothing expensive starts where a result cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vicur.files import write_or_rescue
from vicur.paths import check_file, check_folder, expand


def test_the_home_folder_is_expanded_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/runs/a") == f"{tmp_path}/runs/a" and expand("~") == str(tmp_path)
    for text in ("runs/~x", "owner/name", "vicur:tiny-student", "a~b", "", "data.parquet@test"):
        assert expand(text) == text
    with pytest.raises(ValueError, match="home folder that does not exist"):
        expand("~nobody-of-this-name/x")


def test_checks_leave_nothing_behind(tmp_path):
    check_file(tmp_path / "new" / "deep" / "a.parquet", "--output", overwrite=False)
    check_folder(tmp_path / "new" / "run", "--output")
    (tmp_path / "there.txt").write_text("x")
    check_file(tmp_path / "there.txt", "--output", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["there.txt"] and (
        tmp_path / "there.txt"
    ).read_text() == "x"


def test_unwritable_paths_are_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"--output .*file/x/a\.parquet cannot be written: not a directory"):
        check_file(tmp_path / "file" / "x" / "a.parquet", "--output", overwrite=False)
    with pytest.raises(ValueError, match="is a folder; give the path of a file"):
        check_file(tmp_path, "--output", overwrite=True)
    with pytest.raises(ValueError, match="is a file; give the path of a folder"):
        check_folder(tmp_path / "file", "training.output")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="permission denied"):
        check_file(tmp_path / "a.parquet", "--output", overwrite=False)


def _full_disk(folder: Path):
    """Writes text, but fails in one folder as a full disk does."""

    def write(path: Path) -> None:
        if path.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        path.write_text("all of it")

    return write


def test_content_that_cannot_be_written_is_rescued(tmp_path, monkeypatch):
    spare, target = tmp_path / "spare", tmp_path / "target" / "worth.json"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    with pytest.raises(OSError, match=r"No space left on device\. Its content was written to") as caught:
        write_or_rescue(target, _full_disk(target.parent))
    (rescued,) = spare.glob("*/worth.json")
    assert rescued.read_text() == "all of it" and str(rescued) in str(caught.value)
    with pytest.raises(OSError, match=r"worth\.json cannot be written: No space left on device\.$"):
        write_or_rescue(target, _full_disk(tmp_path))
    write_or_rescue(target, lambda path: path.write_text("fine"))
    assert target.read_text() == "fine"


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"--output .* cannot be written: no file can have this name"):
        check_folder(tmp_path / name, "--output")
    with pytest.raises(ValueError, match=r"--output .* cannot be written: no file can have this name"):
        check_file(tmp_path / name, "--output", overwrite=True)
