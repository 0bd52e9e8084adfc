"""Settings that several analyses share: the problems that models are run on."""

from __future__ import annotations

from dataclasses import field

from vicur.data.sources import DataConfig, FileSource, skipping_bad_rows
from vicur.progress import Bars
from vicur.reporting.finding import FindingOutput
from vicur.settings.section import Count, section


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
