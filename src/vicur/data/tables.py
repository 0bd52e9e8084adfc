"""Opens the table of rows that a name refers to.

A name is a file, a folder, a pattern, several of them, or a data set on the hub, followed by `@split` if it
has several splits:

    train.parquet    problems.jsonl    saved-folder@test    owner/name@train    part-*.parquet    a.csv,b.csv

Rows are plain dictionaries; media in them are as stored, not decoded.
"""

from __future__ import annotations

import bisect
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from vicur.data.readers import (
    TEXT_SUFFIXES,
    UNREADABLE,
    Row,
    arrow_rows,
    import_datasets,
    read_parquet,
    read_text_file,
    suffix_of,
)
from vicur.settings.reading import Unreadable, read_json
from vicur.wording import first_reason

BATCH = 64
"""Number of rows that are converted to dictionaries at a time."""

_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside the data."""
_FILE_SUFFIXES = (".parquet", *TEXT_SUFFIXES, ".txt", ".arrow", ".gz", ".yaml", ".xlsx")
"""Suffixes that mark a name as a file name, even if there is no such file; a hub name may end in `-v1.5`."""
_METADATA = ("metadata.jsonl", "metadata.csv")
"""Files that describe a folder of images."""
_FILE_NAME = re.compile(r"(?:(.+)_)?file_names?")
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class MissingDataError(ValueError):
    """There is no file of the name that was given."""


@dataclass(frozen=True)
class ListTable:
    """Rows in memory; they need not have the same keys.

    Attributes:
        name: short name, for messages and for ids of rows that have none.
        folders: folders that may contain the files named in rows; relative paths start from the first.
        content: the rows.
        files: the files that the rows were read from.
    """

    name: str
    folders: tuple[Path, ...]
    content: Sequence[Row]
    files: tuple[Path, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, and of fields inside them with a dot: `reward_model.ground_truth`."""
        names: dict[str, None] = {}
        for row in self.content:
            for key, value in row.items():
                if key == UNREADABLE:
                    continue
                names[key] = None
                if isinstance(value, dict):
                    names.update({f"{key}.{inner}": None for inner in value})
        return tuple(names)

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, row: int) -> Row:
        return self.content[row]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows in order, with all columns or only the given ones."""
        for row in self.content:
            yield row if columns is None else {key: row[key] for key in columns if key in row}


@dataclass(frozen=True)
class ArrowTable:
    """Rows of an Arrow table, in memory or mapped from disk; same interface as `ListTable`."""

    name: str
    folders: tuple[Path, ...]
    content: pa.Table
    files: tuple[Path, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        names = []
        for field in self.content.schema:
            names.append(field.name)
            if pa.types.is_struct(field.type):
                names.extend(f"{field.name}.{inner.name}" for inner in field.type)
        return tuple(names)

    def __len__(self) -> int:
        return int(self.content.num_rows)

    def __getitem__(self, row: int) -> Row:
        return arrow_rows(self.content.slice(row, 1))[0]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows in order, with all columns or only those of the given ones that exist."""
        content = self.content
        if columns is not None:
            schema = content.schema
            content = content.select([i for name in columns for i in schema.get_all_field_indices(name)])
        for batch in content.to_batches(max_chunksize=BATCH):
            yield from arrow_rows(batch)


@dataclass(frozen=True)
class JoinedTable:
    """Rows of several tables one after another; same interface as `ListTable`."""

    name: str
    parts: tuple[ListTable | ArrowTable, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        return self.parts[0].folders

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for part in self.parts for file in part.files)

    @cached_property
    def starts(self) -> list[int]:
        """The number of the first row of each part."""
        return [sum(map(len, self.parts[:i])) for i in range(len(self.parts))]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    def locate(self, row: int) -> tuple[int, int]:
        """The number of the part that holds a row, and the row's number in it."""
        part = bisect.bisect_right(self.starts, row) - 1
        return part, row - self.starts[part]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, row: int) -> Row:
        part, row_in_part = self.locate(row)
        return self.parts[part][row_in_part]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        for part in self.parts:
            yield from part.rows(columns)


Table = ListTable | ArrowTable | JoinedTable
"""A table whose rows are read on access."""


