"""`vicur quickstart` and `vicur study`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import print_text
from vicur.studies.outcomes import summarise
from vicur.studies.quickstart import run_quickstart
from vicur.studies.runner import StudyConfig, run_study
from vicur.studies.study import Study, load_study
from vicur.studies.tables import headlines, study_table


def quickstart_config(arguments: Arguments) -> StudyConfig:
    """The size of the quickstart; its results go to the folder "quickstart" unless set otherwise."""
    return _with_folder(arguments.load(StudyConfig), "quickstart")


def quickstart(config: StudyConfig, arguments: Arguments, console: Console) -> None:
    """Run the study "quickstart", and draw its picture.

    Raises:
        ValueError: the output folder holds another study.
    """
    _print_summary(run_quickstart(config, console), console)
    print_text(f"Picture: {config.output}/showcase.png   All numbers: {config.output}/summary.json", console)


def study_config(arguments: Arguments) -> StudyConfig:
    """The size of a study; its results go to a folder of its name unless set otherwise."""
    assert arguments.word is not None, "the command requires it"
    config = arguments.load_own(StudyConfig)
    _study(arguments)  # the settings for its recipes are checked, too
    return _with_folder(config, f"studies/{Path(arguments.word).stem}")


def study(config: StudyConfig, arguments: Arguments, console: Console) -> None:
    """Run a study.

    Raises:
        ValueError: there is no such study, or the output folder holds another one.
    """
    definition = _study(arguments)
    outcomes = run_study(definition, config, console)
    _print_summary(summarise(definition, outcomes), console)
    print_text(f"All numbers: {config.output}/summary.json", console)


def _study(arguments: Arguments) -> Study:
    """The study, its recipes with the overrides that are not settings of the study itself."""
    assert arguments.word is not None, "the command requires it"
    return load_study(arguments.word, arguments.recipe_overrides)


def _with_folder(config: StudyConfig, folder: str) -> StudyConfig:
    return config if config.output is not None else replace(config, output=folder)


def _print_summary(summary: dict[str, Any], console: Console) -> None:
    console.print(study_table(summary))
    for sentence in headlines(summary):
        print_text(sentence, console)
