"""From files to samples.

A source is a sequence: `source[i]` decodes and returns one `Sample`. Column names of the usual
conventions are recognised by an alias table; today that covers the geometry3k one.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from PIL import Image

from vicur.data.sample import Message, Privilege, Sample
from vicur.data.views import View

ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("problem", "question"),
    "images": ("images", "image"),
    "answer": ("answer", "solution", "ground_truth"),
    "cue": ("cue", "visual_cue", "visual_cues", "privileged_context", "hint"),
    "rationale": ("rationale",),
    "teacher_prompt": ("teacher_prompt",),
    "target_response": ("target_response",),
    "id": ("id", "qid"),
}
"""Our name for a column, and the names it goes by, the first that is there is taken."""


@dataclass(frozen=True)
class DataConfig:
    """The training problems."""

    train: str = "train.parquet"
    """A parquet or JSON-lines file."""
    system_prompt: str | None = None
    """Put before every problem; None for no system message."""


class FileSource(Sequence[Sample]):
    """The problems of a parquet or JSON-lines file.

    Args:
        path: the file.
        system_prompt: put before every problem.
        only_for: keep only samples that have what this view shows.

    Raises:
        ValueError: there is no such file, it cannot be read, or it has no question column.
    """

    def __init__(
        self, path: str | Path, system_prompt: str | None = None, only_for: View | None = None
    ) -> None:
        self.path = Path(path)
        self.system_prompt = system_prompt
        self._table = _read_table(self.path)
        self._columns = {
            ours: next((name for name in names if name in self._table.column_names), None)
            for ours, names in ALIASES.items()
        }
        if self._columns["question"] is None:
            raise ValueError(
                f"{self.path} has no question column: looked for {' or '.join(ALIASES['question'])}, "
                f"found {', '.join(self._table.column_names)}."
            )
        self._refuse_repeated_ids()
        self._rows = list(range(self._table.num_rows))
        if only_for is not None:
            self._rows = [i for i in self._rows if only_for.applies(self._sample(i))]
        if not self._rows:
            raise ValueError(f"{self.path} has no problem to train or evaluate on.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._sample(row) for row in self._rows[index]]
        return self._sample(self._rows[index])

    def column(self, name: str) -> list[str | None]:
        """One text column of all problems, by our name for it, without decoding an image.

        Args:
            name: "question", "answer", "cue", "rationale", "target_response" or "id".
        """
        column = self._columns[name]
        if column is None:
            return [None] * len(self)
        values = self._table.column(column).to_pylist()
        return [None if values[row] is None else str(values[row]) for row in self._rows]

    def _refuse_repeated_ids(self) -> None:
        """Random numbers are keyed by the id: two problems with one id would not be independent."""
        if self._columns["id"] is None:
            return
        counts = Counter(self._table.column(self._columns["id"]).to_pylist())
        repeated = [str(name) for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"{self.path} has the id {repeated[0]} more than once.")

    def _sample(self, row: int) -> Sample:
        values = self._table.slice(row, 1).to_pylist()[0]
        take = {ours: values[name] if name else None for ours, name in self._columns.items()}
        try:
            if take["question"] is None:
                raise ValueError("the question is missing")
            images = tuple(_image(entry, self.path.parent) for entry in _as_list(take["images"]))
            messages = _messages(str(take["question"]), len(images), self.system_prompt)
            answer = None if take["answer"] is None else str(take["answer"])
            prompt = take["teacher_prompt"]
            privilege = Privilege(
                answer=answer,
                rationale=take["rationale"],
                cue=take["cue"],
                teacher_prompt=None
                if prompt is None
                else _teacher_prompt(prompt, len(images), self.system_prompt),
            )
            return Sample(
                id=str(take["id"]) if take["id"] is not None else f"{self.path.name}:{row}",
                messages=messages,
                images=images,
                answer=answer,
                privilege=privilege,
                target_response=take["target_response"],
                meta={k: v for k, v in values.items() if k not in self._columns.values()},
            )
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.path}, row {row}: {error}") from error


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"Data file {path} does not exist.")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.suffix in (".jsonl", ".json"):
            return pyarrow.json.read_json(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"Data file {path} cannot be read: {error}") from error
    raise ValueError(f"Data file {path} is neither .parquet nor .jsonl.")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _image(entry: Any, folder: Path) -> Image.Image:
    """An image from {bytes, path}, bytes, or a path relative to the data file's folder."""
    if isinstance(entry, dict):
        entry = entry["bytes"] if entry.get("bytes") is not None else entry.get("path")
    if isinstance(entry, bytes):
        return Image.open(io.BytesIO(entry)).convert("RGB")
    if isinstance(entry, str):
        path = (folder / entry).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"image {entry} lies outside the data folder")
        return Image.open(path).convert("RGB")
    raise ValueError(f"cannot make an image of a {type(entry).__name__}")


def _messages(question: str, images: int, system_prompt: str | None) -> tuple[Message, ...]:
    """One user message; `<image>` marks where the images go, otherwise they stand first."""
    if "<image>" not in question:
        question = "<image>" * images + question
    user = {"role": "user", "content": _content(question)}
    if system_prompt is None:
        return (user,)
    return ({"role": "system", "content": [{"type": "text", "text": system_prompt}]}, user)


def _teacher_prompt(prompt: Any, images: int, system_prompt: str | None) -> tuple[Message, ...]:
    """A complete prompt for the teacher: a question, or messages with role and content.

    Raises:
        ValueError: it is neither, asks nothing, or does not show every image once.
    """
    if isinstance(prompt, str):
        messages = _messages(prompt, images, system_prompt)
    elif isinstance(prompt, list) and all(isinstance(m, dict) and _is_message(m) for m in prompt):
        messages = tuple({"role": m["role"], "content": _content(m["content"])} for m in prompt)
    else:
        raise ValueError("teacher_prompt must be a text, or a list of messages with role and content")
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("teacher_prompt has no message of the user")
    shown = sum(part["type"] == "image" for message in messages for part in message["content"])
    if shown != images:
        raise ValueError(f"teacher_prompt has {shown} <image> placeholder(s) for {images} image(s)")
    return messages


def _is_message(message: dict[str, Any]) -> bool:
    return isinstance(message.get("role"), str) and isinstance(message.get("content"), str)


def _content(text: str) -> list[dict[str, str]]:
    """Text with `<image>` in it, as the parts of a message."""
    return [
        {"type": "image"} if piece == "<image>" else {"type": "text", "text": piece}
        for piece in re.split(r"(<image>)", text)
        if piece
    ]


def cue_boxes(sample: Sample) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """Name, value and (left, top, right, bottom) in pixels of what a sample's cue names, if known."""
    raw = sample.meta.get("cue_boxes")
    entries = json.loads(raw) if isinstance(raw, str) else raw or []
    return [(name, value, (left, top, right, bottom)) for name, value, left, top, right, bottom in entries]
