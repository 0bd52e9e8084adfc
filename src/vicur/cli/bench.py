"""`vicur bench latency | step`."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from vicur.bench.latency import LatencySettings, latency_of_models
from vicur.bench.step import StepSettings, load_recipes, step_times
from vicur.cli.command import Arguments
from vicur.cli.findings import present
from vicur.cli.terminal import passing_bar


def latency(settings: LatencySettings, arguments: Arguments, console: Console) -> None:
    """Time of prefill and decoding, of a model and its base."""
    present("latency", partial(latency_of_models, bars=passing_bar), settings, arguments, console)


def read_step_settings(arguments: Arguments) -> StepSettings:
    """The settings of `vicur bench step`; those for the recipes are checked, too.

    Raises:
        SettingsError: a setting does not exist or does not fit.
    """
    settings = arguments.load_own(StepSettings)
    if settings.recipes:
        load_recipes(settings, arguments.recipe_overrides)
    return settings


def step(settings: StepSettings, arguments: Arguments, console: Console) -> None:
    """Time of a training step of several recipes."""
    measure = partial(step_times, overrides=arguments.recipe_overrides, bars=passing_bar)
    present("step", measure, settings, arguments, console)
