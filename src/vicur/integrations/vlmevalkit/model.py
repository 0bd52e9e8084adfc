"""The model class for VLMEvalKit.

Written against its interface at commit `launcher.INTERFACE`, and not run with it.

VLMEvalKit's own Qwen3-VL classes load the stock class and drop a recovery module without a word. This one
loads a checkpoint completely or refuses it, and answers as `vicur eval` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmeval.vlm.base import BaseModel

from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.evaluation.settings import EvaluationSettings
from vicur.integrations.answering import Answering
from vicur.integrations.chats import ChatReader, Turn

_NOT_SET = 1e-3
"""A number of frames, and a rate, that no data set has."""


class ViCuR(BaseModel):  # type: ignore[misc]
    """A checkpoint in VLMEvalKit. Data sets write the prompts, not the model (`use_custom_prompt` is false).

    Args:
        settings: which checkpoint, and how it is run and sampled.
        use_vllm: set by VLMEvalKit for models with certain names; not supported.

    Raises:
        ValueError: the checkpoint is missing or broken, lacks weights or has unexpected ones.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(self, settings: EvaluationSettings, use_vllm: bool = False) -> None:
        super().__init__()
        if use_vllm:
            raise ValueError("Choose vLLM with --set engine=vllm, not with --use-vllm.")
        self.settings = settings
        self._answering = Answering(settings)
        self._reader = ChatReader(settings.data)
        self._frames: int | None = None
        self._rate: float | None = None

    @property
    def nframe(self) -> float:
        """Number of frames to take of a video.

        VLMEvalKit sets it, or `fps`, to what a data set has if it differs, and the other to None. It does so
        only where both are positive, hence a default that always differs.
        """
        return self._frames or _NOT_SET

    @nframe.setter
    def nframe(self, value: int | None) -> None:
        self._frames = value

    @property
    def fps(self) -> float:
        """Frames to take per second of a video; see `nframe`."""
        return self._rate or _NOT_SET

    @fps.setter
    def fps(self, value: float | None) -> None:
        self._rate = value

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer a message of texts, images and videos.

        Args:
            message: its parts in order: {"type", "value"}, perhaps with "role": "system".
            dataset: name of the data set; not used.

        Raises:
            ValueError: a medium cannot be read, or a part is of another kind.
        """
        system = [part for part in message if part.get("role") == "system"]
        user = [part for part in message if part.get("role") != "system"]
        turns = [{"role": "system", "content": system}] if system else []
        return self._answer([*turns, {"role": "user", "content": user}])

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer the last turn of a chat.

        Args:
            message: the turns: {"role", "content"}, with parts as in `generate_inner`.
            dataset: name of the data set; not used.

        Raises:
            ValueError: as in `generate_inner`.
        """
        return self._answer(message)

    def _answer(self, chat: Sequence[Mapping[str, Any]]) -> str:
        turns: list[Turn] = [
            {"role": turn["role"], "content": [self._part(part) for part in turn["content"]]} for turn in chat
        ]
        problem = keyed(self._reader.read("of VLMEvalKit", turns))
        ((response,),) = self._answering.answer([problem], self.settings.sampling)
        return response.response

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """A part as the chat reader takes it."""
        kind, value = part["type"], part["value"]
        if kind == "text":
            return {"type": "text", "text": value}
        if kind != "video":
            return {"type": kind, "entry": value}
        entry = {"video": value}
        stated = {name: part[name] for name in ("nframes", "fps") if part.get(name)}
        if stated:
            return {"type": kind, "entry": entry | stated}
        if self._frames:
            return {"type": kind, "entry": entry | {"nframes": self._frames}}
        return {"type": kind, "entry": entry | ({"fps": self._rate} if self._rate else {})}


def keyed(problem: Sample) -> Sample:
    """A problem whose id is a digest of what is shown: messages have no id, and random numbers are keyed by
    it."""
    return replace(problem, id=shown_digest(Plain().show(problem)))
