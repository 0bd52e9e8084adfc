"""Computes the lengths of prompts in tokens, without processing pixels.

The text is rendered and tokenised as for the model; the number of tokens of a medium follows from its size.
So an outline of a problem is enough, and prompts are measured while `FileSource` checks the rows: a
`PromptMeter` is its observer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Shown, View
from vicur.encoding.prompts import PromptEncoder

Role = str
"""The models that read prompts: "student", "teacher", or the name of another teacher of the recipe."""
SAMPLED = 1_000
"""Problems that are measured at least where no length is limited. About a millisecond each."""


def prompt_length(encoder: PromptEncoder, prompt: Shown) -> int:
    """Tokens of the prompt that `encoder.encode` would make, media included.

    Args:
        encoder: encoder with the limits on pixels that apply.
        prompt: a prompt; only the sizes of its media are read.
    """
    sizes = encoder.sizes
    # An image's placeholder is one token in the text; the model sees all visual tokens of the image.
    length = sum(sizes.image_tokens(image.size) - 1 for image in prompt.images)
    if not prompt.videos:
        return length + len(encoder.text_ids(prompt))
    # The processor puts timestamps and markers between the frames of a video, in its own layout.
    # So it is run, with frames of a single visual token each.
    for video in prompt.videos:
        count = len(video.frames)
        length += sizes.frame_groups(count) * (sizes.frame_tokens(count, video.size) - 1)
    videos = [replace(video, frames=(_dot(sizes.frame_side),) * len(video.frames)) for video in prompt.videos]
    _, (ids,), _ = encoder.process(
        [prompt],
        images=[_dot(sizes.image_side)] * len(prompt.images) or None,
        videos=[torch.stack([pil_to_tensor(frame) for frame in video.frames]) for video in videos],
        images_kwargs={"do_resize": False},
        videos_kwargs=encoder.video_options(videos),
    )
    return length + len(ids)


def visual_tokens(encoder: PromptEncoder, prompt: Shown) -> int:
    """Visual tokens of a prompt's images and videos; only their sizes are read."""
    sizes = encoder.sizes
    images = sum(sizes.image_tokens(image.size) for image in prompt.images)
    counts = [(len(video.frames), video.size) for video in prompt.videos]
    return images + sum(sizes.frame_groups(n) * sizes.frame_tokens(n, size) for n, size in counts)


@dataclass(frozen=True)
class PromptSize:
    """Size of one prompt.

    Attributes:
        tokens: length in tokens, media included.
        visual_tokens: tokens of its images and videos.
        raw_pixels: pixels of its images and frames before the processor resizes them.
    """

    tokens: int
    visual_tokens: int
    raw_pixels: int

    @classmethod
    def of(cls, encoder: PromptEncoder, prompt: Shown) -> PromptSize:
        """Measure a prompt; of its media only the sizes are looked at."""
        return cls(prompt_length(encoder, prompt), visual_tokens(encoder, prompt), _raw_pixels(prompt))


@dataclass(frozen=True)
class Reader:
    """A model that reads prompts, as far as their length depends on it.

    Attributes:
        role: the model.
        view: what the model is shown.
        encoder: encoder of its prompts, with the limits on pixels that apply.
        max_tokens: maximum length of its prompts; None for no limit.
        more: tokens by which a prompt may be longer than what the view shows of the problem alone, because it
            shows a response too.
    """

    role: Role
    view: View
    encoder: PromptEncoder
    max_tokens: int | None = None
    more: int = 0

    def size(self, outline: Sample) -> PromptSize:
        """The size of a problem's prompt."""
        size = PromptSize.of(self.encoder, self.view.show(outline))
        return replace(size, tokens=size.tokens + self.more)


@dataclass(frozen=True)
class Overlong:
    """A problem whose prompt is longer than allowed.

    Attributes:
        id: id of the problem.
        row: row number in the data, from 0.
        role: the model that the prompt is for.
        tokens: length of the prompt, media included.
        limit: maximum length.
    """

    id: str
    row: int
    role: Role
    tokens: int
    limit: int

    def __str__(self) -> str:
        return (
            f"row {self.row} ({self.id}): the {self.role}'s prompt has {self.tokens} tokens, more than "
            f"{self.limit}"
        )


