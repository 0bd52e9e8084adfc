"""`vicur sweep`: train a recipe for each combination of values, and compare the accuracies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vicur import distributed
from vicur.cli.command import Arguments
from vicur.cli.findings import print_finding
from vicur.cli.train import Terminal
from vicur.evaluation.statistics import Estimate
from vicur.files import RECIPE_FILE, write_text
from vicur.paths import check_folder
from vicur.reporting.sweep import SWEEP, measured, sweep_finding, sweep_markdown
from vicur.studies.sweep import (
    PlannedRun,
    Sweep,
    SweepSettings,
    carry_out,
    categories_in,
    check_results,
    free_memory,
    plan_sweep,
    results_of,
)
from vicur.tables import plain_table
from vicur.training.folder import is_finished
from vicur.wording import counted


def read_sweep_settings(arguments: Arguments) -> SweepSettings:
    """The settings of the sweep itself; those for the recipes are checked, too.

    Raises:
        SettingsError: a setting does not exist or does not fit.
    """
    settings = arguments.load_own(SweepSettings)
    _plan(settings, arguments)
    return settings


def sweep(settings: SweepSettings, arguments: Arguments, console: Console) -> None:
    """Carry out a sweep, or print its runs.

    Raises:
        ValueError: the data, the recipes or the output folder do not fit.
    """
    if not distributed.launched_first():  # of several processes one prints
        console = Console(quiet=True)
    planned = _plan(settings, arguments)
    if "--dry-run" in arguments.switches:
        _print_runs(planned, console)
        return
    with distributed.shared_failures():
        _sweep(planned, Terminal(console))
    distributed.stop()


def _sweep(planned: Sweep, terminal: Terminal) -> None:
    check_folder(planned.folder, "--output")
    check_results(planned.folder)
    categories_in(planned)  # a wrong column is noticed before anything is trained
    sentences: set[str] = set()

    def say_once(sentence: str) -> None:
        if sentence not in sentences:
            sentences.add(sentence)
            terminal.say(sentence)

    runs = planned.runs
    for number, run in enumerate(runs, start=1):
        title = f"run {number} of {len(runs)}"
        is_new = carry_out(run, say_once, terminal.bar, terminal.bar(title, transient=False))
        free_memory()
        if distributed.is_main():
            _print_run(run, title, terminal, is_new=is_new)
    distributed.main_only(lambda: _finish(planned, terminal))


def _print_run(run: PlannedRun, title: str, terminal: Terminal, *, is_new: bool) -> None:
    accuracy = Estimate(**measured([run.folder])["accuracy"])
    before = "" if is_new else ", trained before"
    terminal.print(f"{title}, {run.folder}{before}: held-out accuracy {accuracy} %")


def _finish(planned: Sweep, terminal: Terminal) -> None:
    """Write and print the results."""
    values = results_of(planned)
    finding = sweep_finding(values)
    finding.write(planned.folder, replace=True)
    write_text(planned.folder / f"{SWEEP}.md", sweep_markdown(values))
    print_finding(finding, terminal.console)
    terminal.print(f"Results: {planned.folder}/{SWEEP}.json, .svg, .png and .md")


def _print_runs(planned: Sweep, console: Console) -> None:
    """Print the folder of each run and whether it has finished."""
    rows = [[str(run.folder), _state(run.folder)] for run in planned.runs]
    title = f"{counted(len(rows), 'run')} of {planned.recipe}"
    console.print(plain_table(title, ["folder", ""], rows))


def _state(folder: Path) -> str:
    if is_finished(folder):
        return "finished"
    return "begun" if (folder / RECIPE_FILE).is_file() else "new"


def _plan(settings: SweepSettings, arguments: Arguments) -> Sweep:
    assert arguments.word is not None, "the command requires it"
    return plan_sweep(arguments.word, settings, arguments.recipe_overrides)
