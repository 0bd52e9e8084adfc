"""Settings that the analyses of recorded runs share."""

from __future__ import annotations

from dataclasses import field

from vicur.reporting.finding import FindingOutput
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
