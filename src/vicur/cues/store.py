"""Replies by request key in an SQLite file, so that no reply is lost or paid for twice.

    sqlite3 train_cues.parquet.cues 'select key, kind, record from replies'

Every reply is committed to the disk before `add` returns, so neither a kill nor a power failure loses one.
One process writes at a time; others may read meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vicur.files import is_still, open_locked, stamp, write_whole

APPLICATION = 0x56435552
"""SQLite's application_id of a store ("VCUR"): any other database is left alone."""
OLD_MAGIC = b"vicur-cues 1\n"
"""First line of the format before SQLite: a line per record, each after a checksum of 16 hex digits."""
_SQLITE = b"SQLite format 3\0"
_SCHEMA = f"""
begin;
pragma application_id = {APPLICATION};
create table replies (
    number integer primary key,
    key text not null,
    kind text not null,   -- cue, unusable (paid for, but without a cue), failed, or file (that was written)
    record text not null, -- JSON
    digest text not null  -- checksum of the record
);
commit;
"""
JOURNALS = ("-wal", "-journal")
"""Endings of the files beside a database with changes that are not in it yet."""
SIDE_FILES = (*JOURNALS, "-shm")
"""Endings of the files that SQLite keeps beside a database while it is open for writing."""
_HELD: set[Path] = set()
"""Stores that this process has open for writing. To close a second file descriptor of a store would release
SQLite's own locks, so none is opened."""


@dataclass(frozen=True)
class Failure:
    """Why a problem has no cue.

    Attributes:
        reason: reason of the last try.
        tries: number of tries.
    """

    reason: str
    tries: int


