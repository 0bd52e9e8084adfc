"""Printed output of commands: additions by recovery, inspections of data, and preflight results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vicur.consoles import error_console
from vicur.progress import Progress
from vicur.wording import counted, listed, printable

if TYPE_CHECKING:  # what is printed is handed in; no model is needed to print it
    from vicur.encoding.inspect import Inspection, Spread
    from vicur.models.augment import Addition
    from vicur.preflight.checks import Check, Preflight
    from vicur.preflight.memory import MemoryEstimate

GIB = 2**30
MARKS = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[dim]n/a[/]"}


def print_text(text: object, console: Console) -> None:
    """Print a text: no markup, no colours, no line breaks of ours, no control characters of its own."""
    console.print(printable(str(text)), markup=False, highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence on standard error."""
    print_text(sentence, error_console())


def passing_bar(title: str) -> Progress:
    """A progress bar that disappears when it is full."""
    return Progress(title, transient=True)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_addition(addition: Addition, console: Console) -> None:
    """Parameters by layer and in all."""
    table = Table("after decoder layer", "new parameters", box=None)
    for layer, count in addition.layers.items():
        table.add_row(str(layer), f"{count:,}")
    table.add_row("norms (shared)", f"{addition.norms:,}")
    table.add_row("total", f"{addition.added:,}")
    console.print(table)
    console.print(
        f"Parameters: {addition.base:,} in the base, {addition.total:,} with cue recovery "
        f"({100 * addition.share:.2f} % new).",
        highlight=False,
    )


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print the statistics of a source, and one problem as student and teacher see it."""
    table = Table(box=None, show_header=False)
    table.add_row("rows", f"{inspection.rows:,} ({inspection.problems:,} usable)")
    for kind, count in inspection.bad_rows.items():
        table.add_row("bad rows", f"{count} {kind}")
    fields = ", ".join(f"{ours} <- {column}" for ours, column in inspection.schema.items())
    table.add_row("fields", _cell(fields))
    table.add_row("unused columns", _cell(listed(inspection.unused)))
    table.add_row("without an answer", str(inspection.without_answer))
    table.add_row("with a target response", str(inspection.with_target_response))
    if inspection.with_choices:
        table.add_row("with options", str(inspection.with_choices))
    table.add_row("images per problem", _counts(inspection.images_per_problem) or "none")
    if inspection.images:
        table.add_row(
            "images decoded", f"{inspection.decoded_images} of {inspection.images}, the teacher's included"
        )
    if set(inspection.videos_per_problem) - {0}:
        table.add_row("videos per problem", _counts(inspection.videos_per_problem))
        table.add_row("frames per video", _spread(inspection.video_frames, "{:.0f}"))
    table.add_row("image width", _spread(inspection.image_width, "{:.0f}"))
    table.add_row("image height", _spread(inspection.image_height, "{:.0f}"))
    table.add_row("megapixels", _spread(inspection.image_megapixels, "{:.3f}"))
    if inspection.prompt_tokens is not None:
        table.add_row("student's prompt, tokens", _spread(inspection.prompt_tokens, "{:.0f}"))
        table.add_row("teacher's prompt, tokens", _spread(inspection.teacher_prompt_tokens, "{:.0f}"))
    privileges = ", ".join(f"{kind} {count}" for kind, count in inspection.privileges.items())
    table.add_row("privileges", _cell(privileges))
    console.print(table, highlight=False)
    notes = list(inspection.notes)
    if inspection.problems and set(inspection.images_per_problem) | set(inspection.videos_per_problem) == {0}:
        notes.append("No problem has an image or a video; an image column may not have been recognised.")
    if not inspection.problems:
        notes.append("No row can be used.")
    notes += [
        f"{inspection.bad_rows[kind]} {kind}, first: {row}" for kind, row in inspection.first_bad_rows.items()
    ]
    for note in notes:
        print_text(note, console)
    if inspection.example_id is not None:
        _prompt(f"Student's prompt for problem {inspection.example_id}", inspection.student_sees, console)
        _prompt("Teacher's prompt", inspection.teacher_sees, console)


def print_preflight(preflight: Preflight, console: Console) -> None:
    """The prompts of one problem, and every check."""
    _prompt("Student's prompt", preflight.student_prompt, console)
    if preflight.teacher_prompt is not None:
        _prompt("Teacher's prompt", preflight.teacher_prompt, console)
    console.print(checks_table(preflight.checks))


def checks_table(checks: tuple[Check, ...]) -> Table:
    """One line for each check."""
    table = Table("check", "", "result", box=None)
    for check in checks:
        table.add_row(_cell(check.name), MARKS[check.passed], _cell(check.finding))
    return table


def print_memory(estimate: MemoryEstimate, available: int | None, console: Console) -> None:
    """The estimated peak by purpose, and the memory of the device.

    Args:
        estimate: the estimate of one process.
        available: bytes that the process may use on the device; None if unknown.
        console: console to print on.
    """
    table = Table("estimated peak memory", "GiB", box=None)
    for name, count in estimate.parts.items():
        table.add_row(name, f"{count / GIB:.2f}")
    total = estimate.total
    table.add_row("total", f"{total / GIB:.2f}")
    console.print(table)
    if available is not None:
        short = " That is less than the estimate." if total > available else ""
        console.print(f"The device has {available / GIB:.1f} GiB.{short}", highlight=False)
    if estimate.cpu:
        cpu = ", ".join(f"{name} {count / GIB:.2f} GiB" for name, count in estimate.cpu.items())
        console.print(f"In CPU memory: {cpu}.", highlight=False)


def _prompt(title: str, text: str, console: Console) -> None:
    console.rule(_cell(title), align="left")
    print_text(text, console)
    console.rule()


def _cell(text: str) -> str:
    """A text for a cell of a table or a title: no markup, and measured as it will be printed."""
    return escape(printable(text))


def _counts(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{number} ({counted(count, 'problem')})" for number, count in counts.items())


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "none"
    if spread.low == spread.high:
        return f"{form.format(spread.low)} (all)"
    values = {
        "min": spread.low,
        "5 %": spread.p5,
        "median": spread.p50,
        "95 %": spread.p95,
        "max": spread.high,
    }
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())
