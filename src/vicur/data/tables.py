"""What a name stands for: a table of rows.

A name is a file, a folder or a data set on the hub, with `@split` behind it if it has several splits:

    train.parquet    problems.jsonl    saved-folder@test    owner/name@train

Rows are plain dictionaries; media in them are what the file holds, not decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LARGEST_IN_MEMORY = 1 << 30
"""Bytes of parquet files beyond which they are mapped from disk instead of read into memory."""
BATCH = 64
"""Rows that are turned into dictionaries at a time."""

_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside the data."""
_FILE_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".txt", ".arrow", ".gz", ".yaml")
"""Of names that are meant as files, even where there is none; a hub's name may well end in `-v1.5`."""
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

Row = dict[str, Any]


@dataclass(frozen=True)
class ListTable:
    """Rows in memory; they need not have the same keys.

    Attributes:
        name: short, for messages and for ids of rows that have none.
        folders: where files that the rows name may lie; relative paths start from the first.
        content: the rows.
    """

    name: str
    folders: tuple[Path, ...]
    content: Sequence[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, and of fields inside them with a dot: `reward_model.ground_truth`."""
        found: dict[str, None] = {}
        for row in self.content:
            for key, value in row.items():
                found[key] = None
                if isinstance(value, dict):
                    found.update({f"{key}.{inner}": None for inner in value})
        return tuple(found)

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, row: int) -> Row:
        return self.content[row]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows in order, with some of their columns or all."""
        for row in self.content:
            yield row if columns is None else {key: row[key] for key in columns if key in row}


@dataclass(frozen=True)
class ArrowTable:
    """Rows of an Arrow table, in memory or mapped from disk, with what `ListTable` has."""

    name: str
    folders: tuple[Path, ...]
    content: pa.Table

    @property
    def columns(self) -> tuple[str, ...]:
        found = []
        for field in self.content.schema:
            found.append(field.name)
            if pa.types.is_struct(field.type):
                found.extend(f"{field.name}.{inner.name}" for inner in field.type)
        return tuple(found)

    def __len__(self) -> int:
        return int(self.content.num_rows)

    def __getitem__(self, row: int) -> Row:
        found: list[Row] = self.content.slice(row, 1).to_pylist()
        return found[0]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        content = self.content if columns is None else self.content.select(list(columns))
        for batch in content.to_batches(max_chunksize=BATCH):
            yield from batch.to_pylist()


Table = ListTable | ArrowTable
"""Rows that are read when they are asked for."""


def open_table(name: str | Path) -> Table:
    """Open what a name stands for.

    Raises:
        ValueError: there is no such thing, no such split, or it cannot be read.
    """
    path, split = Path(name), None
    if not path.exists() and "@" in str(name):
        before, _, split = str(name).rpartition("@")
        path = Path(before)
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is one file and has no splits; leave out @{split}.")
        return _open_files([path], path.name, path.parent)
    if path.is_dir():
        return _open_folder(path, split)
    if _HUB_NAME.fullmatch(str(path)) and path.suffix not in _FILE_SUFFIXES:
        return _open_hub(str(path), split)
    raise ValueError(f"Data file {path} does not exist.")


def _open_folder(folder: Path, split: str | None) -> Table:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(folder, split)
    metadata = {path.parent: path for path in _found(folder, "metadata.jsonl")}
    if metadata:
        names = {"train" if home == folder else home.name: home for home in metadata}
        chosen = _choose(names, split, folder)
        return _open_image_folder(metadata[names[chosen]], f"{folder.name}@{chosen}")
    splits = _split_files(folder)
    if not splits:
        raise ValueError(
            f"The folder {folder} has no data: no .parquet, .jsonl or .json file in it or in its data/, no "
            "metadata.jsonl, and nothing that datasets.save_to_disk has written."
        )
    chosen = _choose(splits, split, folder)
    return _open_files(splits[chosen], f"{folder.name}@{chosen}", folder)


def _found(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder and right below it."""
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: by the start of their name, or by the folder they lie in."""
    for suffix in (".parquet", ".jsonl", ".json"):
        files = [path for path in _found(folder, f"*{suffix}") if path.name not in _NOT_ROWS]
        splits: dict[str, list[Path]] = {}
        for path in files:
            own = path.parent not in (folder, folder / "data")
            splits.setdefault(path.parent.name if own else _split_of(path), []).append(path)
        if splits:
            return splits
    return {}


def _split_of(path: Path) -> str:
    """`train` of `train-00000-of-00002.parquet`, `train-00000-of-00002-a1b2.parquet` and `train.parquet`."""
    return re.sub(r"-\d{5,}-of-\d{5,}.*$", "", path.stem)


def _choose(splits: Any, split: str | None, where: object) -> str:
    """The split asked for, else train, else the only one."""
    names = [str(name) for name in splits]
    if split is None and "train" in names:
        return "train"
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return str(split)
    has = f"{where} has the splits {', '.join(names)}" if names else f"{where} has no splits"
    if split is None:
        raise ValueError(f"{has}; say which: {where}@{names[0]}." if names else f"{has}.")
    raise ValueError(f"{has}, not {split}.")


def _open_files(paths: list[Path], name: str, folder: Path) -> Table:
    suffixes = {path.suffix for path in paths}
    if suffixes <= {".jsonl", ".json"}:
        content = [row for path in paths for row in _read_json(path)]
        return ListTable(name, (folder,), content)
    if suffixes == {".parquet"}:
        return ArrowTable(name, (folder,), _read_parquet(paths))
    raise ValueError(f"Data file {paths[0]} is neither .parquet nor .jsonl nor .json.")


def _read_parquet(paths: list[Path]) -> pa.Table:
    if sum(path.stat().st_size for path in paths) > LARGEST_IN_MEMORY:
        return _map_parquet(paths)
    tables = []
    for path in paths:
        try:
            # One group of rows after another: read at once, a file takes four times its size for a moment.
            file = pq.ParquetFile(path, pre_buffer=False)
            tables += [file.read_row_group(i) for i in range(file.num_row_groups)]
            tables = tables or [file.schema_arrow.empty_table()]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"Data file {path} cannot be read: {error}") from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"The files {paths[0]} ... have columns of different types: {error}") from error


