"""Writes the user's own table with a column of cues, in the user's own format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vicur.data.sources import FileSource
from vicur.data.tables import ArrowTable, ListTable, Table
from vicur.files import ROW_GROUP, write_or_rescue
from vicur.paths import check_file
from vicur.settings.reading import parse_json

LONGEST_PATH = 1024
"""Maximum length of a path in characters. A longer text is not taken for a path."""


def check_output(
    table: Table, data: Path, out: Path, added: Sequence[str], *, replace: bool, overwrite: bool
) -> None:
    """Check that a table can be written with added columns, before any request is paid for.

    Args:
        table: the rows.
        data: name of the data that they were read from.
        out: the output file.
        added: names of the added columns.
        replace: whether columns may be replaced.
        overwrite: whether the output may exist.

    Raises:
        ValueError: the formats do not fit, a column already exists, or the output is the data itself.
    """
    as_text = isinstance(table, ListTable) and data.is_file()
    allowed = (".jsonl", ".json") if as_text else (".parquet",)
    if out.suffix not in allowed:
        raise ValueError(f"The output {out} must end in {' or '.join(allowed)}, the format of {data}.")
    check_file(out, "The output", table.files, overwrite=overwrite)
    names = {column.partition(".")[0] if isinstance(table, ListTable) else column for column in table.columns}
    existing = [name for name in added if name in names]
    if existing and not replace:
        raise ValueError(
            f"{data} already has a column {existing[0]}; set replace=true to replace it, or set new_column "
            "to another name."
        )


@dataclass(frozen=True)
class PathMove:
    """New paths for media that are named relative to the data's folder.

    Attributes:
        columns: the columns that hold media.
        folder: the folder that paths in the data are relative to.
        target: folder of the output, which they will be relative to.
    """

    columns: tuple[str, ...]
    folder: Path
    target: Path

    def value(self, value: Any) -> Any:
        """The entry of a column, with its paths moved."""
        if isinstance(value, list):
            return [self.value(entry) for entry in value]
        if isinstance(value, dict):
            named = value.get("bytes") is None and isinstance(value.get("path"), str)
            return {**value, "path": self.value(value["path"])} if named else value
        return self._path(value) if isinstance(value, str) else value

    def _path(self, text: str) -> str:
        if len(text) > LONGEST_PATH or text.startswith("data:") or Path(text).is_absolute():
            return text
        file = self.folder / text
        return os.path.relpath(file, self.target) if file.exists() else text


def mover(table: Table, source: FileSource, out: Path) -> PathMove | None:
    """The change that makes media paths relative to the output's folder; None if there is nothing to change.

    Paths may not lead outside the folder of the file that holds them, so nothing is changed if the media are
    not inside the output's folder.

    Args:
        table: the rows.
        source: the same rows, read as problems.
        out: the output file.
    """
    folder, target = table.folders[0].resolve(), out.parent.resolve()
    columns = [source.schema.get(field) for field in ("images", "videos")]
    if folder == target or not folder.is_relative_to(target):
        return None
    return PathMove(tuple(name for name in columns if name is not None and "." not in name), folder, target)


def write_output(
    table: Table,
    out: Path,
    rows: Sequence[int],
    added: Mapping[str, Sequence[Any]],
    types: Mapping[str, Any],
    move: PathMove | None = None,
    *,
    replace: bool,
    before: Callable[[Path], object] = lambda partial: None,
) -> None:
    """Write rows with added columns; the file is written completely or not at all.

    Args:
        table: the table that the rows come from.
        out: the output file: .parquet, .json or .jsonl.
        rows: numbers of the rows, ascending.
        added: the columns, a value for each of these rows; a column of that name is replaced in its place.
        types: Arrow types of the columns.
        move: new paths for media.
        replace: whether a file that exists is replaced.
        before: called with the finished file before it gets its name.

    Raises:
        ValueError: the rows do not fit the columns of one parquet file.
        OSError: it cannot be written.
    """
    write = _writer(table, out, rows, added, types, move)

    def write_all(path: Path) -> None:
        write(path)
        before(path)

    write_or_rescue(out, write_all, replace=replace)


def _writer(
    table: Table,
    out: Path,
    rows: Sequence[int],
    added: Mapping[str, Sequence[Any]],
    types: Mapping[str, Any],
    move: PathMove | None,
) -> Callable[[Path], None]:
    """A function that writes the rows to a path, in the format of the output."""
    if out.suffix == ".parquet":
        content = _with_columns(_moved(_arrow(table, out), move), rows, added, types)
        return lambda path: pq.write_table(content, path, row_group_size=ROW_GROUP)
    assert isinstance(table, ListTable)

    def lines() -> Iterator[dict[str, Any]]:
        for i, row in enumerate(rows):
            moved = (
                {name: move.value(table[row][name]) for name in move.columns if name in table[row]}
                if move
                else {}
            )
            yield {**table[row], **moved, **{name: values[i] for name, values in added.items()}}

    return lambda path: _write_json(path, lines(), as_list=out.suffix == ".json")


def _moved(content: pa.Table, move: PathMove | None) -> pa.Table:
    """A table with the paths of its media moved; columns that hold the media themselves are unchanged."""
    for name in () if move is None else move.columns:
        column = content.column(name)
        if name in content.column_names and not _holds_bytes(column):
            assert move is not None
            moved = pa.array([move.value(value) for value in column.to_pylist()], column.type)
            content = content.set_column(content.column_names.index(name), content.field(name), moved)
    return content


def _holds_bytes(column: pa.ChunkedArray) -> bool:
    """Whether a column holds media themselves, not only paths."""
    kind = column.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, column = kind.value_type, pa.compute.list_flatten(column)
    if not pa.types.is_struct(kind):
        return not (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    names = [field.name for field in kind]
    return "bytes" in names and pa.compute.struct_field(column, "bytes").null_count < len(column)


def _arrow(table: Table, out: Path) -> pa.Table:
    if isinstance(table, ArrowTable):
        return table.content
    rows = list(table.rows())
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"The rows of {table.name} do not fit into the columns of {out}: {error}. Convert the data to "
            "one .jsonl file, and write the output as .jsonl too."
        ) from error


def _with_columns(
    content: pa.Table, rows: Sequence[int], added: Mapping[str, Sequence[Any]], types: Mapping[str, Any]
) -> pa.Table:
    metadata = content.schema.metadata
    if list(rows) == list(range(len(rows))):  # a slice copies nothing
        content = content.slice(0, len(rows))
    else:
        content = content.take(pa.array(rows, pa.int64()))
    for name, values in added.items():
        column = pa.array(values, types[name])
        if name in content.column_names:
            content = content.set_column(content.column_names.index(name), name, column)
        else:
            content = content.append_column(name, column)
    return content.replace_schema_metadata(_metadata(metadata, types))


def _metadata(metadata: dict[bytes, bytes] | None, types: Mapping[str, Any]) -> dict[bytes, bytes] | None:
    """The features that `datasets` keeps in the schema's metadata, extended by the new columns."""
    if not metadata or b"huggingface" not in metadata:
        return metadata
    text = {"dtype": "string", "_type": "Value"}
    try:
        described = parse_json(metadata[b"huggingface"].decode())
        features = described["info"]["features"]
        for name, kind in types.items():
            features[name] = {"feature": text, "_type": "List"} if pa.types.is_list(kind) else text
        extended = json.dumps(described).encode()
    except (ValueError, KeyError, TypeError, RecursionError):  # an unknown layout: keep it unchanged
        return metadata
    return {**metadata, b"huggingface": extended}


def _write_json(path: Path, rows: Iterator[dict[str, Any]], *, as_list: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n" if as_list else "")
        for number, row in enumerate(rows):
            if as_list and number:
                file.write(",\n")
            file.write(_json(row))
            file.write("" if as_list else "\n")
        file.write("\n]\n" if as_list else "")


def _json(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # JSON can hold half a surrogate pair only as an escape.
    return text if text.isascii() or _encodes(text) else json.dumps(row)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