@dataclass(frozen=True)
class MeasuredProblem:
    """The sizes of one problem's prompts.

    Attributes:
        id: id of the problem.
        sizes: size of the prompt by role of its reader.
    """

    id: str
    sizes: Mapping[Role, PromptSize]


class PromptMeter:
    """Measures the prompts of problems, for each model that reads them.

    If no reader has a limit, only some problems are measured, at even distances: at least `sampled`, or all
    if there are fewer.

    Args:
        readers: the models.
        sampled: minimum number of problems to measure if there is no limit.

    Attributes:
        measured: the problems that were measured, by the number of the row.
    """

    def __init__(self, readers: Sequence[Reader], sampled: int = SAMPLED) -> None:
        self.readers = tuple(readers)
        self.measured: dict[int, MeasuredProblem] = {}
        self._capacity = None if self._has_limit else 2 * sampled
        self._stride, self._count = 1, 0

    @property
    def _has_limit(self) -> bool:
        return any(reader.max_tokens is not None for reader in self.readers)

    def __call__(self, row: int, outline: Sample) -> None:
        """Measure a problem's prompts.

        Args:
            row: number of its row.
            outline: the problem; of its media only the sizes are looked at.
        """
        if len(self.measured) == self._capacity:
            # Drop every second problem, and measure half as many from now on.
            self.measured = dict(list(self.measured.items())[::2])
            self._stride *= 2
        if self._count % self._stride == 0:
            self.measured[row] = self._measure(outline)
        self._count += 1

    def measured_of(self, source: FileSource) -> list[MeasuredProblem]:
        """The problems of a source that were measured; if none was, its first problem is measured now.

        Raises:
            BadRowError: a medium of that problem cannot be read.
        """
        rows = map(source.row_number, range(len(source)))
        return [self.measured[row] for row in rows if row in self.measured] or [
            self._measure(source.outline(0))
        ]

    def _measure(self, outline: Sample) -> MeasuredProblem:
        return MeasuredProblem(outline.id, {reader.role: reader.size(outline) for reader in self.readers})

    def overlong(self, row: int) -> Overlong | None:
        """The first prompt of a problem that is over its reader's limit, if there is one."""
        if not self._has_limit:
            return None
        problem = self.measured[row]
        for reader in self.readers:
            tokens = problem.sizes[reader.role].tokens
            if reader.max_tokens is not None and tokens > reader.max_tokens:
                return Overlong(problem.id, row, reader.role, tokens, reader.max_tokens)
        return None


def fit_prompts(
    source: FileSource, meter: PromptMeter, overlong: Literal["error", "drop"]
) -> tuple[FileSource, list[Overlong]]:
    """Drop problems whose prompts are too long.

    Args:
        source: the problems, opened with `meter` as observer.
        meter: sizes and limits of their prompts.
        overlong: whether a prompt that is too long is dropped or an error.

    Returns:
        the problems whose prompts fit, and what was dropped.

    Raises:
        ValueError: prompts are too long and that is an error, or no problem is left.
    """
    results = [meter.overlong(source.row_number(index)) for index in range(len(source))]
    too_long = [problem for problem in results if problem is not None]
    if not too_long:
        return source, []
    if overlong == "error":
        more = f", and {len(too_long) - 1} more" if len(too_long) > 1 else ""
        raise ValueError(
            f"{source.name}, {too_long[0]}{more}. Raise the limit, lower data.max_pixels, or set "
            "data.overlong=drop."
        )
    if len(too_long) == len(source):
        raise ValueError(f"{source.name}: every prompt is too long, the first: {too_long[0]}.")
    return source.select(index for index, problem in enumerate(results) if problem is None), too_long


def _raw_pixels(prompt: Shown) -> int:
    images = sum(image.size[0] * image.size[1] for image in prompt.images)
    return images + sum(len(v.frames) * v.size[0] * v.size[1] for v in prompt.videos)


def _dot(side: int) -> Image.Image:
    return Image.new("RGB", (side, side))
