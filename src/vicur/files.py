"""Writes files atomically: however a run ends, a file is complete or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1000
"""Number of rows in a group of a parquet file, which are written, and later read, together."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, then rename it to `path`; remove it if writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    write_whole(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n"))


def write_rows(
    path: Path, rows: Sequence[dict[str, Any]], types: dict[str, pa.DataType] | None = None
) -> None:
    """Write rows as parquet.

    Args:
        path: the file.
        rows: at least one; all with the same keys.
        types: types of columns that may hold only None, whose type cannot be inferred.
    """
    table = pa.Table.from_pylist(list(rows))
    for name, kind in (types or {}).items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(kind))
    write_whole(path, lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP))


def write_or_rescue(path: Path, write: Callable[[Path], object]) -> None:
    """Like `write_whole`, but if the file cannot be written, write it to the folder for temporary files.

    For results that took long or cost money: a full disk must not lose them.

    Raises:
        OSError: the file was not written; the message says where its content was saved instead, if anywhere.
    """
    try:
        write_whole(path, write)
    except OSError as error:
        reason = error.strerror or str(error)
        rescued = Path(tempfile.mkdtemp(prefix="vicur-")) / path.name
        try:
            write(rescued)
        except OSError:
            shutil.rmtree(rescued.parent, ignore_errors=True)
            raise OSError(f"{path} cannot be written: {reason}.") from error
        raise OSError(f"{path} cannot be written: {reason}. Its content was written to {rescued}.") from error


def folder_digest(folder: Path) -> str:
    """A digest of the names, sizes and modification times of a folder's files; "" if it does not exist."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
