"""`vicur diagnose ANALYSIS` of models, and of finished sweeps."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.findings import present
from vicur.cli.terminal import passing_bar
from vicur.diagnose.advantage import AdvantageSettings, visual_advantage_of
from vicur.diagnose.attention import AttentionSettings, attention_of_the_sink
from vicur.diagnose.gradients import GradientsSettings, gradients_by_dependency
from vicur.diagnose.stability import StabilitySettings, stability_of_models, stability_settings
from vicur.diagnose.tokens import TokensSettings, tokens_of_responses
from vicur.reporting.sweep import SweepsSettings, sweeps_together
from vicur.settings.schema import schema_of


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
