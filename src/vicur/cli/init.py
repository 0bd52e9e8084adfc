"""The command `vicur init`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_addition, print_json, print_text
from vicur.models.augment import InitSettings, describe, save_augmented
from vicur.models.checkpoints import read_config, saved_dtype
from vicur.models.load import StudentConfig, check_free, load_student
from vicur.paths import check_folder


def init(settings: InitSettings, arguments: Arguments, console: Console) -> None:
    """Write a checkpoint with cue recovery, or print what would be added.

    Raises:
        ValueError: the base cannot be used, or the folder is not free.
    """
    dry_run, as_json = "--dry-run" in arguments.switches, "--json" in arguments.switches
    if settings.output is None and not dry_run:
        raise ValueError("--output is required unless --dry-run is given.")
    if settings.output is not None:
        check_free(Path(settings.output))
        check_folder(Path(settings.output), "--output")
    recovery = replace(settings.recovery, enabled=True)
    addition = describe(settings.base, recovery)
    if as_json:
        print_json(addition.as_dict())
    else:
        print_addition(addition, console)
    if dry_run or settings.output is None:
        return
    dtype = settings.dtype or saved_dtype(read_config(settings.base))
    torch.manual_seed(settings.seed)
    student = StudentConfig(settings.base, recovery, dtype)
    out = Path(settings.output)
    loaded = passing_bar("loading the base").during(lambda: load_student(student))
    passing_bar("writing").during(lambda: save_augmented(loaded, settings.base, recovery, out))
    if not as_json:
        print_text(f"Wrote the student to {out}.", console)