def open_table(name: str | Path | Sequence[str]) -> Table:
    """Open the table that a name refers to.

    Args:
        name: a name as described above; several names in a list, or in one text separated by commas.

    Raises:
        MissingDataError: there is no such file.
        ValueError: the split does not exist, or the data cannot be read.
    """
    names = _names(name)
    if not names:
        raise ValueError(f"{name!r} names no data.")
    parts: list[ListTable | ArrowTable] = []
    for single in names:
        table = _open_one(single)
        parts += table.parts if isinstance(table, JoinedTable) else [table]
    return parts[0] if len(parts) == 1 else JoinedTable(name_of(name), tuple(parts))


def name_of(name: str | Path | Sequence[str]) -> str:
    """A name, or a list of names, as one text."""
    return ",".join(name) if isinstance(name, list | tuple) else str(name)


def _names(name: str | Path | Sequence[str]) -> list[str]:
    """Split a text of several names; the name of an existing file may contain commas or brackets."""
    if isinstance(name, list | tuple):
        return [single for several in name for single in _names(several)]
    text = str(name).strip()
    if Path(text).expanduser().exists() or not ("," in text or text.startswith("[")):
        return [text] if text else []
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return [single.strip(" '\"") for single in text.split(",") if single.strip(" '\"")]


def _open_one(name: str) -> Table:
    path, split = Path(name).expanduser(), None
    if not path.exists() and any(character in name for character in "*?["):
        return _open_pattern(name)
    if not path.exists() and "@" in name:
        before, _, split = name.rpartition("@")
        path = Path(before).expanduser()
    if path.is_file():
        if split is not None:
            raise ValueError(f"{path} is one file and has no splits; leave out @{split}.")
        return _open_files([path], path.name, path.parent)
    if path.is_dir():
        return _open_folder(path, split)
    if _HUB_NAME.fullmatch(str(path)) and path.suffix not in _FILE_SUFFIXES:
        return _open_hub(str(path), split)
    raise MissingDataError(f"Data file {path} does not exist.")


def _open_pattern(pattern: str) -> Table:
    """All files that a pattern such as `part-*.parquet` matches, in the order of their names."""
    files = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    if not files:
        raise MissingDataError(f"No file matches {pattern}.")
    return open_table(files)


def _open_folder(folder: Path, split: str | None) -> Table:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _open_saved(folder, split)
    metadata = {
        path.parent: path for file_name in reversed(_METADATA) for path in _files_matching(folder, file_name)
    }
    if metadata:
        names = {"train" if home == folder else home.name: home for home in metadata}
        selected = _choose(names, split, folder)
        return _open_image_folder(metadata[names[selected]], f"{folder.name}@{selected}")
    splits = _split_files(folder)
    if not splits:
        raise ValueError(
            f"The folder {folder} has no data: no .parquet, .jsonl, .json, .csv or .tsv file in it or in its "
            "data/, no metadata.jsonl or metadata.csv, and no output of datasets.save_to_disk."
        )
    selected = _choose(splits, split, folder)
    return _open_files(splits[selected], f"{folder.name}@{selected}", folder)


