"""A run's folder: its name, when it is refused, and what may be deleted in it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vicur import distributed
from vicur.files import RECIPE_FILE, is_partial, open_locked
from vicur.paths import check_folder
from vicur.settings.reading import read_json

RUNS = Path("runs")
"""Parent of the folders of runs that do not set training.output."""
ALWAYS_PRESENT = (RECIPE_FILE, "status.json")
"""Files that a run's folder has from the start."""
LOCK = "lock"
"""File that a run keeps locked while it writes to its folder."""
ENTRIES = frozenset(
    (
        *(
            RECIPE_FILE,
            "environment.json",
            "metrics.jsonl",
            "evaluation.jsonl",
            "observations.jsonl",
            "data.json",
            "tokenizer.json",
            "report.html",
            "status.json",
            "memory.json",
        ),
        *(
            "summary.json",
            "summary.md",
            "rollouts",
            "evaluation",
            "observations",
            "figures",
            "diagnostics",
            "tensorboard",
            "wandb",
            "trackers.json",
            "checkpoints",
            "nonfinite",
            LOCK,
        ),
    )
)
"""Everything that a run writes at the top level of its folder."""


def run_folder(name: str, output: str | None, *, overwrite: bool = False) -> Path:
    """The folder of a new run: `output` if given, else runs/NAME, numbered if that is taken.

    Args:
        name, output, overwrite: as in `TrainingConfig`. With `overwrite` and no `output`, the folder is
            always runs/NAME.
    """
    if output is not None:
        return Path(output)
    folder, number = RUNS / name, 1
    while not overwrite and _is_taken(folder):
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def check_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a run can be written to a folder. Nothing is deleted.

    Raises:
        ValueError: the folder is a file, holds a run although `overwrite` is false, or holds something other
            than a run although `overwrite` is true.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file. Choose another training.output.")
    check_folder(folder, "training.output")
    old = _entries(folder)
    if overwrite:
        _check_only_a_run(folder, old)
    elif (old & ENTRIES) - {LOCK}:
        others = "Set training.overwrite=true to delete that run, or choose another training.output."
        if (folder / RECIPE_FILE).is_file() and not is_finished(folder):
            others = f"It has not finished: continue it with vicur train --resume. {others}"
        raise ValueError(f"{folder} already holds a run. {others}")


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder has finished."""
    try:
        return read_json(folder / "status.json")["status"] == "finished"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_run(folder: Path) -> None:
    """Delete what a run has written, but for its lock. The folder and the targets of links are kept.

    Raises:
        ValueError: the folder holds something that no run writes.
    """
    old = _entries(folder) - {LOCK}
    _check_only_a_run(folder, old)
    for name in old:
        entry = folder / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def newest_run(name: str, output: str | None, *, overwrite: bool = False) -> Path:
    """The folder of the run to resume: `output` if given, else the newest of runs/NAME, runs/NAME-2, ...

    Args:
        name, output, overwrite: as in `run_folder`.
    """
    if output is not None:
        return Path(output)
    folder, number = RUNS / name, 1
    while not overwrite and _is_taken(following := RUNS / f"{name}-{number + 1}"):
        folder, number = following, number + 1
    return folder


@contextmanager
def locked(folder: Path, setting: str = "training.output") -> Iterator[None]:
    """A context in which no other process on this machine may write to a folder.

    The lock is the operating system's: it ends with the process, however that ends. Other ranks of the same
    job do not take it.

    Args:
        folder: the folder of a run or a study.
        setting: the setting that chose it, for messages.

    Raises:
        ValueError: another process holds it.
    """
    if not distributed.is_main():
        yield
        return
    try:
        descriptor = open_locked(folder / LOCK)
    except BlockingIOError as error:
        owner = (folder / LOCK).read_text(errors="replace").strip() or "another process"
        raise ValueError(
            f"{folder} is being written by {owner}. Wait for it to end, or choose another {setting}."
        ) from error
    with open(descriptor, "r+") as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _check_only_a_run(folder: Path, old: set[str]) -> None:
    if not old:
        return
    foreign = sorted(name for name in old - ENTRIES if not is_partial(name))
    if foreign:
        raise ValueError(
            f"training.overwrite=true deletes only runs, but {folder} also holds {foreign[0]}. Move it away, "
            "or choose another training.output."
        )
    missing = [name for name in ALWAYS_PRESENT if name not in old]
    if missing:
        raise ValueError(
            f"training.overwrite=true deletes only runs, and {folder} does not look like one: it has no "
            f"{missing[0]}. Delete the folder yourself, or choose another training.output."
        )


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _is_taken(folder: Path) -> bool:
    """Whether a file or a non-empty folder exists at this path."""
    return bool(_entries(folder)) if folder.is_dir() else folder.exists()
