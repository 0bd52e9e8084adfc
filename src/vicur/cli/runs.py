"""`vicur diagnose gap | leakage | time | drift`: analyses of what runs have recorded; no model is loaded."""

from __future__ import annotations

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.findings import present
from vicur.reporting.drift import DriftSettings, drift_over_training
from vicur.reporting.gap import GapSettings, gap_over_training
from vicur.reporting.leakage import LeakageSettings, leakage_over_training
from vicur.reporting.phases import TimeSettings, time_of_runs


def gap(settings: GapSettings, arguments: Arguments, console: Console) -> None:
    """The teacher-student gap over training."""
    present("gap", gap_over_training, settings, arguments, console)


def leakage(settings: LeakageSettings, arguments: Arguments, console: Console) -> None:
    """Hint leakage by epoch."""
    present("leakage", leakage_over_training, settings, arguments, console)


def time(settings: TimeSettings, arguments: Arguments, console: Console) -> None:
    """Time by phase."""
    present("time", time_of_runs, settings, arguments, console)


def drift(settings: DriftSettings, arguments: Arguments, console: Console) -> None:
    """Drift of the responses."""
    present("drift", drift_over_training, settings, arguments, console)
