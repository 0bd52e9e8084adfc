"""The folder of a run: named, numbered, refused, and overwritten only where it is a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vicur.files import write_whole
from vicur.run.recipe import load_recipe, to_yaml
from vicur.settings.section import SettingsError
from vicur.training.folder import ENTRIES, check_run_folder, remove_run, run_folder
from vicur.training.records import Records


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(folder):
    with Records(Path(folder), "recipe"):
        pass
    return Path(folder)


def test_a_folder_is_named_after_the_recipe_and_numbered():
    assert run_folder("mine/first", None) == Path("runs/mine/first")
    a_run("runs/mine/first")
    assert run_folder("mine/first", None) == Path("runs/mine/first-2")
    a_run("runs/mine/first-2")
    assert run_folder("mine/first", None) == Path("runs/mine/first-3")
    assert run_folder("mine/first", None, overwrite=True) == Path("runs/mine/first")
    Path("runs/empty").mkdir()
    assert run_folder("empty", None) == Path("runs/empty")
    Path("runs/file").write_text("")
    assert run_folder("file", None) == Path("runs/file-2")


def test_a_given_folder_is_used_unchanged(monkeypatch):
    assert run_folder("x", "elsewhere/y") == Path("elsewhere/y")
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load_recipe("cuebench/opsd_cue", ["training.output=~/y"])
    assert run_folder("x", recipe.training.output) == Path("/home/somebody/y")


def test_names_of_recipes(here):
    assert load_recipe("cuebench/opd_cue").training.name == "cuebench/opd_cue"
    (here / "mine.yaml").write_text("rollout: {group_size: 2}")
    recipe = load_recipe("mine.yaml")
    assert recipe.training.name == "mine" and recipe.training.output is None
    assert load_recipe("mine.yaml", ["training.name=other"]).training.name == "other"
    run = a_run(run_folder("mine", None))
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    again = load_recipe(str(run / "recipe.yaml")).training
    assert run_folder(again.name, again.output) == Path("runs/mine-2")


@pytest.mark.parametrize("name", ["", "/tmp/x", "../x", "a/../../b", "."])
def test_names_that_leave_the_folder(name):
    with pytest.raises(SettingsError, match=r"training\.name must be the name of a folder inside runs"):
        load_recipe("cuebench/opsd_cue", [f"training.name={name}"])


def test_a_run_is_refused_and_overwriting_is_offered():
    folder = a_run("out")
    (folder / "status.json").write_text('{"status": "interrupted"}')
    unfinished = (
        r"out already holds a run\. It has not finished: continue it with vicur train --resume\. Set "
    )
    with pytest.raises(ValueError, match=unfinished):
        check_run_folder(folder, overwrite=False)
    (folder / "status.json").write_text('{"status": "finished"}')
    with pytest.raises(ValueError, match=r"out already holds a run\. Set training\.overwrite=true"):
        check_run_folder(folder, overwrite=False)
    check_run_folder(folder, overwrite=True)
    check_run_folder(Path("new"), overwrite=False)
    Path("notes").mkdir()
    Path("notes/ideas.txt").write_text("keep")
    check_run_folder(Path("notes"), overwrite=False)  # a run may be put beside other files
    Path("file").write_text("")
    with pytest.raises(ValueError, match="file is a file"):
        check_run_folder(Path("file"), overwrite=True)


def test_overwriting_deletes_a_run_and_nothing_else():
    folder = a_run("out")
    (folder / "checkpoints/final").mkdir(parents=True)
    Path("elsewhere").mkdir()
    Path("elsewhere/model.bin").write_text("keep")
    (folder / "evaluation").symlink_to(Path("elsewhere").resolve())
    with Records(folder, "another", overwrite=True):
        assert (folder / "recipe.yaml").read_text() == "another"
        assert not (folder / "checkpoints").exists() and not (folder / "evaluation").exists()
    assert Path("elsewhere/model.bin").read_text() == "keep"
    assert {entry.name for entry in folder.iterdir()} <= ENTRIES


def test_overwriting_deletes_what_a_killed_run_had_not_finished_to_write():
    folder = a_run("out")
    names = []
    write_whole(folder / "summary.md", lambda partial: names.append(partial.name))
    (folder / names[0]).write_text("half of it")
    check_run_folder(folder, overwrite=True)
    remove_run(folder)
    assert [entry.name for entry in folder.iterdir()] == ["lock"]


def test_a_folder_is_that_of_a_run_from_the_first_thing_in_it(monkeypatch):
    """Or a run that is killed while it makes its folder could neither be resumed nor overwritten."""
    original = Path.mkdir

    def killed(self, *arguments, **options):
        if self.name == "rollouts":
            raise KeyboardInterrupt
        original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", killed)
    with pytest.raises(KeyboardInterrupt):
        Records(Path("out"), "recipe")
    assert Path("out/recipe.yaml").read_text() == "recipe"


@pytest.mark.parametrize("extra", ["notes.txt", "data", ".git", ".vicur-check", "x.partial"])
def test_a_folder_with_something_else_is_never_deleted(extra):
    folder = a_run("out")
    (folder / extra).mkdir()
    for attempt in (lambda: check_run_folder(folder, overwrite=True), lambda: remove_run(folder)):
        with pytest.raises(ValueError, match=f"also holds {extra}"):
            attempt()
    assert (folder / "recipe.yaml").exists() and (folder / extra).exists()


def test_a_folder_that_only_looks_like_a_run_is_never_deleted():
    Path("models/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"models does not look like one: it has no recipe\.yaml"):
        remove_run(Path("models"))
    assert Path("models/checkpoints").exists()
