"""`vicur cuebench make` and `vicur cuebench pretrain`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_config
from vicur.cuebench.generate import MakeSettings, write_parquet
from vicur.cuebench.pretrain import PretrainSettings, pretrain_checkpoint
from vicur.paths import check_file, check_folder


def make(arguments: Arguments, console: Console) -> None:
    """Write problems as a parquet file.

    Raises:
        ValueError: the file cannot be written.
    """
    settings = arguments.load(MakeSettings)
    if arguments.printing:
        print_config(settings)
        return
    out = Path(settings.out)
    check_file(out, "--out")
    with console.status(f"drawing {settings.n} problems"):
        write_parquet(settings.family, settings.split, settings.n, out, seed=settings.seed)
    console.print(f"{settings.n} {settings.family} problems ({settings.split}) are in {out}.", markup=False)


def pretrain(arguments: Arguments, console: Console) -> None:
    """Train one of the tiny models from scratch.

    Raises:
        ValueError: the folder is not free.
    """
    settings = arguments.load(PretrainSettings)
    if arguments.printing:
        print_config(settings)
        return
    check_folder(Path(settings.out), "--out")
    pretrain_checkpoint(settings.size, Path(settings.out), settings.seed, console.print)