def _files_matching(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder and in its direct subfolders."""
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: by the start of their name, or by their subfolder."""
    for suffix in (".parquet", *TEXT_SUFFIXES):
        files = _files_matching(folder, f"*{suffix}") + _files_matching(folder, f"*{suffix}.gz")
        files = [path for path in files if path.name not in _NOT_ROWS]
        splits: dict[str, list[Path]] = {}
        for path in files:
            by_folder = path.parent not in (folder, folder / "data")
            splits.setdefault(path.parent.name if by_folder else _split_of(path), []).append(path)
        if splits:
            return splits
    return {}


def _split_of(path: Path) -> str:
    """`train` of `train-00000-of-00002.parquet`, `train-00000-of-00002-a1b2.parquet` and `train.parquet`."""
    return re.sub(r"-\d{5,}-of-\d{5,}.*$", "", Path(path.name.removesuffix(".gz")).stem)


def _choose(splits: Any, split: str | None, where: object) -> str:
    """The requested split; if none is requested, train or the only one."""
    names = [str(name) for name in splits]
    if split is None and "train" in names:
        return "train"
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return str(split)
    has = f"{where} has the splits {', '.join(names)}" if names else f"{where} has no splits"
    if split is None:
        raise ValueError(f"{has}; choose one, e.g. {where}@{names[0]}." if names else f"{has}.")
    raise ValueError(f"{has}, not {split}.")


def _open_files(paths: list[Path], name: str, folder: Path) -> Table:
    suffixes = {suffix_of(path) for path in paths}
    if suffixes <= set(TEXT_SUFFIXES):
        content = [row for path in paths for row in read_text_file(path)]
        return ListTable(name, (folder,), content, tuple(paths))
    if suffixes == {".parquet"}:
        return ArrowTable(name, (folder,), read_parquet(paths), tuple(paths))
    raise ValueError(f"Data file {paths[0]} is neither .parquet nor {' nor '.join(TEXT_SUFFIXES)}.")


def _open_image_folder(metadata: Path, name: str) -> Table:
    """A folder of media described by a metadata file.

    Its `file_name` becomes an image or a video, and so does `left_file_name` under the name `left`.
    """
    rows = []
    for row in read_text_file(metadata):
        named: Row = {}
        for key, value in row.items():
            match = _FILE_NAME.fullmatch(key)
            if match is not None and value is not None:
                first = value[0] if isinstance(value, list) and value else value
                kind = "video" if str(first).lower().endswith(_VIDEO_SUFFIXES) else "image"
                named[match[1] or kind] = value
        rows.append({key: value for key, value in row.items() if not _FILE_NAME.fullmatch(key)} | named)
    return ListTable(name, (metadata.parent,), rows, (metadata,))


def _open_saved(folder: Path, split: str | None) -> Table:
    """Open the output of `save_to_disk`, mapped from disk."""
    datasets = import_datasets(f"{folder} was written by datasets.save_to_disk")
    try:
        _check_listed_files(folder)
        saved = datasets.load_from_disk(str(folder))
    except RecursionError as error:
        raise ValueError(f"The folder {folder} cannot be read: a file in it is nested too deeply.") from error
    except (ValueError, OSError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"The folder {folder} cannot be read: {type(error).__name__}: {error}") from error
    name = folder.name
    if isinstance(saved, datasets.DatasetDict):
        selected = _choose(saved, split, folder)
        saved, name = saved[selected], f"{name}@{selected}"
    elif split is not None:
        raise ValueError(f"{folder} has no splits; leave out @{split}.")
    return ArrowTable(name, (folder,), _arrow_table(saved), tuple(sorted(folder.rglob("*.arrow"))))


def _check_listed_files(folder: Path) -> None:
    """Check that the index files of a folder name no file outside it; `datasets` would open it.

    Raises:
        ValueError: one does.
    """
    parts = [folder]
    if (folder / "dataset_dict.json").is_file():
        parts += [folder / name for name in _index(folder / "dataset_dict.json")["splits"]]
    for part in parts:
        state = part / "state.json"
        listed = _index(state)["_data_files"] if state.is_file() else []
        for path in [part, *(part / file["filename"] for file in listed)]:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"it lists {path}, which is outside it")


def _index(file: Path) -> dict[str, Any]:
    """The object in a JSON file that `datasets` has written.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return read_json(file)
    except Unreadable as error:
        raise ValueError(f"{file.name} {error}") from error


def _open_hub(name: str, split: str | None) -> Table:
    """A data set on the hub, downloaded once by `datasets` into its cache."""
    datasets = import_datasets(f"{name} is not a file here, so it is looked up on the hub")
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
            f"{name} is neither a file nor a folder here, and could not be opened as a data set on the hub: "
            f"{first_reason(error)}."
        ) from error
    selected = _choose(loaded, split, name)
    folders = (Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))
    return ArrowTable(f"{name}@{selected}", folders, _arrow_table(loaded[selected]))


def _arrow_table(dataset: Any) -> pa.Table:
    """The Arrow table of a data set, in the data set's order."""
    return (dataset if dataset._indices is None else dataset.flatten_indices()).data.table
