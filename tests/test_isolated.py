"""Scripts in a Python of their own: what they can import, and what cannot shadow it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vicur.isolated import isolated_command


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "scripts" / "script.py"
    path.parent.mkdir()
    path.write_text(
        "import sys\n"
        "try:\n"
        "    module = __import__(sys.argv[1])\n"
        "    print(module.__file__, *sys.argv[2:])\n"
        "except ImportError:\n"
        "    print('missing')\n"
    )
    return path


def run(script, *arguments):
    return subprocess.run(
        isolated_command(script, *arguments), capture_output=True, text=True, check=True
    ).stdout.split()


def test_packages_outside_the_environment_are_found_last(tmp_path, monkeypatch, script):
    """As with `pip install --target FOLDER` and PYTHONPATH=FOLDER, or in the user's site-packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "only_there.py").write_text("")
    for shadowing in ("numbers.py", "yaml.py"):  # of the standard library, and of the environment
        (folder / shadowing).write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(folder))
    assert run(script, "only_there", "a b") == [str(folder / "only_there.py"), "a", "b"]
    assert str(folder) not in run(script, "numbers")[0]
    assert str(folder) not in run(script, "yaml")[0]


def test_the_working_folder_is_not_searched(tmp_path, monkeypatch, script):
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for entry in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        assert run(script, "only_here") == ["missing"]


def test_paths_of_other_kinds_and_a_deleted_working_folder(tmp_path, monkeypatch, script):
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])  # an import would ignore a Path
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(script, "numbers")[0].endswith("numbers.py")
