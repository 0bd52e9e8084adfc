"""What all analyses do with their result: print its tables and notes, and write its numbers and figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_json, print_text
from vicur.reporting.finding import Finding, FindingOutput, check_outputs, finite

Settings = TypeVar("Settings", bound=FindingOutput)


def present(
    name: str,
    analyse: Callable[[Settings], Finding],
    settings: Settings,
    arguments: Arguments,
    console: Console,
) -> None:
    """Run an analysis, print its result, and write it.

    Raises:
        ValueError: a setting does not fit, or an output cannot be written.
    """
    check_outputs(name, settings)
    finding = analyse(settings)
    if "--json" in arguments.switches:
        print_json(finite(finding.values))
    else:
        print_finding(finding, console)
    if settings.output is not None:
        paths = finding.write(Path(settings.output), replace=settings.overwrite)
        if "--json" not in arguments.switches:
            print_text(f"Written: {', '.join(map(str, paths))}", console)


def print_finding(finding: Finding, console: Console) -> None:
    """Print the tables and notes of a result."""
    for table in finding.tables:
        print_text(str(table.title or ""), console)  # as a title it would be wrapped to the table's width
        table.title = None
        console.print(table)
    for note in finding.notes:
        print_text(note, console)
