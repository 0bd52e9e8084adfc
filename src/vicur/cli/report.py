"""The command `vicur report`."""

from __future__ import annotations

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_text, say
from vicur.paths import check_file
from vicur.reporting.papers import tables_against_paper
from vicur.reporting.report import Report
from vicur.run.reports import REPORT, ReportSettings, lookup_of


def report(settings: ReportSettings, arguments: Arguments, console: Console) -> None:
    """Write the report of one or several runs.

    Raises:
        ValueError: a folder is not that of a run, or the page cannot be written.
        OSError: it cannot be written.
    """
    runs = settings.open()
    path = settings.path(runs)
    renews = settings.overwrite or path in [run.folder / REPORT for run in runs]  # a run's own page
    check_file(path, "output", overwrite=renews)
    lookups = {}
    for run in runs if settings.media else ():
        try:
            lookups[run.name] = lookup_of(run)
        except (ValueError, OSError) as error:
            say(f"{run.name}: images and hints are left out: {error}")
    scores = []
    if settings.against_paper:
        scores = tables_against_paper(
            runs[0].name, runs[0].recipe["training"]["name"], settings.against_paper
        )
    page = Report(runs, lookups, settings.responses, scores, settings.smooth)
    page.write(path, replace=renews)
    for name, alarm in page.alarms():
        print_text(f"Alarm, {name}, {alarm.kind}: {alarm.text}", console)
    for scored in scores:
        print_text(f"{scored.title}: harness {scored.harness}; judge {scored.judge}", console)
        for score in scored.scores:
            interval = "" if score.interval is None else " [{:.1f}, {:.1f}]".format(*score.interval)
            print_text(f"  {score.benchmark} {score.value:.2f}{interval}", console)
    print_text(f"Report: {path}", console)
