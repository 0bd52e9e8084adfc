"""`vicur quickstart` and `vicur study`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_config
from vicur.settings.schema import schema_of
from vicur.studies.quickstart import run_quickstart
from vicur.studies.study import StudyConfig, load_study, run_study, summarise
from vicur.studies.tables import headlines, study_table


def quickstart(arguments: Arguments, console: Console) -> None:
    """Run the study "quickstart", and draw its picture.

    Raises:
        ValueError: the output folder already holds a study.
    """
    config = arguments.load(StudyConfig)
    config = config if config.output is not None else replace(config, output="quickstart")
    if arguments.printing:
        print_config(config)
        return
    _print_summary(run_quickstart(config, console), console)
    console.print(f"Picture: {config.output}/showcase.png   All numbers: {config.output}/summary.json")


def study(arguments: Arguments, console: Console) -> None:
    """Run a study.

    Raises:
        ValueError: there is no such study, or the output folder already holds one.
    """
    assert arguments.word is not None, "the command requires it"
    schema = schema_of(StudyConfig, arguments.command.name)
    layers = [schema.override(pair) for pair in arguments.overrides if _is_of_study(pair)]
    config = schema.load([*arguments.layers(schema), *layers])
    config = config if config.output is not None else replace(config, output=f"studies/{_stem(arguments)}")
    if arguments.printing:
        print_config(config)
        return
    definition = load_study(arguments.word, [pair for pair in arguments.overrides if not _is_of_study(pair)])
    outcomes = run_study(definition, config, console)
    _print_summary(summarise(definition, outcomes), console)
    console.print(f"All numbers: {config.output}/summary.json", markup=False)


def _is_of_study(pair: str) -> bool:
    """Whether an override is a setting of the study, and not of its recipes."""
    return pair.removeprefix("--").partition("=")[0].replace("-", "_") in schema_of(StudyConfig).kinds


def _stem(arguments: Arguments) -> str:
    return Path(arguments.word or "").stem


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    console.print(study_table(summary))
    for sentence in headlines(summary):
        console.print(sentence, highlight=False)
