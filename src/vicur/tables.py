"""Tables for the terminal and in Markdown. Texts come from data: nothing in them is markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vicur.wording import printable


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table for the terminal: the first column is text, the others are right-aligned.

    Args:
        title: its title; "" for none.
        columns: heads of the columns.
        rows: cells; numbers have three digits, and None is a dash.
    """
    table = Table(title=title or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        head = escape(printable(column))
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return escape(printable(f"{value:.3g}" if isinstance(value, float) else str(value)))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line end behind it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)


def _markdown_cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
