"""Settings that several analyses share: recorded runs, or problems for models."""

from __future__ import annotations

from dataclasses import field

from vicur.data.sources import DataConfig, FileSource, skipping_bad_rows
from vicur.diagnose.finding import FindingOutput
from vicur.progress import Bars
from vicur.reporting.runs import RecordedRun, open_runs
from vicur.settings.section import Count, PathText, Text, section


@section
class RunsSettings(FindingOutput):
    """Recorded runs to compare."""

    runs: list[PathText] = field(default_factory=list)
    """Folders of the runs."""
    names: list[Text] = field(default_factory=list)
    """A name for each run in tables and figures; by default the end of its path."""
    smooth: Count = 1
    """Number of steps over which curves are averaged; 1 for no smoothing. Tables and JSON are not
    smoothed."""

    def open(self) -> list[RecordedRun]:
        """The runs.

        Raises:
            ValueError: none is given, or a folder is not that of a run.
        """
        if not self.runs:
            raise ValueError("Give the folder of at least one run.")
        return open_runs(self.runs, self.names)


@section
class ProblemsSettings(FindingOutput):
    """Problems that models are run on."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The problems; `data.train` is the file, folder or hub id. Unreadable rows are skipped by default."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""

    def open(self, bars: Bars | None = None) -> FileSource:
        """The problems.

        Args:
            bars: progress bars; silent if not given.

        Raises:
            ValueError: they cannot be read, or there is none.
        """
        source = self.data.open(progress=None if bars is None else bars("checking the data").over)
        if not len(source):
            raise ValueError(f"{source.name} has no problem.")
        return source if self.problems is None else source.select(range(min(self.problems, len(source))))
