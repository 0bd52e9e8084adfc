"""`Sample`: one problem as read from a source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from PIL import Image

from vicur.media.video import Video

Message = dict[str, Any]
"""A chat message: {"role": str, "content": [{"type": "image" | "video"} | {"type": "text", "text": str}]}.

Media entries are placeholders; the n-th image entry refers to the n-th image of the sample.
"""

TextKind = Literal["cue", "rationale", "answer"]
"""The privileges that are a single text. To add a kind, name it here (this is the only list), add a field to
`Privilege`, and name its columns in `vicur.data.columns.ALIASES`."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the image."""
Interval = tuple[float, float]
"""Start and end in seconds of the video."""
COLUMN = "column:"
"""Prefix of a privilege that is the text in any other column, e.g. "column:caption"."""
TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)


@dataclass(frozen=True)
class Privilege:
    """What only a teacher may see in training: texts, media, and where to look. Only `vicur.data.views` reads
    it.

    Attributes:
        answer: the reference answer.
        rationale: a solution in words.
        cue: visible details that matter for the question, without answer or solution step.
        teacher_prompt: a complete list of messages that the teacher is shown instead of the problem.
        images, videos: media that show the evidence, e.g. a crop.
        prompt_crops: for each image placeholder of the teacher prompt, whether it is a place of the images
            for the teacher, instead of one of the problem's; empty if none is.
        negative_images: images that do not show it, as a control.
        regions: for each image of the problem the boxes that matter for the question; empty if there are
            none for any.
        clips: for each video the intervals that matter; empty if there are none for any.
    """

    answer: str | None = None
    rationale: str | None = None
    cue: str | None = None
    teacher_prompt: tuple[Message, ...] | None = None
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()
    negative_images: tuple[Image.Image, ...] = ()
    regions: tuple[tuple[Box, ...], ...] = ()
    clips: tuple[tuple[Interval, ...], ...] = ()
    prompt_crops: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One problem.

    Attributes:
        id: unique within its source; random numbers are keyed by it.
        messages: the chat up to the point where the student answers.
        images: images in the order of the image entries of `messages`.
        videos: videos in the order of the video entries.
        answer: the gold answer for grading, never shown to a model.
        privilege: what only a teacher may see.
        target_response: a response to learn from directly; None if the source has none.
        meta: the other columns of the source, for records and for teachers given `column:NAME`.

    Raises:
        ValueError: the messages have more or fewer media entries than there are media.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()
    answer: str | None = None
    privilege: Privilege = field(default_factory=Privilege)
    target_response: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def without_media(self) -> Sample:
        """The same problem with the texts of its messages alone, for records."""
        messages = tuple(
            {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
            for message in self.messages
        )
        privilege = replace(self.privilege, images=(), videos=(), negative_images=(), regions=(), clips=())
        return replace(self, messages=messages, images=(), videos=(), privilege=privilege)

    def __post_init__(self) -> None:
        for kind, count in (("image", len(self.images)), ("video", len(self.videos))):
            placeholders = placeholders_in(self.messages, kind)
            if placeholders != count:
                raise ValueError(
                    f"Problem {self.id}: the messages have {placeholders} {kind} placeholder(s), but the "
                    f"problem has {count} {kind}(s)."
                )


def placeholders_in(messages: Iterable[Message], kind: str) -> int:
    """Number of placeholders of a kind of medium, "image" or "video", in messages."""
    return sum(part["type"] == kind for message in messages for part in message["content"])
