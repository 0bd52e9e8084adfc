"""What the help of commands says."""

from __future__ import annotations

from vicur.cli.commands import COMMANDS
from vicur.packaged import packaged_names


def test_the_help_of_study_names_the_packaged_studies():
    study = next(command for command in COMMANDS if command.name == "study")
    assert study.argument is not None
    assert study.argument.help.endswith(": " + ", ".join(packaged_names("studies")))
