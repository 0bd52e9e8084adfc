"""Writes files atomically: however a run ends, a file is complete or absent.

Everything that a command writes is written by `write_whole`, except files that grow while a command runs:
`open_locked` opens these.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.paths import written_file

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe, in the folder of a run and in the model that it saves."""
ROW_GROUP = 1000
"""Number of rows in a group of a parquet file, which are written, and later read, together."""
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""Errors of file systems on which a file cannot have two names."""


def write_whole(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Write a temporary file beside `path`, then rename it to `path`; remove it if writing fails.

    The file is on the disk when this returns, with the permissions of a new file of this user. A link stays
    a link: the file that it leads to is written.

    Args:
        path: the file; its folder is made if missing.
        write: writes the file of the path that it is given.
        replace: whether a file that exists is replaced. Only regular files ever are.

    Raises:
        OSError: it cannot be written; the message names `path` and the reason, and `errno` is kept.
    """
    try:
        file = written_file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _partial(file.parent) as partial:
            mode = _mode(partial)
            write(partial)
            _give(partial, mode)
            flush(partial)
            if replace:
                written_file(file)  # it may have changed in the meantime
                partial.replace(file)
            else:
                _rename_to_free(partial, file)
            flush(file.parent)
    except OSError as error:
        raise _named(path, error) from error


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A new empty file of a name that no other writer uses; it is removed if it still has this name."""
    while True:
        partial = _partial_path(folder)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            break
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _partial_path(folder: Path) -> Path:
    return folder / f".vicur-{secrets.token_hex(4)}.partial"


def is_partial(name: str) -> bool:
    """Whether a file or folder of this name is unfinished: it is being written, or its process was killed."""
    return name.startswith(".vicur-") and name.endswith(".partial")


def _mode(path: Path) -> int:
    """The permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def _give(path: Path, mode: int) -> None:
    """Set the permissions; some libraries, such as safetensors, make files that only their owner can read."""
    if _mode(path) != mode:
        path.chmod(mode)


def _rename_to_free(partial: Path, file: Path) -> None:
    """Give a file its name, if no other file has it.

    Raises:
        FileExistsError: another file has this name.
    """
    try:
        os.link(partial, file)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        partial.replace(file)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    # A folder need not be readable to be written to, and some network file systems cannot flush one.
    harmless = (errno.EACCES, errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP) if path.is_dir() else ()
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in harmless:
            raise


def _named(path: Path, error: OSError) -> OSError:
    """The error of writing a file, as a sentence that names the file."""
    named = OSError(f"{path} cannot be written: {reason_of(error)}.")
    named.errno = error.errno
    return named


def reason_of(error: OSError) -> str:
    """An error's reason in a few words, e.g. "No space left on device"."""
    # The libraries' own words hold the number, the file and more.
    return os.strerror(error.errno) if error.errno else (error.strerror or str(error)).rstrip(".")


def write_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a text, in UTF-8.

    Args:
        path, replace: as in `write_whole`.
        text: the text.
    """
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"), replace=replace)


def as_json(value: Any) -> str:
    """A value as JSON, as it is written to files."""
    return json.dumps(value, indent=2) + "\n"


def write_json(path: Path, value: Any, *, replace: bool = True) -> None:
    """Write a value as JSON.

    Args:
        path, replace: as in `write_whole`.
        value: the value.
    """
    write_text(path, as_json(value), replace=replace)


def write_rows(
    path: Path,
    rows: Sequence[dict[str, Any]],
    types: dict[str, pa.DataType] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Write rows as parquet.

    Args:
        path, replace: as in `write_whole`.
        rows: at least one; all with the same keys.
        types: types of columns that may hold only None, whose type cannot be inferred.
    """
    table = pa.Table.from_pylist(list(rows))
    for name, kind in (types or {}).items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(kind))
    write_whole(
        path, lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP), replace=replace
    )


def write_or_rescue(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Like `write_whole`, but if the file cannot be written, write it to the folder for temporary files.

    For results that took long or cost money: a full disk must not lose them.

    Raises:
        OSError: the file was not written; the message says where its content was saved instead, if anywhere.
    """
    try:
        write_whole(path, write, replace=replace)
    except OSError as error:
        rescued = _rescued(path.name, write)
        if rescued is None:
            raise
        named = OSError(f"{error} Its content was written to {rescued}.")
        named.errno = error.errno
        raise named from error


def _rescued(name: str, write: Callable[[Path], object]) -> Path | None:
    """Write a file to a new folder for temporary files; None if that fails too."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="vicur-"))
    except OSError:
        return None
    try:
        write(folder / name)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder / name


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder that appears complete or not at all; all its files are on the disk when this returns.

    Its files and folders have the permissions of new ones of this user.

    Args:
        folder: the folder; it must not exist, or be empty.
        write: writes the files into the empty folder that it is given.

    Raises:
        OSError: it cannot be written; the message names it and the reason.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_path(folder.parent)
        partial.mkdir()
        try:
            with _partial(partial) as file:
                folder_mode, file_mode = _mode(partial), _mode(file)
            write(partial)
            for path in sorted(partial.rglob("*"), reverse=True):
                _give(path, folder_mode if path.is_dir() else file_mode)
                flush(path)
            partial.replace(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _named(folder, error) from error


def open_locked(path: Path) -> int:
    """Open a file that grows while a command runs, for appending; create it if missing, and lock it.

    The lock ends when the descriptor is closed.

    Raises:
        BlockingIOError: another descriptor holds the lock.
        OSError: it cannot be created, opened or locked; the message names it.
    """
    # Nonblocking, or a FIFO that appears here in the meantime would wait for another process.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    while True:
        try:
            file = written_file(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, flags, 0o666)
        except OSError as error:
            raise _named(path, error) from error
        try:
            _lock(descriptor, path)
            if is_still(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had locked it has removed or replaced it


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, "locked by another process", str(path)) from error
        named = OSError(f"{path} cannot be locked: {reason_of(error)}.")
        named.errno = error.errno
        raise named from error


def is_still(descriptor: int, path: Path) -> bool:
    """Whether a path still names the file that is open: nothing has removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def stamp(path: Path) -> str | None:
    """Size and modification time of a file, which tell whether it was changed; None if it does not exist.

    A renamed file keeps its stamp.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def folder_digest(folder: Path) -> str:
    """A digest of the names, sizes and modification times of a folder's files; "" if it does not exist."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
