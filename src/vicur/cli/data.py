"""The command `vicur data inspect`."""

from __future__ import annotations

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_inspection, print_json
from vicur.encoding.inspect import InspectSettings, inspect_source
from vicur.encoding.prompts import PromptEncoder
from vicur.models.checkpoints import read_processor
from vicur.scoring.teacher import TeacherConfig


def inspect(settings: InspectSettings, arguments: Arguments, console: Console) -> None:
    """Print what a source holds, and why rows of it are bad.

    Raises:
        ValueError: it cannot be opened, or has no problem of the example's number.
    """
    source = settings.data.open(progress=passing_bar("checking the data").over, may_be_empty=True)
    encoder = None
    if settings.model is not None:
        processor, limits = read_processor(settings.model), settings.data.pixel_limits()
        encoder = PromptEncoder.for_lengths(processor, limits)
    view = TeacherConfig(privilege=settings.privilege).view
    bar = passing_bar("reading problems").over
    inspection = inspect_source(source, encoder, view, example=settings.example, progress=bar)
    if "--json" in arguments.switches:
        print_json(inspection.as_dict())
    else:
        print_inspection(inspection, console)
