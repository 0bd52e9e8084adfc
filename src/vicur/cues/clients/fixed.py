"""Cues without a model: a column of the data, or the same text for every problem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from vicur.cues.requests import CueRequest
from vicur.endpoints.request import Reply, RequestFailed


class NullClient:
    """Returns a fixed cue at once, to measure everything else."""

    name = "null"

    def identity(self, index: int) -> str:
        return "null"

    async def ask(self, request: CueRequest) -> Reply:
        return Reply(json.dumps({request.field: "Nothing was looked at."}), 0, 0)

    async def close(self) -> None:
        return None


class ExactClient:
    """The texts that the data itself has: CueBench's exact cues, derived from its scenes.

    Args:
        texts: the cues of the problems, in the order of the source.
        column: the column that they were read from.
    """

    def __init__(self, texts: Sequence[str | None], column: str = "cue") -> None:
        self.texts = texts
        self.name = f"exact {column}"

    def identity(self, index: int) -> str:
        text = self.texts[index] or ""
        return f"{self.name} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    async def ask(self, request: CueRequest) -> Reply:
        text = self.texts[request.index]
        if text is None:
            raise RequestFailed("the data has no text of its own for this problem", again=False)
        return Reply(json.dumps({request.field: text}), 0, 0)

    async def close(self) -> None:
        return None
