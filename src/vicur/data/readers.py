"""Reads rows from files: parquet, JSON, JSON Lines, CSV and TSV; the text formats may be gzipped.

An unreadable row keeps its place in the table, as a row with the single key `UNREADABLE`, so that one broken
line can be skipped like any other bad row.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.data.written import MOST_LEVELS, is_too_deep

Row = dict[str, Any]

UNREADABLE = "\0unreadable"
"""The key of a row that could not be read; its value says why."""
LARGEST_IN_MEMORY = 1 << 30
"""Size in bytes beyond which parquet files are mapped from disk instead of read into memory."""
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""What a file starts with if it is in UTF-16 or UTF-32, which starts like UTF-16 if it is little-endian."""
LARGEST_UNPACKED = 2**31
"""Maximum size in bytes of what a gzipped file holds, which may be a thousand times its own size."""
_PIECE = 2**24
"""Number of bytes that are unpacked at a time."""
TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_JSON_ERRORS = (ValueError, RecursionError)
"""Errors of parsing JSON; a number of thousands of digits is a ValueError of its own."""
_VALUE_ERRORS = (ValueError, OverflowError, KeyError, NotImplementedError, pa.ArrowException)
"""Errors of converting Arrow's values: texts that are not UTF-8, dates and times out of range,
unknown time zones, objects with two fields of one name."""
QUESTIONS = ("problem", "question", "prompt", "messages", "conversations")
"""Columns that hold a question, in the order in which they are looked for."""

_SHARED_IMAGE = 64
"""Maximum number of characters in a row index: in VLMEvalKit's tables, `image` may hold the index of the row
with the image instead of a base64 image, which is longer."""


def suffix_of(path: Path) -> str:
    """The suffix that gives a file's format: in lower case, without .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def read_text_file(path: Path) -> list[Row]:
    """The rows of a .json, .jsonl, .csv or .tsv file.

    Raises:
        ValueError: it cannot be read, or has no rows.
    """
    try:
        content = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"Data file {path} cannot be read: {error}") from error
    if content.startswith(_OTHER_ENCODINGS):
        raise ValueError(f"Data file {path} cannot be read: it is UTF-16 or UTF-32; save it as UTF-8.")
    # A byte that is not UTF-8 makes its own row bad, not the file: `chat.valid_text` finds it.
    text = content.decode("utf-8-sig", "surrogateescape")
    if suffix_of(path) in (".csv", ".tsv"):
        return _separated(path, text)
    return _json(path, text)


def _unpacked(path: Path) -> bytes:
    """The content of a gzipped file.

    Raises:
        ValueError: it is larger than `LARGEST_UNPACKED`.
        OSError, EOFError, zlib.error: it cannot be read, or is damaged.
    """
    content = bytearray()
    with gzip.open(path) as file:
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > LARGEST_UNPACKED:
                raise ValueError(
                    f"Data file {path} has more than {LARGEST_UNPACKED / 2**30:g} GiB when it is unpacked. "
                    "If it really holds so much, unpack it with gunzip and give that file."
                )
    return bytes(content)


def _separated(path: Path, text: str) -> list[Row]:
    """Rows of a CSV or TSV file with texts as values; empty values are left out."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images in base64
    header = text.partition("\n")[0]
    separator = "\t" if suffix_of(path) == ".tsv" else ";" if ";" in header and "," not in header else ","
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = next(lines, [])
        rows = [_record(path, names, values, lines.line_num) for values in lines if values]
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num} is not valid CSV: {error}.") from error
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{path} has two columns {repeated[0]!r}.")
    return _with_shared_images(rows) if separator == "\t" else rows


def _record(path: Path, names: list[str], values: list[str], line: int) -> Row:
    if len(values) != len(names):
        return {UNREADABLE: f"line {line} has {len(values)} values for {len(names)} columns"}
    return {name: value for name, value in zip(names, values, strict=True) if value != ""}


def _with_shared_images(rows: list[Row]) -> list[Row]:
    """Replace an index of another row by that row's image (VLMEvalKit)."""
    images = {row["index"]: row["image"] for row in rows if "index" in row and "image" in row}
    for row in rows:
        named = row.get("image", "")
        if named.isdigit() and len(named) <= _SHARED_IMAGE and len(images.get(named, "")) > _SHARED_IMAGE:
            row["image"] = images[named]
    return rows


