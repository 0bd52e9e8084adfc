"""Responses of an evaluation, stored as they are generated.

While an evaluation runs, `OUTPUT.parquet.responses.jsonl` gets a line for each response: first the settings
that the responses depend on, then {"id", "number", "digest", "response", "response_ids",
"response_tokens", "finish_reason"}. When the
evaluation is done, all responses move to OUTPUT.parquet, with the same settings in its metadata, and the
JSONL file is removed. A later run with the same settings can resume from either file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.files import ROW_GROUP, is_still, open_locked, reason_of, stamp, write_or_rescue
from vicur.settings.reading import parse_json

METADATA = b"vicur.evaluation"
"""Key of the settings in the metadata of the parquet file."""
FIRST_LINE = b'{"settings": '
"""Beginning of the JSONL file."""
COLUMNS = ("id", "number", "digest", "response", "response_ids", "response_tokens", "finish_reason")


@dataclass(frozen=True)
class StoredResponse:
    """A response to one problem.

    Attributes:
        id: id of the problem.
        number: number of the response among those to the problem, from 0.
        digest: digest of what the model was shown (`data.digests.shown_digest`).
        response: the model's turn as text, with the `<think>` that the prompt may have opened for it.
        response_ids: its token ids, stop token included; None if an endpoint does not return them.
        response_tokens: number of its tokens; None if an endpoint does not count them.
        finish_reason: "stop", or "length" where it was cut off.
    """

    id: str
    number: int
    digest: str
    response: str
    response_ids: list[int] | None
    response_tokens: int | None
    finish_reason: Literal["stop", "length"]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StoredResponse:
        """A response as it was stored.

        Raises:
            ValueError: the values are not those of a response.
        """
        texts, ids = [values.get(name) for name in ("id", "digest", "response")], values.get("response_ids")
        if not (
            set(values) == set(COLUMNS)
            and all(isinstance(text, str) for text in texts)
            and type(values["number"]) is int
            and (ids is None or (isinstance(ids, list) and all(type(token) is int for token in ids)))
            and (values["response_tokens"] is None or type(values["response_tokens"]) is int)
            and values["finish_reason"] in ("stop", "length")
        ):
            raise ValueError("not a stored response")
        return cls(**values)


class ResponseStore:
    """The responses of one evaluation: in memory, and in files if an output is given.

    Args:
        output: the parquet file; None to keep nothing.
        identity: all settings that the responses depend on, JSON-serialisable.
        overwrite: whether stored responses that do not belong to this evaluation are discarded.

    Attributes:
        notes: messages about the state of the files.

    Raises:
        ValueError: the files hold something else or responses under other settings, or another process is
            writing them.
        OSError: a file cannot be created or read.
    """

    def __init__(
        self, output: Path | None, identity: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        self.output = output
        self.identity = json.loads(json.dumps(dict(identity or {})))
        self.notes: list[str] = []
        self.overwrite = overwrite
        self._responses: dict[str, dict[int, StoredResponse]] = {}
        self._lines = 0
        self._file = -1
        if output is None:
            return
        self._stamp = stamp(output)
        self._take(self._from_output(output))
        self._open_lines(self.lines_path)

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(map(len, self._responses.values()))

    def __iter__(self) -> Iterator[str]:
        """The ids of the problems that have responses."""
        return iter(self._responses)

    @property
    def lines_path(self) -> Path:
        """The JSONL file that responses are appended to."""
        assert self.output is not None
        return lines_path(self.output)

    def get(self, problem: str) -> list[StoredResponse]:
        """The responses to a problem, in the order of their numbers."""
        return [response for _, response in sorted(self._responses.get(problem, {}).items())]

    def add(self, responses: Sequence[StoredResponse]) -> None:
        """Store responses; they are written to the JSONL file, if there is an output, when this returns.

        Raises:
            OSError: they cannot be written. All responses before them can still be read.
        """
        if self._file >= 0:
            end = os.fstat(self._file).st_size
            try:
                _append(
                    self._file,
                    "".join(json.dumps(asdict(response)) + "\n" for response in responses).encode(),
                )
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, end)
                raise OSError(
                    f"{self.lines_path} cannot be written: {reason_of(error)}. It holds the "
                    f"{len(self)} responses so far; rerun the same command to resume."
                ) from error
            if not is_still(self._file, self.lines_path):
                raise OSError(
                    f"{self.lines_path} was removed or replaced during the evaluation, and its responses are "
                    "lost; rerun the command, and leave the file where it is until the end."
                )
        self._lines += len(responses)
        self._take(responses)

    def discard(self, problem: str) -> None:
        """Remove the responses to a problem, e.g. because it has changed."""
        del self._responses[problem]

    def finish(self, table: pa.Table) -> None:
        """Write the output, which must hold all responses; `close` then removes the JSONL file.

        Raises:
            OSError: it cannot be written; the message says where the responses are.
        """
        if self.output is None:
            return
        metadata = {**(table.schema.metadata or {}), METADATA: json.dumps(self.identity).encode()}
        table = table.replace_schema_metadata(metadata)
        # The file that was read at the start may be replaced, but none that has appeared since.
        known = self._stamp is not None and self._stamp == stamp(self.output)
        try:
            write_or_rescue(
                self.output,
                lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP),
                replace=self.overwrite or known,
            )
        except OSError as error:
            raise OSError(
                f"{error} All responses are also in {self.lines_path}: rerun the same command to write the "
                "output without running the model again."
            ) from error
        self._lines = 0

    def close(self) -> None:
        """Close the JSONL file, and remove it if it holds no response."""
        if self._file < 0:
            return
        if not self._lines and is_still(self._file, self.lines_path):
            self.lines_path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def _take(self, responses: Sequence[StoredResponse]) -> None:
        for response in responses:
            self._responses.setdefault(response.id, {})[response.number] = response

    def _from_output(self, output: Path) -> list[StoredResponse]:
        if not output.exists():
            return []
        try:
            schema = pq.read_schema(output)
        except (OSError, pa.ArrowException) as error:
            return self._foreign(f"{output} exists and is not a parquet file", error)
        written = (schema.metadata or {}).get(METADATA)
        if written is None or not set(COLUMNS) <= set(schema.names):
            return self._foreign(f"{output} exists and was not written by this command")
        try:
            settings = parse_json(written.decode())
        except ValueError as error:
            raise ValueError(f"{output} has damaged metadata; choose another output.") from error
        if not self._matches(output, settings):
            return []
        try:
            rows = pq.read_table(output, columns=list(COLUMNS)).to_pylist()
            return [StoredResponse.of(row) for row in rows if row["response"] is not None]
        except (OSError, ValueError, pa.ArrowException) as error:
            return self._foreign(f"{output} exists and was not written by this command", error)

    def _foreign(self, reason: str, error: Exception | None = None) -> list[StoredResponse]:
        """No responses, of a file that this command may replace but not read."""
        if self.overwrite:
            return []
        raise ValueError(f"{reason}; choose another output, or set overwrite=true.") from error

    def _open_lines(self, path: Path) -> None:
        try:
            self._file = open_locked(path)
        except BlockingIOError as error:
            raise ValueError(
                f"Another process is writing {path}; wait for it to finish, or choose another output."
            ) from error
        try:
            self._read_lines(path)
        except BaseException:
            os.close(self._file)
            self._file = -1
            raise

    def _read_lines(self, path: Path) -> None:
        """Read the stored responses, cut off an incomplete last line, and start an empty file."""
        with open(self._file, "rb", closefd=False) as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            settings, responses = _read(content, whole)
        except ValueError as error:
            settings, responses = None, self._foreign(f"{path} was not written by this command", error)
        if settings is None or not self._matches(path, settings):
            os.ftruncate(self._file, 0)
            self._write_settings()
            return
        if whole != content:
            os.ftruncate(self._file, len(whole))
            self.notes.append(f"The last line of {path} was incomplete and was removed.")
        self._lines = len(responses)
        self._take(responses)

    def _write_settings(self) -> None:
        _append(self._file, json.dumps({"settings": self.identity}).encode() + b"\n")

    def _matches(self, path: Path, written: Mapping[str, Any]) -> bool:
        """Whether responses were stored under the current settings; others may only be discarded."""
        for name in dict.fromkeys([*self.identity, *written]):
            before, now = written.get(name), self.identity.get(name)
            if before != now and self.overwrite:
                return False
            if before != now:
                raise ValueError(
                    f"{path} holds responses of another evaluation: {name} was {before!r} and is now "
                    f"{now!r}. Choose another output, or set overwrite=true to discard them."
                )
        return True


def lines_path(output: Path) -> Path:
    """The JSONL file of an output."""
    return output.with_name(f"{output.name}.responses.jsonl")


def _append(file: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(file, content[written:])


def _read(content: bytes, whole: bytes) -> tuple[dict[str, Any] | None, list[StoredResponse]]:
    """The settings and the responses in a JSONL file; None for the settings if it has no complete line.

    Args:
        content: everything in the file.
        whole: its complete lines.

    Raises:
        ValueError: it holds something else.
    """
    if not (content.startswith(FIRST_LINE) or FIRST_LINE.startswith(content)):
        raise ValueError("its first line has no settings")
    if not whole:
        return None, []
    first, *lines = whole.splitlines()
    settings = parse_json(first.decode()).get("settings")
    if not isinstance(settings, dict):
        raise ValueError("its first line has no settings")
    return settings, [StoredResponse.of(parse_json(line.decode())) for line in lines]
