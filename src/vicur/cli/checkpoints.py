"""The commands `vicur export` and `vicur replay`."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_text, say
from vicur.run.export import ExportConfig
from vicur.run.export import export as export_checkpoint
from vicur.run.replay import replay as replay_update
from vicur.settings.section import PathText, section


def export(config: ExportConfig, arguments: Arguments, console: Console) -> None:
    """Write the model of a checkpoint as a Hugging Face folder."""
    saved = export_checkpoint(config, say)
    print_text(f"Wrote the model of step {saved.state.step} to {config.output}.", console)


@section
class ReplayConfig:
    """The skipped update to repeat."""

    folder: PathText = ""
    """Folder of the update, in nonfinite/ of a run's folder."""


def replay(config: ReplayConfig, arguments: Arguments, console: Console) -> None:
    """Repeat a skipped update, and print which numbers are not finite, in the order of computation."""
    findings = replay_update(Path(config.folder), passing_bar)
    table = Table("", "not finite", "of", "first", box=SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        table.add_row(finding.what, f"{finding.bad:,}", f"{finding.total:,}", finding.first or "")
    console.print(table)
    first = next((finding for finding in findings if finding.bad), None)
    print_text(
        "Everything is finite now."
        if first is None
        else f"First to be not finite, in the order of computation: {first.what}.",
        console,
    )
