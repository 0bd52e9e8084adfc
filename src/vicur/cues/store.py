"""Replies by request key in an SQLite file, so that no reply is lost or paid for twice.

    sqlite3 train_cues.parquet.cues 'select key, kind, record from replies'

Every reply is committed to the disk before `add` returns, so neither a kill nor a power failure loses one.
One process writes at a time; others may read meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

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
    kind text not null,   -- cue, unusable (paid for, but without a cue) or failed
    record text not null, -- JSON
    digest text not null  -- checksum of the record
);
commit;
"""
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
        self._lock: int | None = None
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
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

    def _open(self, read_only: bool) -> sqlite3.Connection:
        head = _head(self.path, self._lock)
        if OLD_MAGIC.startswith(head):  # or empty
            if read_only:
                return self._old_records_in(":memory:")
            if head:
                self._convert()
        elif not _SQLITE.startswith(head):
            raise _foreign(self.path)
        if not read_only:
            how = "rw"
        elif any(self.path.with_name(self.path.name + end).exists() for end in ("-wal", "-journal")):
            how = "ro"
        else:
            how = "ro&immutable=1"  # no process writes: read it without creating SQLite's side files
        database = _connected(f"{self.path.absolute().as_uri()}?mode={how}")
        try:
            _check(database, self.path)
            if not read_only:  # readers and the writer do not wait for each other
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

    def _write(self, record: dict[str, Any]) -> None:
        try:
            number = _insert(self._database, record)
        except sqlite3.Error as error:
            raise OSError(
                errno.EIO, f"the store {self.path} cannot be written: {error}; earlier replies are kept"
            ) from error
        self._take(record, number)

    def _convert(self) -> None:
        """Replace a file of the old format by a database, and keep the old file under another name."""
        kept = self.path.with_name(self.path.name + ".old")
        while kept.exists():
            kept = kept.with_name(kept.name + ".old")
        partial = self.path.with_name(self.path.name + ".converting")
        partial.unlink(missing_ok=True)  # left by a conversion that was killed
        self._old_records_in(str(partial)).close()
        shutil.copy2(self.path, kept)
        os.replace(partial, self.path)
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
    while True:
        if path.resolve() in _HELD:
            raise refused
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise refused from None
        except OSError as error:
            os.close(lock)
            raise OSError(error.errno, f"the store {path} cannot be locked: {error.strerror}") from error
        os.close(lock)  # a conversion has just replaced the file


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
        raise OSError(errno.EIO, f"the store {path} cannot be read: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"The store {path} is damaged ({error}) and was left unchanged; recover its contents with "
            f"`sqlite3 {path} .recover`, or choose another store."
        ) from error
