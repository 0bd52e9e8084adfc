"""`vicur diagnose ANALYSIS`: run an analysis, print its table, and write its numbers and figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_json, print_text
from vicur.diagnose.advantage import AdvantageSettings, visual_advantage_of
from vicur.diagnose.attention import AttentionSettings, attention_of_the_sink
from vicur.diagnose.gradients import GradientsSettings, gradients_by_dependency
from vicur.diagnose.stability import StabilitySettings, stability_of_models, stability_settings
from vicur.diagnose.tokens import TokensSettings, tokens_of_responses
from vicur.reporting.drift import DriftSettings, drift_over_training
from vicur.reporting.finding import Finding, FindingOutput, check_outputs, finite
from vicur.reporting.gap import GapSettings, gap_over_training
from vicur.reporting.leakage import LeakageSettings, leakage_over_training
from vicur.reporting.phases import TimeSettings, time_of_runs
from vicur.reporting.sweep import SweepsSettings, sweeps_together
from vicur.settings.schema import schema_of

Settings = TypeVar("Settings", bound=FindingOutput)


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


def sweeps(settings: SweepsSettings, arguments: Arguments, console: Console) -> None:
    """Several finished sweeps in one figure."""
    present("sweeps", sweeps_together, settings, arguments, console)


def advantage(settings: AdvantageSettings, arguments: Arguments, console: Console) -> None:
    """The distribution of visual advantage over tokens, and its path over training."""
    analyse = partial(visual_advantage_of, bars=passing_bar)
    present("advantage", analyse, settings, arguments, console)


def gradients(settings: GradientsSettings, arguments: Arguments, console: Console) -> None:
    """Angles between the language, visual and standard gradient."""
    analyse = partial(gradients_by_dependency, bars=passing_bar)
    present("gradients", analyse, settings, arguments, console)


def tokens(settings: TokensSettings, arguments: Arguments, console: Console) -> None:
    """Measures of every token of a response under several models."""
    present("tokens", partial(tokens_of_responses, bars=passing_bar), settings, arguments, console)


def attention(settings: AttentionSettings, arguments: Arguments, console: Console) -> None:
    """Attention of the recovery module's sink."""
    present("attention", attention_of_the_sink, settings, arguments, console)


def read_stability(arguments: Arguments) -> StabilitySettings:
    """The settings of `vicur diagnose stability`: those of the command line over those of its preset.

    Raises:
        SettingsError: a setting does not exist or does not fit.
    """
    schema = schema_of(StabilitySettings, arguments.command.name)
    return stability_settings(schema, [*arguments.layers(schema), *schema.overrides(arguments.overrides)])


def stability(settings: StabilitySettings, arguments: Arguments, console: Console) -> None:
    """Repeated answers to the same problem."""
    present("stability", partial(stability_of_models, bars=passing_bar), settings, arguments, console)


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
        for table in finding.tables:
            print_text(table.title or "", console)  # as a title it would be wrapped to the table's width
            table.title = None
            console.print(table)
        for note in finding.notes:
            print_text(note, console)
    if settings.output is not None:
        paths = finding.write(Path(settings.output), replace=settings.overwrite)
        if "--json" not in arguments.switches:
            print_text(f"Written: {', '.join(map(str, paths))}", console)
