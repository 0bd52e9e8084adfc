"""The folder of a run: how it is named, when it is refused, and what may be deleted in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from vicur.paths import check_folder

RUNS = Path("runs")
"""Folder for the runs that name no folder of their own."""
CERTAIN = ("recipe.yaml", "status.json")
"""Files that every run has from its start."""
ENTRIES = frozenset(
    (
        *("recipe.yaml", "environment.json", "metrics.jsonl", "status.json", "memory.json"),
        *("summary.json", "summary.md", "rollouts", "validation", "checkpoints"),
    )
)
"""All that a run writes at the top of its folder."""


def run_folder(name: str, output: str | None, *, overwrite: bool = False) -> Path:
    """The folder that a run will have: `output` if given, else runs/NAME with the first number that is free.

    Args:
        name, output, overwrite: as in `TrainingConfig`. To overwrite a run without an `output` means
            runs/NAME itself.
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
        ValueError: it is a file, or holds a run that is not to be overwritten, or is to be overwritten and
            holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file. Choose another training.output.")
    check_folder(folder, "training.output")
    old = _entries(folder)
    if overwrite:
        _check_only_a_run(folder, old)
    elif old & ENTRIES:
        raise ValueError(
            f"{folder} already holds a run. Set training.overwrite=true to delete that run, or choose "
            "another training.output."
        )


def remove_run(folder: Path) -> None:
    """Delete what a run has written. The folder itself stays, and so do links' targets.

    Raises:
        ValueError: the folder holds something that no run writes.
    """
    old = _entries(folder)
    _check_only_a_run(folder, old)
    for name in old:
        entry = folder / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_only_a_run(folder: Path, old: set[str]) -> None:
    if not old:
        return
    foreign = sorted(old - ENTRIES)
    if foreign:
        raise ValueError(
            f"training.overwrite=true deletes nothing but a run, and {folder} also holds {foreign[0]}. Move "
            "it away, or choose another training.output."
        )
    missing = [name for name in CERTAIN if name not in old]
    if missing:
        raise ValueError(
            f"training.overwrite=true deletes nothing but a run, and {folder} has no {missing[0]}. Delete it "
            "yourself, or choose another training.output."
        )


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _is_taken(folder: Path) -> bool:
    """Whether there is anything: an empty folder is free."""
    return bool(_entries(folder)) if folder.is_dir() else folder.exists()
