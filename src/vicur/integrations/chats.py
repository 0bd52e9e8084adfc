"""Chats of a harness as problems: texts, images and videos in the order in which the harness put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vicur.bad_rows import RowProblem
from vicur.data.media import MediaReader
from vicur.data.sample import Message, Sample
from vicur.data.sources import DataConfig

Turn = Mapping[str, Any]
"""{"role", "content"}; the content is a list of {"type": "text", "text"} and {"type": "image" or "video",
"entry"}, where an entry is a medium in any form that data files have."""


class ChatReader:
    """Reads the chats of a harness with the media as `vicur eval` reads them.

    Args:
        data: system prompt, and settings for reading images and videos.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        # A harness stores media wherever its caches are, so that paths may lead anywhere.
        here = Path.cwd()
        folders = (here, Path(here.anchor))
        self._media = MediaReader(folders, data.video, data.max_raw_pixels, data.kept_pixels)

    def read(self, problem: str, turns: Sequence[Turn]) -> Sample:
        """The problem of a chat.

        A system prompt of the settings replaces that of the chat. A text is a text, even if it contains
        `<image>`.

        Args:
            problem: its id, which the random numbers of its responses are keyed by.
            turns: the chat up to the model's turn.

        Raises:
            ValueError: a medium cannot be read, or a part is neither text, image nor video.
        """
        try:
            return self._read(problem, turns)
        except RowProblem as error:
            raise ValueError(f"Problem {problem}: {error}.") from error

    def _read(self, problem: str, turns: Sequence[Turn]) -> Sample:
        messages: list[Message] = []
        images, videos = [], []
        system = self.data.system_prompt
        if system is not None:
            turns = [turn for turn in turns if turn["role"] != "system"]
            messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        for turn in turns:
            content: list[dict[str, str]] = []
            for part in turn["content"]:
                kind = part["type"]
                if kind == "image":
                    images.append(self._media.read_image(part["entry"]))
                elif kind == "video":
                    videos.append(self._media.read_video(part["entry"]))
                elif kind != "text":
                    raise RowProblem(
                        "malformed",
                        f"a message has a part of type {kind}; text, image and video are supported",
                    )
                if kind != "text":
                    content.append({"type": kind})
                elif part["text"]:
                    content.append({"type": "text", "text": part["text"]})
            messages.append({"role": turn["role"], "content": content})
        return Sample(problem, tuple(messages), tuple(images), tuple(videos))
