"""Paths as users write them: how they are read, and whether a command will be able to write to them.

A relative path starts from the current directory and `~` is the home folder, in every setting and option of
every command. Nothing else may interpret a path.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def expand(text: str) -> str:
    """A path with `~` replaced by the home folder. Hub ids and "vicur:NAME" are returned unchanged.

    Raises:
        ValueError: it begins with `~user`, and there is no such home folder.
    """
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"The path {text} starts with a home folder that does not exist; write it out in full."
        )
    return expanded


def written_file(path: Path) -> Path:
    """The file that writing to a path creates or replaces: the path itself, or what its links lead to.

    Raises:
        OSError: the path leads to something other than a regular file, which must never be replaced, or
            cannot be read.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise OSError(f"it is a {kind}, and only files are replaced")
    return Path(os.path.realpath(path))


def _mode(path: Path) -> int | None:
    """The kind and permissions of what a path leads to; None if there is nothing yet.

    Raises:
        OSError: it cannot be read, or nothing can have this name.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):  # new, or a link to something new
        return None
    except ValueError as error:  # a null character, or half a character
        raise OSError("no file can have this name") from error


def check_file(path: Path, name: str, inputs: Iterable[Path] = (), *, overwrite: bool) -> None:
    """Make sure, before anything expensive runs, that a file can be written.

    Nothing is left behind: folders made for the check are removed again.

    Args:
        path: the file.
        name: the option or setting that names it, for the message.
        inputs: files that the same command reads, and that writing would destroy.
        overwrite: whether the file may exist.

    Raises:
        ValueError: it exists although it may not, is an input or no regular file, or its folder cannot be
            made or written to.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{name} {path} is a folder; give the path of a file.")
        written_file(path)
        exists = path.exists()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{name} {path} cannot be written: {reason}.") from error
    if exists and any(file.exists() and path.samefile(file) for file in inputs):
        raise ValueError(f"{name} {path} is a data file that this command reads; choose another file.")
    if exists and not overwrite:
        raise ValueError(
            f"{name} {path} already exists; choose another file, or set overwrite=true to replace it."
        )
    if exists and not os.access(path, os.W_OK):
        raise ValueError(f"{name} {path} cannot be written: permission denied.")
    _check_writable(Path(os.path.realpath(path)).parent, name, path)


def check_distinct(files: Mapping[str, Path]) -> None:
    """Make sure that the outputs of a command are different files.

    Args:
        files: the files, by the option or setting that names each.

    Raises:
        ValueError: two are the same file, perhaps through a link.
    """
    names: dict[str, str] = {}
    for name, path in files.items():
        other = names.setdefault(os.path.realpath(path), name)
        if other != name:
            raise ValueError(f"{other} and {name} would both be written to {path}; choose another file.")


def check_folder(path: Path, name: str) -> None:
    """Make sure that a folder exists or can be made, and can be written to. Nothing is left behind.

    Args:
        path: the folder.
        name: the option or setting that names it, for the message.

    Raises:
        ValueError: it is a file, or cannot be made or written to.
    """
    try:
        mode = _mode(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{name} {path} cannot be written: {reason}.") from error
    if mode is not None and not stat.S_ISDIR(mode):
        raise ValueError(f"{name} {path} is a file; give the path of a folder.")
    _check_writable(path, name, path)


def _check_writable(folder: Path, name: str, path: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".vicur-check-"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"{name} {path} cannot be written: {reason} ({error.filename or folder})."
        ) from error
    finally:
        for parent in reversed(made):
            parent.rmdir()


def names_of(paths: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """A name for each of several runs or models.

    Args:
        paths: their paths or ids.
        names: the names, as a user gives them; by default the shortest ends of the paths that differ.

    Raises:
        ValueError: there are more or fewer names than paths, or two are equal.
    """
    if names and len(names) != len(paths):
        raise ValueError(f"There are {len(names)} names for {len(paths)} paths; give one for each.")
    result = list(names) or _shortest_ends(paths)
    repeated = next((name for name in result if result.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"Two of the names are {repeated}; give different ones with --names.")
    return result


def _shortest_ends(paths: Sequence[str]) -> list[str]:
    parts = [_parts(path) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)


def _parts(path: str) -> list[str]:
    """The parts of a path; the final model of a run is named after its run."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return parts[:-2] if len(parts) > 2 and parts[-2:] == ["checkpoints", "final"] else parts or [path]
