"""The settings of the report that a run writes."""

from __future__ import annotations

from vicur.settings.section import Count, section


@section
class ReportConfig:
    """The report of a run."""

    enabled: bool = True
    """Whether the run writes report.html at its end, and after every evaluation and observation."""
    responses: Count = 120
    """Maximum number of responses in it."""