def _map_parquet(paths: list[Path]) -> pa.Table:
    """Through `datasets`, which writes them once as Arrow files into its cache and maps these."""
    datasets = _datasets(f"{paths[0]} and its like are over {LARGEST_IN_MEMORY >> 20} MiB")
    try:
        loaded = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except (ValueError, OSError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"Data file {paths[0]} cannot be read: {error}") from error
    return loaded.data.table


def _read_json(path: Path) -> list[Row]:
    """A list of rows, one row a line, or one row.

    Raises:
        ValueError: it is none of these; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Data file {path} cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Data file {path} is not valid JSON: {error}.") from error
    else:
        rows = _read_lines(path, text)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is a {type(row).__name__}; an object was expected.")
    return list(rows)


def _read_lines(path: Path, text: str) -> list[Any]:
    rows = []
    # Not splitlines: a line separator of Unicode may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if not rows:  # perhaps one object over several lines
                return [_read_object(path, text, error)]
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return rows


def _read_object(path: Path, text: str, of_line: json.JSONDecodeError) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError(
            f"{path} is neither a JSON list of rows nor one row a line: its first line is not valid JSON "
            f"({of_line})."
        ) from of_line
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    if lists and all(isinstance(item, dict) for item in value[lists[0]]):
        raise ValueError(
            f"{path} is one object whose {lists[0]!r} holds the rows; write that list, or one row a line."
        )
    return dict(value)


def _open_image_folder(metadata: Path, name: str) -> Table:
    """A folder of media described by `metadata.jsonl`, whose `file_name` becomes an image or a video."""
    rows = []
    for row in _read_json(metadata):
        named = row.get("file_name", row.get("file_names"))
        if named is not None:
            first = named[0] if isinstance(named, list) and named else named
            kind = "video" if str(first).lower().endswith(_VIDEO_SUFFIXES) else "image"
            row = {k: v for k, v in row.items() if k not in ("file_name", "file_names")} | {kind: named}
        rows.append(row)
    return ListTable(name, (metadata.parent,), rows)


def _open_saved(folder: Path, split: str | None) -> Table:
    """What `save_to_disk` has written, mapped from disk."""
    datasets = _datasets(f"{folder} was written by datasets.save_to_disk")
    try:
        saved = datasets.load_from_disk(str(folder))
    except (ValueError, OSError, pa.ArrowException, json.JSONDecodeError) as error:
        raise ValueError(f"The folder {folder} cannot be read: {error}") from error
    name = folder.name
    if isinstance(saved, datasets.DatasetDict):
        chosen = _choose(saved, split, folder)
        saved, name = saved[chosen], f"{name}@{chosen}"
    elif split is not None:
        raise ValueError(f"{folder} has no splits; leave out @{split}.")
    return ArrowTable(name, (folder,), _whole(saved))


def _open_hub(name: str, split: str | None) -> Table:
    """A data set of the hub, downloaded once by `datasets` into its cache."""
    datasets = _datasets(f"{name} is no file here, so it is looked for on the hub")
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        loaded = datasets.load_dataset(name)
    except (
        ValueError,
        OSError,
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise ValueError(
            f"{name} is no file or folder here, and as a data set on the hub it could not be opened: "
            f"{str(error).splitlines()[0]}"
        ) from error
    chosen = _choose(loaded, split, name)
    folders = (Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    return ArrowTable(f"{name}@{chosen}", folders, _whole(loaded[chosen]))


def _datasets(reason: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{reason}; that needs the package datasets, which is not installed: pip install datasets."
        ) from error
    return datasets


def _whole(dataset: Any) -> pa.Table:
    """The Arrow table behind a data set, in its order."""
    return (dataset if dataset._indices is None else dataset.flatten_indices()).data.table