class CueStore:
    """Replies by request key.

    A store in the format before SQLite is converted when it is opened for writing; the old file is kept
    beside it. A read-only store changes no file.

    Args:
        path: the file; created if missing.
        read_only: open for reading only, which works while another process writes.

    Attributes:
        path: path of the store, as given.
        notes: messages about damage to the file or changes to it.
        cost: total cost of all replies, in the currency of the prices.
        token_ratio: the largest ratio of true to estimated prompt tokens; None before the first reply.

    Raises:
        ValueError: the file is not a store, is damaged, or is being written by another process.
        OSError: it cannot be created or read.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.notes: list[str] = []
        self.cost = 0.0
        self.token_ratio: float | None = None
        self._numbers: dict[str, int] = {}
        self._failures: dict[str, Failure] = {}
        self._files: set[tuple[str, str]] = set()
        self._lock: int | None = None
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        if not read_only:
            self._take_lock()
        try:
            with _explained(path):
                self._database = self._open(read_only)
                self._load()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> CueStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def __len__(self) -> int:
        """Number of cues."""
        return len(self._numbers)

    def close(self) -> None:
        """Close the file and let others write."""
        self._database.close()
        self._release()
        if self._copies is not None:
            self._copies.cleanup()

    def record(self, key: str) -> dict[str, Any]:
        """Everything that is stored about a cue.

        Raises:
            KeyError: there is no cue under this key.
        """
        query = "select record from replies where number = ?"
        (text,) = self._database.execute(query, [self._numbers[key]]).fetchone()
        record: dict[str, Any] = json.loads(text)
        return record

    def cue(self, key: str) -> str:
        """The text of a cue.

        Raises:
            KeyError: there is no cue under this key.
        """
        return str(self.record(key)["cue"])

    def failure(self, key: str) -> Failure | None:
        """Why there is no cue under a key; None if there is one, or it was never tried."""
        return None if key in self._numbers else self._failures.get(key)

    def add(self, key: str, cue: str, *, cost: float = 0.0, **about: Any) -> None:
        """Store a cue.

        Args:
            key: key of the request.
            cue: text of the cue.
            cost: cost of this reply.
            about: further fields, JSON-serialisable.
        """
        self._write({"kind": "cue", "key": key, "cue": cue, "cost": cost, **about})

    def add_cost(self, key: str, cost: float, reason: str) -> None:
        """Record the cost of a reply that could not be used."""
        self._write({"kind": "unusable", "key": key, "cost": cost, "reason": reason})

    def add_failure(self, key: str, reason: str, tries: int) -> None:
        """Record that there is no cue under a key, and why."""
        self._write({"kind": "failed", "key": key, "reason": reason, "tries": tries})

    def note_file(self, file: Path, partial: Path) -> None:
        """Record that a build with this store writes a file.

        Args:
            file: the file.
            partial: its content, under another name until it is complete.
        """
        self._write({"kind": "file", "key": self._place(file), "stamp": stamp(partial)})

    def has_written(self, file: Path) -> bool:
        """Whether a build with this store has written a file, and nothing has changed it since."""
        return (self._place(file), stamp(file)) in self._files

    def _place(self, file: Path) -> str:
        """A file's path from the folder of the store: both may be moved together."""
        return os.path.relpath(os.path.realpath(file), os.path.dirname(os.path.realpath(self.path)))

    def _open(self, read_only: bool) -> sqlite3.Connection:
        head = _head(self.path, self._lock)
        if OLD_MAGIC.startswith(head):  # or empty
            if read_only:
                return self._old_records_in(":memory:")
            if head:
                self._convert()
        elif not _SQLITE.startswith(head):
            raise _foreign(self.path)
        address = self._read_only_address() if read_only else f"{self.path.absolute().as_uri()}?mode=rw"
        database = _connected(address)
        try:
            _check(database, self.path)
            if read_only:
                database.execute("pragma query_only = on")
            else:  # readers and the writer do not wait for each other
                database.execute("pragma journal_mode = wal")
                database.execute("pragma synchronous = full")  # every commit reaches the disk
        except BaseException:
            database.close()
            raise
        return database

    def _load(self) -> None:
        damaged = 0
        for number, text, digest in self._database.execute("select number, record, digest from replies"):
            if _digest(str(text).encode()) == digest:
                self._take(json.loads(text), number)
            else:
                damaged += 1
        if damaged:
            self.notes.append(
                f"The store {self.path} has {damaged} damaged record(s); their cues will be requested again."
            )

    def _take(self, record: dict[str, Any], number: int) -> None:
        self.cost += float(record.get("cost", 0.0))
        if "token_ratio" in record:  # so that a budget holds from the next run's first request
            self.token_ratio = max(self.token_ratio or 0.0, float(record["token_ratio"]))
        key = str(record["key"])
        if record["kind"] == "cue":
            self._numbers[key] = number
            self._failures.pop(key, None)
        elif record["kind"] == "failed":
            self._failures[key] = Failure(str(record["reason"]), int(record["tries"]))
        elif record["kind"] == "file":
            self._files.add((key, str(record["stamp"])))

    def _write(self, record: dict[str, Any]) -> None:
        if self._lock is not None and not is_still(self._lock, self.path):
            raise OSError(
                f"The store {self.path} was removed or replaced during the build, and its replies are lost; "
                "rerun the command, and leave the file where it is until the end."
            )
        try:
            number = _insert(self._database, record)
        except sqlite3.Error as error:
            raise OSError(
                f"The store {self.path} cannot be written: {error}; earlier replies are kept."
            ) from error
        self._take(record, number)

    def _read_only_address(self) -> str:
        """The address of a database that can be read without changing a file of the store."""
        real = Path(os.path.realpath(self.path))
        if not any(_beside(real, end).exists() for end in SIDE_FILES):  # no process writes
            return f"{real.as_uri()}?mode=ro&immutable=1"
        if _in_use(real):  # SQLite coordinates the two processes
            return f"{real.as_uri()}?mode=ro"
        # A writer was killed. SQLite would complete its work in these files: let it do so in copies.
        self._copies = tempfile.TemporaryDirectory(prefix="vicur-store-")
        copy = Path(self._copies.name) / "store"
        for end in ("", *JOURNALS):
            with suppress(FileNotFoundError):
                shutil.copyfile(_beside(real, end), _beside(copy, end))
        return f"{copy.as_uri()}?mode=rw"

    def _convert(self) -> None:
        """Replace a file of the old format by a database, and keep the old file under another name."""
        kept = _beside(self.path, ".old")
        while kept.exists():
            kept = _beside(kept, ".old")
        write_whole(kept, lambda file: shutil.copy2(self.path, file), replace=False)
        write_whole(self.path, lambda file: self._old_records_in(file.absolute().as_uri()).close())
        self._release()  # the lock was on the old file
        self._take_lock()
        self.notes.append(
            f"The store {self.path} was converted to an SQLite database; the old file is kept as {kept}."
        )

    def _old_records_in(self, place: str) -> sqlite3.Connection:
        """A new database with all undamaged records of a file of the old format."""
        database = _connected(place)
        _check(database, self.path)
        lines = self.path.read_bytes()[len(OLD_MAGIC) :].split(b"\n")
        damaged = 0
        database.execute("begin")
        for line in lines:
            if line[:16] == _digest(line[17:]).encode():
                _insert(database, json.loads(line[17:]))
            else:
                damaged += line != b""
        database.execute("commit")
        if damaged:
            self.notes.append(
                f"The store {self.path} had {damaged} damaged or unfinished record(s); their cues will be "
                "requested again."
            )
        return database

    def _take_lock(self) -> None:
        self._lock = _locked(self.path)
        _HELD.add(self.path.resolve())

    def _release(self) -> None:
        if self._lock is not None:
            _HELD.discard(self.path.resolve())
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of a store's file.

    Raises:
        ValueError: another process, or this one, holds it.
    """
    refused = ValueError(
        f"Another process is using the store {path}; wait for it to finish, or choose another store."
    )
    if path.resolve() in _HELD:
        raise refused
    try:
        return open_locked(path)
    except BlockingIOError:
        raise refused from None


def _in_use(path: Path) -> bool:
    """Whether a process has a store open for writing. Nothing is changed, and the lock is not kept."""
    if path.resolve() in _HELD:
        return True
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _head(path: Path, lock: int | None) -> bytes:
    """The first bytes of a file, up to the length of the old format's first line."""
    if lock is not None:
        return os.pread(lock, len(OLD_MAGIC), 0)
    with path.open("rb") as file:
        return file.read(len(OLD_MAGIC))


