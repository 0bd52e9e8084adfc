"""`vicur bench latency | step`."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from vicur.bench.latency import LatencySettings, latency_of_models
from vicur.bench.step import StepSettings, load_recipes, step_times
from vicur.cli.command import Arguments
from vicur.cli.diagnose import present
from vicur.cli.terminal import passing_bar
from vicur.settings.schema import schema_of


def latency(settings: LatencySettings, arguments: Arguments, console: Console) -> None:
    """Time of prefill and decoding, of a model and its base."""
    present("latency", partial(latency_of_models, bars=passing_bar), settings, arguments, console)


def read_step_settings(arguments: Arguments) -> StepSettings:
    """The settings of `vicur bench step`; those for the recipes are checked, too.

    Raises:
        SettingsError: a setting does not exist or does not fit.
    """
    schema = schema_of(StepSettings, arguments.command.name)
    layers = schema.overrides(pair for pair in arguments.overrides if _is_of_bench(pair))
    settings = schema.load([*arguments.layers(schema), *layers])
    if settings.recipes:
        load_recipes(settings, _recipe_overrides(arguments))
    return settings


def step(settings: StepSettings, arguments: Arguments, console: Console) -> None:
    """Time of a training step of several recipes."""
    measure = partial(step_times, overrides=_recipe_overrides(arguments), bars=passing_bar)
    present("step", measure, settings, arguments, console)


def _recipe_overrides(arguments: Arguments) -> list[str]:
    return [pair for pair in arguments.overrides if not _is_of_bench(pair)]


def _is_of_bench(pair: str) -> bool:
    """Whether an override is a setting of the benchmark, and not of the recipes."""
    return pair.removeprefix("--").partition("=")[0].replace("-", "_") in schema_of(StepSettings).kinds
