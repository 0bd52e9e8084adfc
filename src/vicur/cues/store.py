"""An append-only file of replies: whatever was paid for is kept, and kept once.

    vicur-cues 1
    3f2a91c04d5e6b78 {"kind": "cue", "key": "...", "cue": "...", ...}

Each line is one record behind a checksum of its own. A process that is killed in the middle of a write
leaves a torn last line, which the next one cuts off; all lines before it are whole. A line that was
damaged later is left where it is and not counted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MAGIC = b"vicur-cues 1\n"
"""The first line; what does not begin with it is somebody else's file and never touched."""
_CHECKSUM = 16
"""Hex digits before each record."""
SYNC_SECONDS = 1.0
"""A killed process loses nothing in any case; a power failure loses what is younger than this."""


@dataclass(frozen=True)
class Failure:
    """Why a problem has no cue.

    Attributes:
        reason: of the last try.
        tries: how many there were.
    """

    reason: str
    tries: int


class CueStore:
    """Replies by their key, in a file that one process writes at a time.

    Args:
        path: the file; made if it is not there.
        clock: seconds, for when to make the disk write.

    Attributes:
        path: as given.
        notes: what was found wrong with the file, in sentences.
        cost: of all that was ever paid for, in the currency of the prices.
        token_ratio: the largest of true to estimated tokens of a prompt; None before the first.

    Raises:
        ValueError: it is not a store, or another process has it open.
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.notes: list[str] = []
        self.cost = 0.0
        self.token_ratio: float | None = None
        self._clock = clock
        self._places: dict[str, tuple[int, int]] = {}
        self._failures: dict[str, Failure] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._end = self._read()
        except BaseException:
            os.close(self._file)
            raise
        self._synced = clock()

    def __enter__(self) -> CueStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        """How many cues it has."""
        return len(self._places)

    def close(self) -> None:
        """Make the disk write, and let others in."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def record(self, key: str) -> dict[str, Any]:
        """All that is known of a cue.

        Raises:
            KeyError: there is none under this key.
        """
        start, length = self._places[key]
        found: dict[str, Any] = json.loads(os.pread(self._file, length, start)[_CHECKSUM + 1 :])
        return found

    def cue(self, key: str) -> str:
        """The words of a cue.

        Raises:
            KeyError: there is none under this key.
        """
        return str(self.record(key)["cue"])

    def failure(self, key: str) -> Failure | None:
        """Why there is no cue under a key; None if there is one, or nobody tried."""
        return None if key in self._places else self._failures.get(key)

    def add(self, key: str, cue: str, *, cost: float = 0.0, **about: Any) -> None:
        """Keep a cue.

        Args:
            key: what it was asked by.
            cue: its words.
            cost: of this reply.
            about: what else to keep, as JSON can hold it.
        """
        self._write({"kind": "cue", "key": key, "cue": cue, "cost": cost, **about})

    def add_cost(self, key: str, cost: float, reason: str) -> None:
        """Keep that a reply was paid for and could not be used."""
        self._write({"kind": "unusable", "key": key, "cost": cost, "reason": reason})

    def add_failure(self, key: str, reason: str, tries: int) -> None:
        """Keep that there is no cue under a key, and why."""
        self._write({"kind": "failed", "key": key, "reason": reason, "tries": tries})

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise OSError(
                    error.errno, f"the store {self.path} cannot be locked: {error.strerror}"
                ) from error
            raise ValueError(
                f"Another process is building with the store {self.path}; wait until it has ended, or give "
                "another store."
            ) from error

    def _read(self) -> int:
        """Take in what is there, cut off what is torn, and return where the next record goes."""
        with open(self._file, "rb", closefd=False) as file:
            first = file.readline(len(MAGIC))
            if first != MAGIC:
                if not MAGIC.startswith(first) or file.read(1):
                    raise ValueError(
                        f"{self.path} is not a store of cues and was left as it is; give another store."
                    )
                os.ftruncate(self._file, 0)  # killed while the first line was written
                os.pwrite(self._file, MAGIC, 0)
                return len(MAGIC)
            end = start = len(MAGIC)
            damaged = 0
            for line in file:
                record = _checked(line)
                if record is not None:
                    damaged += bool(end < start)
                    self._take(record, start, len(line))
                    end = start + len(line)
                start += len(line)
            size = start
        return self._mend(end, size, damaged)

    def _mend(self, end: int, size: int, damaged: int) -> int:
        if damaged:
            self.notes.append(
                f"The store {self.path} is damaged in {damaged} place(s); the cues there will be asked again."
            )
        if end < size:
            os.ftruncate(self._file, end)
            self.notes.append(
                f"The last {size - end} bytes of the store {self.path} were a record that broke off; they "
                "were cut off, and its cue will be asked again."
            )
        if end > len(MAGIC) and os.pread(self._file, 1, end - 1) != b"\n":
            os.pwrite(self._file, b"\n", end)  # all of the record but its line end
            end += 1
        return end

    def _take(self, record: dict[str, Any], start: int, length: int) -> None:
        self.cost += float(record.get("cost", 0.0))
        if "token_ratio" in record:  # so that a budget is kept from the first request of the next run on
            self.token_ratio = max(self.token_ratio or 0.0, float(record["token_ratio"]))
        key = str(record["key"])
        if record["kind"] == "cue":
            self._places[key] = (start, length)
            self._failures.pop(key, None)
        elif record["kind"] == "failed":
            self._failures[key] = Failure(str(record["reason"]), int(record["tries"]))

    def _write(self, record: dict[str, Any]) -> None:
        line = _line(record)
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise OSError(
                error.errno, f"the store {self.path} cannot be written: {error.strerror}; all before is kept"
            ) from error
        self._take(record, self._end, len(line))
        self._end += len(line)
        if self._clock() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = self._clock()


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record).encode()
    return _checksum(body) + b" " + body + b"\n"


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM // 2).hexdigest().encode()


def _checked(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is not whole."""
    body = line[_CHECKSUM + 1 :].rstrip(b"\n")
    if line[:_CHECKSUM] != _checksum(body) or line[_CHECKSUM : _CHECKSUM + 1] != b" ":
        return None
    record: dict[str, Any] = json.loads(body)
    return record
