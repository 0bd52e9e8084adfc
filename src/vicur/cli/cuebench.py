"""`vicur cuebench make` and `vicur cuebench pretrain`."""

from __future__ import annotations

import functools
from pathlib import Path

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_text
from vicur.cuebench.generate import MakeSettings, write_parquet
from vicur.cuebench.pretrain import PretrainSettings, pretrain_checkpoint
from vicur.paths import check_file, check_folder
from vicur.wording import counted


def make(settings: MakeSettings, arguments: Arguments, console: Console) -> None:
    """Write problems as a parquet file.

    Raises:
        ValueError: the file exists already, or cannot be written.
    """
    out = Path(settings.output)
    check_file(out, "--output", overwrite=settings.overwrite)
    with console.status(f"drawing {settings.n} problems"):
        write_parquet(
            settings.family,
            settings.split,
            settings.n,
            out,
            seed=settings.seed,
            replace=settings.overwrite,
        )
    problems = counted(settings.n, "problem")
    print_text(f"Wrote {problems} to {out} (family {settings.family}, split {settings.split}).", console)


def pretrain(settings: PretrainSettings, arguments: Arguments, console: Console) -> None:
    """Train one of the tiny models from scratch.

    Raises:
        ValueError: the folder is not free.
    """
    check_folder(Path(settings.output), "--output")
    report = functools.partial(print_text, console=console)
    pretrain_checkpoint(settings.size, Path(settings.output), settings.seed, report)
