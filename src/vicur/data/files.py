"""Files that are whole or absent, however a run ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1000
"""Rows that are written, and later read, at a time."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there; remove it if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON."""
    write_whole(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n"))


def write_rows(
    path: Path, rows: Sequence[dict[str, Any]], types: dict[str, pa.DataType] | None = None
) -> None:
    """Write rows as parquet.

    Args:
        path: the file.
        rows: at least one; all with the same keys.
        types: of columns that may hold nothing but None, whose type could not be inferred.
    """
    table = pa.Table.from_pylist(list(rows))
    for name, kind in (types or {}).items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(kind))
    write_whole(path, lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP))
