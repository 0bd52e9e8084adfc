"""Views: which parts of a sample a model is shown.

A view maps a `Sample` to messages and media. Student and teachers differ only in their view (and their
weights). This is the only module that reads `Sample.privilege`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.sample import COLUMN, TEXT_KINDS, Message, Privilege, Sample, TextKind, check_privilege
from vicur.media.video import Video


@dataclass(frozen=True)
class Shown:
    """A sample under a view: the chat and the media that fill its placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()


@runtime_checkable
class View(Protocol):
    """A selection of what a sample shows. Views are small frozen values, equal when they show the same."""

    @property
    def name(self) -> str:
        """Short label for records, e.g. "hinted(cue)"."""
        ...

    @property
    def keeps_tokens(self) -> bool:
        """Whether the prompt has the plain view's tokens, so that only pixels differ."""
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
    keeps_tokens = True

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        return Shown(sample.messages, sample.images, sample.videos)


@dataclass(frozen=True)
class Hinted:
    """The problem with a privilege: `[Hint]: <text>` on a new line after the question.

    ViCuR section 4.2; the paper does not state where the hint goes, so this place is our choice. With the
    kind `teacher_prompt` the sample's ready-made messages replace the problem's.

    Attributes:
        kind: a privilege, or `column:NAME` for the text in a column that is no field of a problem.
        missing: treatment of a sample without that privilege: the plain view, or an error.
            (A source can leave such samples out with `applies`.)

    Raises:
        ValueError: there is no such privilege.
    """

    kind: str
    missing: Literal["plain", "error"] = "plain"
    keeps_tokens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        assert self.kind != "none", "a view without privilege is Plain"
        check_privilege(self.kind)

    @property
    def name(self) -> str:
        return f"hinted({self.kind})"

    def applies(self, sample: Sample) -> bool:
        return _privilege(sample, self.kind) is not None

    def show(self, sample: Sample) -> Shown:
        plain = Plain().show(sample)
        hint = _privilege(sample, self.kind)
        if hint is None:
            if self.missing == "error":
                raise ValueError(f"Sample {sample.id} has no {self.kind} to hint the teacher with.")
            return plain
        if not isinstance(hint, str):  # a teacher_prompt
            return replace(plain, messages=hint)
        return replace(plain, messages=_append_to_question(plain.messages, f"\n[Hint]: {hint}"))


@dataclass(frozen=True)
class Blind:
    """The problem without its media: same template, same system prompt, same words."""

    name = "blind"
    keeps_tokens = False

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        messages = tuple(
            {**m, "content": [part for part in m["content"] if part["type"] == "text"]}
            for m in sample.messages
        )
        return Shown(messages)


@dataclass(frozen=True)
class BlindHinted:
    """The question with a hint and without its media: shows what the text alone contributes.

    Attributes:
        kind: the kind of privilege; a sample without it is an error.
    """

    kind: TextKind
    keeps_tokens: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"blind, hinted({self.kind})"

    def applies(self, sample: Sample) -> bool:
        return Hinted(self.kind).applies(sample)

    def show(self, sample: Sample) -> Shown:
        hinted = Hinted(self.kind, missing="error").show(sample)
        return Blind().show(replace(sample, messages=hinted.messages))


@dataclass(frozen=True)
class Blank:
    """The problem with black images and frames of the same size: same words and visual tokens, nothing to
    see."""

    name = "blank"
    keeps_tokens = True

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        return _with_media(sample, lambda image, _: Image.new("RGB", image.size))


