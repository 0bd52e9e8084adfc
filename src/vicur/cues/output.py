"""The user's own table with its cues beside, in the user's own format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.data.files import ROW_GROUP, write_whole
from vicur.data.tables import ArrowTable, ListTable, Table


def check_output(table: Table, data: Path, out: Path, added: Sequence[str], *, replace: bool) -> None:
    """Whether a table can be written as a file with columns added, before anything is paid for.

    Args:
        table: the rows.
        data: what they were read from.
        out: the file to be.
        added: names of the columns.
        replace: whether columns may be replaced.

    Raises:
        ValueError: the formats do not fit, a column is there already, or the file would be its own source.
    """
    as_text = isinstance(table, ListTable) and data.is_file()
    allowed = (".jsonl", ".json") if as_text else (".parquet",)
    if out.suffix not in allowed:
        raise ValueError(f"The output {out} must end in {' or '.join(allowed)}, as {data} is of that format.")
    if out.exists() and (out.is_dir() or (data.exists() and out.samefile(data))):
        raise ValueError(f"The output {out} is the data itself or a folder; give another file.")
    names = {column.partition(".")[0] if isinstance(table, ListTable) else column for column in table.columns}
    there = [name for name in added if name in names]
    if there and not replace:
        raise ValueError(
            f"{data} has a column {there[0]} already; replace it with replace=true, or give the new one "
            "another name by `column`."
        )


def write_output(
    table: Table, out: Path, rows: Sequence[int], added: Mapping[str, Sequence[Any]], types: Mapping[str, Any]
) -> None:
    """Write rows with more columns; the file appears whole or not at all.

    Args:
        table: where the rows are from.
        out: .parquet, .json or .jsonl.
        rows: which, ascending.
        added: the columns, a value for each of these rows; a column of that name is replaced in its place.
        types: of the columns, in Arrow.

    Raises:
        ValueError: rows of different kinds are to become one parquet file.
        OSError: it cannot be written.
    """
    if out.suffix == ".parquet":
        content = _with_columns(_arrow(table, out), rows, added, types)
        write_whole(out, lambda partial: pq.write_table(content, partial, row_group_size=ROW_GROUP))
        return
    assert isinstance(table, ListTable)
    lines = (
        {**table[row], **{name: values[i] for name, values in added.items()}} for i, row in enumerate(rows)
    )
    write_whole(out, lambda partial: _write_json(partial, lines, as_list=out.suffix == ".json"))


def _arrow(table: Table, out: Path) -> pa.Table:
    if isinstance(table, ArrowTable):
        return table.content
    rows = list(table.rows())
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"The rows of {table.name} do not fit into the columns of {out}: {error}. Give them as one "
            ".jsonl file and the output as .jsonl too."
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
    """Where `datasets` has written its features beside the columns, with the new ones among them."""
    if not metadata or b"huggingface" not in metadata:
        return metadata
    text = {"dtype": "string", "_type": "Value"}
    try:
        described = json.loads(metadata[b"huggingface"])
        features = described["info"]["features"]
        for name, kind in types.items():
            features[name] = {"feature": text, "_type": "List"} if pa.types.is_list(kind) else text
    except (ValueError, KeyError, TypeError):  # not as we know it: then it stays as it is
        return metadata
    return {**metadata, b"huggingface": json.dumps(described).encode()}


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
    # Half a surrogate pair can stand in JSON as an escape only.
    return text if text.isascii() or _encodes(text) else json.dumps(row)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
