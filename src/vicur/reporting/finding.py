"""The result of an analysis: numbers for a file, a figure, and lines for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from vicur.files import write_text
from vicur.paths import check_file
from vicur.reporting.figures import styled, write_figure
from vicur.settings.section import PathText, section

FIGURE_FORMATS = (".svg", ".png")


@section
class FindingOutput:
    """Where an analysis writes its results."""

    output: PathText | None = None
    """Folder for NAME.json, NAME.svg and NAME.png; null to print the table only."""
    overwrite: bool = False
    """Whether to replace these files if they exist."""


@dataclass(frozen=True)
class Finding:
    """The result of an analysis.

    Attributes:
        name: name of the analysis and of its files, e.g. "gap".
        values: the numbers, JSON-serialisable, with their units in the names or under "units".
        draw: makes the figure; called only if it is written or shown.
        tables: tables for the terminal.
        notes: sentences about the result: how to read it, and what is missing.
    """

    name: str
    values: dict[str, Any]
    draw: Callable[[], Figure]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def write(self, folder: Path, *, replace: bool = False) -> list[Path]:
        """Write the numbers and the figure.

        Raises:
            OSError: a file exists and must not be replaced, or cannot be written.
        """
        paths = paths_of(self.name, folder)
        record = {"analysis": self.name, **self.values, "notes": list(self.notes)}
        write_text(paths[0], json.dumps(finite(record), indent=2) + "\n", replace=replace)
        with styled():
            figure = self.draw()
        for path in paths[1:]:
            write_figure(figure, path, replace=replace)
        return paths


def paths_of(name: str, folder: Path) -> list[Path]:
    """The files of an analysis in a folder."""
    return [folder / f"{name}{suffix}" for suffix in (".json", *FIGURE_FORMATS)]


def check_outputs(name: str, to: FindingOutput) -> None:
    """Make sure, before anything expensive runs, that the files can be written.

    Raises:
        ValueError: one of them exists and must not be replaced, or cannot be written.
    """
    if to.output is None:
        return
    for path in paths_of(name, Path(to.output)):
        check_file(path, "output", overwrite=to.overwrite)


def finite(value: Any) -> Any:
    """A value for JSON, in which numbers that are not finite are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