@dataclass(frozen=True)
class Degraded:
    """The problem with the fine detail of its media destroyed, at the same size (VA-OPD section 2.1).

    Each image or frame shrinks by `ratio`, bilinear, and grows back by nearest neighbour.

    Attributes:
        ratio: reduced side lengths over the original ones; at least one pixel remains.

    Raises:
        ValueError: the ratio is not above 0 and at most 1.
    """

    ratio: float = 0.1
    keeps_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"A degraded view needs a ratio above 0 and at most 1, not {self.ratio}.")

    @property
    def name(self) -> str:
        return f"degraded({self.ratio:g})"

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        return _with_media(sample, lambda image, _: self._degrade(image))

    def _degrade(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        small = (max(1, int(self.ratio * width)), max(1, int(self.ratio * height)))
        shrunk = _smooth(image).resize(small, Image.Resampling.BILINEAR)
        return shrunk.resize(image.size, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Masked:
    """The problem with patches of its media blacked out at random, at the same size (PAPO).

    The choice of patches depends on the sample, the image and `draw` alone.

    Attributes:
        probability: probability that a patch is black.
        patch: its side in pixels of the raw image.
        draw: seed of the mask; every training step uses another one.

    Raises:
        ValueError: the probability is not between 0 and 1, or a patch has no pixel.
    """

    probability: float = 0.6
    patch: int = 14
    draw: int = 0
    keeps_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"A masked view needs a probability between 0 and 1, not {self.probability}.")
        if self.patch < 1:
            raise ValueError(f"A masked view needs patches of at least 1 pixel, not {self.patch}.")

    @property
    def name(self) -> str:
        return f"masked({self.probability:g}, {self.patch})"

    def applies(self, sample: Sample) -> bool:
        return True

    def show(self, sample: Sample) -> Shown:
        return _with_media(sample, lambda image, index: self._mask(image, f"{sample.id}/{index}"))

    def _mask(self, image: Image.Image, key: str) -> Image.Image:
        digest = hashlib.blake2b(f"{self.draw}/{key}".encode(), digest_size=8).digest()
        random = np.random.default_rng(int.from_bytes(digest, "little"))
        width, height = image.size
        rows, columns = -(-height // self.patch), -(-width // self.patch)
        black = random.random((rows, columns)) < self.probability
        pixels = black.repeat(self.patch, 0).repeat(self.patch, 1)[:height, :width]
        masked = _smooth(image).copy()
        masked.paste(0, mask=Image.fromarray(pixels))
        return masked


def without_privilege(sample: Sample) -> Sample:
    """The sample reduced to the problem; what a student is shown must be the same as for the full sample."""
    return replace(sample, privilege=Privilege(), answer=None, meta={})


def privileged_texts(sample: Sample) -> dict[TextKind, str]:
    """The texts of a sample that no student may read, by kind. A ready-made teacher prompt is not among them,
    because it contains the problem too."""
    texts = {kind: getattr(sample.privilege, kind) for kind in TEXT_KINDS}
    return {kind: text for kind, text in texts.items() if text}


def teacher_view(privilege: str, missing: Literal["plain", "error"] = "plain") -> View:
    """The view of a teacher that is given a privilege.

    Args:
        privilege: "none", a privilege, or `column:NAME`.
        missing: treatment of a sample without it: the plain view, or an error.

    Raises:
        ValueError: there is no such privilege.
    """
    return Plain() if privilege == "none" else Hinted(privilege, missing)


def _privilege(sample: Sample, kind: str) -> str | tuple[Message, ...] | None:
    """A sample's privilege; None where it has none.

    Raises:
        RowProblem: the column holds something other than a text.
    """
    if not kind.startswith(COLUMN):
        return getattr(sample.privilege, kind)
    value = sample.meta.get(kind.removeprefix(COLUMN))
    if value is not None and not isinstance(value, str):
        raise RowProblem(
            "malformed", f"teacher.privilege={kind} takes a column of texts, not a {type(value).__name__}"
        )
    return value if value is not None and value.strip() else None


def _with_media(sample: Sample, change: Callable[[Image.Image, int], Image.Image]) -> Shown:
    """The plain view with every image and frame changed; sizes, and so the visual tokens, stay the same."""
    plain = Plain().show(sample)
    index = 0

    def changed(images: tuple[Image.Image, ...]) -> tuple[Image.Image, ...]:
        nonlocal index
        changed_images = []
        for image in images:
            changed_images.append(change(image, index))
            assert changed_images[-1].size == image.size, "a view must not change the size of an image"
            index += 1
        return tuple(changed_images)

    images = changed(plain.images)
    videos = tuple(replace(video, frames=changed(video.frames)) for video in plain.videos)
    return replace(plain, images=images, videos=videos)


def _smooth(image: Image.Image) -> Image.Image:
    """The image in a mode whose pixels can be averaged, unlike a palette's indices and single bits."""
    if image.mode == "P":
        return image.convert("RGB")
    return image.convert("L") if image.mode == "1" else image


def _append_to_question(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The messages with `text` at the end of the last user message."""
    index = max(i for i, message in enumerate(messages) if message["role"] == "user")
    content = [*messages[index]["content"], {"type": "text", "text": text}]
    changed = {**messages[index], "content": content}
    return (*messages[:index], changed, *messages[index + 1 :])
