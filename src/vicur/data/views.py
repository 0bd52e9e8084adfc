"""Views: what a model is shown of a sample, and nothing else.

A view maps a `Sample` to messages and media. Student and teachers differ only in the view
(and the weights) they have. This is the one module that reads `Sample.privilege`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from vicur.data.sample import Message, PrivilegeKind, Sample


@dataclass(frozen=True)
class Shown:
    """What a view makes of a sample: the chat and the media that fill its placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()
    videos: tuple[tuple[Image.Image, ...], ...] = ()


@runtime_checkable
class View(Protocol):
    """A way of looking at a sample. Views are small frozen values, equal when they show the same."""

    @property
    def name(self) -> str:
        """Short label for records, e.g. "hinted(cue)"."""
        ...

    def applies(self, sample: Sample) -> bool:
        """Whether the sample has what the view shows."""
        ...

    def show(self, sample: Sample) -> Shown:
        """The messages and media."""
        ...


@dataclass(frozen=True)
class Plain:
    """The problem as the student sees it: media and question."""

    name = "plain"

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        return Shown(sample.messages, sample.images, sample.videos)


@dataclass(frozen=True)
class Hinted:
    """The problem with a privilege: `[Hint]: <text>` on a new line after the question.

    ViCuR section 3.1; the hint's place is our choice, nobody states it. With the kind
    `teacher_prompt` the sample's ready-made messages replace the problem's.

    Attributes:
        kind: which privilege.
        missing: what a sample without that privilege gets: the plain view, or an error.
            (Leaving such samples out is up to the source, by `applies`.)
    """

    kind: PrivilegeKind
    missing: Literal["plain", "error"] = "plain"

    @property
    def name(self) -> str:
        return f"hinted({self.kind})"

    def applies(self, sample: Sample) -> bool:
        return getattr(sample.privilege, self.kind) is not None

    def show(self, sample: Sample) -> Shown:
        plain = Plain().show(sample)
        hint = getattr(sample.privilege, self.kind)
        if hint is None:
            if self.missing == "error":
                raise ValueError(f"Sample {sample.id} has no {self.kind} to hint the teacher with.")
            return plain
        if self.kind == "teacher_prompt":
            return replace(plain, messages=hint)
        return replace(plain, messages=_append_to_question(plain.messages, f"\n[Hint]: {hint}"))


@dataclass(frozen=True)
class Blind:
    """The problem without its media: same template, same system prompt, same words."""

    name = "blind"

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        messages = tuple(
            {**m, "content": [part for part in m["content"] if part["type"] == "text"]}
            for m in sample.messages
        )
        return Shown(messages)


def _append_to_question(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The messages with `text` at the end of the last user message."""
    index = max(i for i, message in enumerate(messages) if message["role"] == "user")
    content = [*messages[index]["content"], {"type": "text", "text": text}]
    changed = {**messages[index], "content": content}
    return (*messages[:index], changed, *messages[index + 1 :])