def _connected(place: str) -> sqlite3.Connection:
    # Without an isolation level, a statement outside "begin" commits by itself.
    database = sqlite3.connect(place, uri=True, isolation_level=None)
    database.text_factory = lambda raw: raw.decode(
        errors="replace"
    )  # a damaged text is detected by its digest
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Check that a database is an undamaged store; make an empty one a store.

    Raises:
        ValueError: it is not a store.
        sqlite3.DatabaseError: it is damaged.
    """
    (application,) = database.execute("pragma application_id").fetchone()
    (tables,) = database.execute("select count(*) from sqlite_schema").fetchone()
    if (application, tables) == (0, 0):
        database.executescript(_SCHEMA)
    elif application != APPLICATION:
        raise _foreign(path)
    (sentence,) = database.execute("pragma quick_check(1)").fetchone()
    if sentence != "ok":
        raise sqlite3.DatabaseError(sentence)


def _insert(database: sqlite3.Connection, record: dict[str, Any]) -> int:
    text = json.dumps(record)
    cursor = database.execute(
        "insert into replies (key, kind, record, digest) values (?, ?, ?, ?)",
        (record["key"], record["kind"], text, _digest(text.encode())),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} is not a cue store and was left unchanged; choose another store.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into messages about the store."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"The store {path} cannot be read: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"The store {path} is damaged ({error}) and was left unchanged; recover its contents with "
            f"`sqlite3 {path} .recover`, or choose another store."
        ) from error