def _json(path: Path, text: str) -> list[Row]:
    """The rows of a file: a list, one row per line, an object from ids to rows, or a single row.

    Raises:
        ValueError: it is none of these; the message names the line.
    """
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except _JSON_ERRORS as error:
            raise ValueError(f"Data file {path} is not valid JSON: {error}.") from error
        if isinstance(rows, list):
            return [_object(row, f"entry {number}") for number, row in enumerate(rows)]
    # Not splitlines: a JSON string may contain a Unicode line separator.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        json.loads(lines[0][1]) if lines else None
    except _JSON_ERRORS as error:  # perhaps one object over several lines
        return _whole_object(path, text, lines, error)
    rows = list(_read_lines(lines))
    return _of_object(path, rows[0]) if len(rows) == 1 else rows


def _read_lines(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        try:
            yield _object(json.loads(line), f"line {number}")
        except _JSON_ERRORS as error:
            yield {UNREADABLE: f"line {number} is not valid JSON: {error}"}


def _object(value: Any, place: str) -> Row:
    if is_too_deep(value):
        return {UNREADABLE: f"{place} is nested deeper than {MOST_LEVELS} levels"}
    if isinstance(value, dict):
        return value
    return {UNREADABLE: f"{place} is a {type(value).__name__}; an object was expected"}


def _whole_object(
    path: Path, text: str, lines: list[tuple[int, str]], line_error: ValueError | RecursionError
) -> list[Row]:
    """The rows of an object that spans several lines, or of lines with a broken first one."""
    try:
        value = json.loads(text)
    except _JSON_ERRORS:
        rows = list(_read_lines(lines))
        if any(UNREADABLE not in row for row in rows):
            return rows
        raise ValueError(
            f"{path} is neither a JSON list of rows nor one row per line: its first line is not valid JSON "
            f"({line_error})."
        ) from line_error
    return _of_object(path, _object(value, "the file"))


def _of_object(path: Path, value: Row) -> list[Row]:
    """The rows of a file that is one object: a row itself, rows by their ids, or rows under one key.

    Raises:
        ValueError: several keys hold rows.
    """
    if UNREADABLE in value or any(name in value for name in QUESTIONS):
        return [value]
    if value and all(isinstance(row, dict) for row in value.values()):
        return [{"id": key, **row} for key, row in value.items()]
    lists = [
        key
        for key, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]
    if len(lists) > 1:
        raise ValueError(
            f"{path} is one object with rows under {' and '.join(map(repr, lists))}; write one of these "
            "lists to a separate file."
        )
    return list(value[lists[0]]) if lists else [value]


def read_parquet(paths: list[Path]) -> pa.Table:
    """The rows of parquet files; large files are mapped from disk.

    Raises:
        ValueError: a file cannot be read, or they have columns of different types.
    """
    if sum(path.stat().st_size for path in paths) > LARGEST_IN_MEMORY:
        return _map_parquet(paths)
    tables = []
    for path in paths:
        try:
            # One row group at a time: reading a whole file at once briefly takes four times its size.
            file = pq.ParquetFile(path, pre_buffer=False)
            tables += [file.read_row_group(i) for i in range(file.num_row_groups)]
            tables = tables or [file.schema_arrow.empty_table()]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"Data file {path} cannot be read: {error}") from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"{paths[0]} and the files with it have columns of different types: {error}"
        ) from error


def arrow_rows(content: pa.Table | pa.RecordBatch) -> list[Row]:
    """The rows of a table; a row with a value that Python cannot hold, such as a text that is not UTF-8, is
    unreadable."""
    try:
        rows: list[Row] = content.to_pylist()
        return rows
    except _VALUE_ERRORS as error:
        if len(content) == 1:
            return [{UNREADABLE: f"the column {_unreadable_column(content)} cannot be read: {error}"}]
    return [row for index in range(len(content)) for row in arrow_rows(content.slice(index, 1))]


def _unreadable_column(content: pa.Table | pa.RecordBatch) -> str:
    for name, column in zip(content.schema.names, content.columns, strict=True):
        try:
            column.to_pylist()
        except _VALUE_ERRORS:
            return str(name)
    return "names"  # two columns of one name


def _map_parquet(paths: list[Path]) -> pa.Table:
    """Map parquet files through `datasets`, which converts them once to Arrow files in its cache."""
    datasets = import_datasets(
        f"The {len(paths)} file(s) {paths[0]} ... exceed {LARGEST_IN_MEMORY >> 20} MiB"
    )
    try:
        loaded = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except (ValueError, OSError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"Data file {paths[0]} cannot be read: {error}") from error
    return loaded.data.table


def import_datasets(reason: str) -> Any:
    """Import the package `datasets`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{reason}; that needs the package datasets, which is not installed: pip install datasets."
        ) from error
    return datasets
