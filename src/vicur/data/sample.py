"""`Sample`: one problem as read from a source."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from PIL import Image

from vicur.media.video import Video
from vicur.settings.section import Text

Message = dict[str, Any]
"""A chat message: {"role": str, "content": [{"type": "image" | "video"} | {"type": "text", "text": str}]}.

Media entries are placeholders; the n-th image entry refers to the n-th image of the sample.
"""

TextKind = Literal["cue", "rationale", "answer"]
"""The privileges that are a single text. To add a kind, name it here (this is the only list), add a field to
`Privilege`, and name its columns in `vicur.data.columns.ALIASES`."""
PrivilegeKind = Literal[TextKind, "teacher_prompt"]
"""All privileges with a field of their own. A ready-made teacher prompt contains the problem too, so it
cannot be shown with another problem or compared as a text."""
TeacherPrivilege = Literal["none", PrivilegeKind] | Text
"""The privileges a teacher can be given: none, a kind of privilege, or `column:NAME`, the text in another
column."""
COLUMN = "column:"
"""Prefix of a privilege that is the text in any other column, e.g. "column:caption"."""
TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)
PRIVILEGES: tuple[PrivilegeKind, ...] = get_args(PrivilegeKind)


def check_privilege(kind: str, setting: str = "A privilege") -> None:
    """Check that a teacher can be given a privilege.

    Args:
        kind: the privilege.
        setting: the setting that names it, for the message.

    Raises:
        ValueError: it is none of "none", a kind of privilege and `column:NAME`.
    """
    if kind in ("none", *PRIVILEGES) or (kind.startswith(COLUMN) and kind != COLUMN):
        return
    near = difflib.get_close_matches(kind, PRIVILEGES, n=1)
    raise ValueError(
        f"{setting} must be one of none, {', '.join(PRIVILEGES)}, or {COLUMN}NAME for the text in a column"
        f"{f' ({near[0]}?)' if near else ''}, not {kind!r}."
    )


@dataclass(frozen=True)
class Privilege:
    """Training-time text that only a teacher may see. Only `vicur.data.views` reads it.

    Attributes:
        answer: the reference answer.
        rationale: a solution in words.
        cue: visible details that matter for the question, without answer or solution step.
        teacher_prompt: a complete list of messages that the teacher is shown instead of the problem.
    """

    answer: str | None = None
    rationale: str | None = None
    cue: str | None = None
    teacher_prompt: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Sample:
    """One problem.

    Attributes:
        id: unique within its source; random numbers are keyed by it.
        messages: the chat up to the point where the student answers.
        images: images in the order of the image entries of `messages`.
        videos: videos in the order of the video entries.
        answer: the gold answer for grading, never shown to a model.
        privilege: texts that only a teacher may see.
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
        return replace(self, messages=messages, images=(), videos=())

    def __post_init__(self) -> None:
        for kind, count in (("image", len(self.images)), ("video", len(self.videos))):
            placeholders = sum(part["type"] == kind for m in self.messages for part in m["content"])
            if placeholders != count:
                raise ValueError(
                    f"Problem {self.id}: the messages have {placeholders} {kind} placeholder(s), but the "
                    f"problem has {count} {kind}(s)."
                )
