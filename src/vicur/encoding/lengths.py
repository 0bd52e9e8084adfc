"""Computes the lengths of prompts in tokens, without processing pixels.

The text is rendered and tokenised as for the model; the number of tokens of a medium follows from its size.
So an outline of a problem (`FileSource.outline`) is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from vicur.bad_rows import BadRowError
from vicur.data.sources import DataConfig, FileSource
from vicur.data.views import Plain, Shown, View
from vicur.encoding.prompts import PromptEncoder


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


def _dot(side: int) -> Image.Image:
    return Image.new("RGB", (side, side))


@dataclass(frozen=True)
class Overlong:
    """A problem whose prompt is longer than allowed.

    Attributes:
        id: id of the problem.
        row: row number in the data, from 0.
        who: the model: "student" or "teacher".
        tokens: length of the prompt, media included.
        limit: maximum length.
    """

    id: str
    row: int
    who: str
    tokens: int
    limit: int

    def __str__(self) -> str:
        return (
            f"row {self.row} ({self.id}): the {self.who}'s prompt has {self.tokens} tokens, more than "
            f"{self.limit}"
        )


def split_by_length(
    source: FileSource,
    encoder: PromptEncoder,
    config: DataConfig,
    teacher_view: View | None = None,
    *,
    student_view: View | None = None,
    teacher_encoder: PromptEncoder | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> tuple[list[int], list[Overlong]]:
    """Split problems by whether their prompts are within `max_prompt_tokens` and `max_teacher_prompt_tokens`.

    Without these limits nothing is measured.

    Args:
        source: the problems.
        encoder: encoder of the student's prompts.
        config: the limits.
        teacher_view: what the teacher is shown; None for no teacher.
        student_view: what the student is shown; the plain problem if not given.
        teacher_encoder: encoder of the teacher's prompts, if it differs from the student's.
        progress: shows the progress.

    Returns:
        Indices of the problems that fit, for `source.select`, and the overlong problems. A row that turns out
        bad is in neither: it is added to `source.bad_rows`.

    Raises:
        BadRowError: a medium cannot be read, and the source does not skip bad rows.
    """
    asked = [("student", student_view or Plain(), encoder, config.max_prompt_tokens)]
    if teacher_view is not None:
        prompt_encoder = teacher_encoder or encoder
        asked.append(("teacher", teacher_view, prompt_encoder, config.max_teacher_prompt_tokens))
    limits = [
        (who, view, prompt_encoder, limit) for who, view, prompt_encoder, limit in asked if limit is not None
    ]
    if not limits:
        return list(range(len(source))), []
    fitting: list[int] = []
    overlong: list[Overlong] = []
    numbers: Iterable[int] = range(len(source))
    for index in numbers if progress is None else progress(numbers, len(source)):
        try:
            sample = source.outline(index)
        except BadRowError as error:
            if not source.skips_bad_rows:
                raise
            source.bad_rows.append(error.bad)
            continue
        for who, view, prompt_encoder, limit in limits:
            tokens = prompt_length(prompt_encoder, view.show(sample))
            if tokens > limit:
                overlong.append(Overlong(sample.id, source.row_number(index), who, tokens, limit))
                break
        else:
            fitting.append(index)
    return fitting, overlong


def fit_prompts(
    source: FileSource,
    encoder: PromptEncoder,
    config: DataConfig,
    teacher_view: View | None = None,
    *,
    teacher_encoder: PromptEncoder | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> tuple[FileSource, list[Overlong]]:
    """The problems whose prompts fit, and the overlong ones, treated as `config.overlong` says.

    Args:
        source, encoder, config, teacher_view, teacher_encoder, progress: as in `split_by_length`.

    Raises:
        ValueError: prompts are too long and that is an error, or no problem is left.
    """
    fitting, overlong = split_by_length(
        source, encoder, config, teacher_view, teacher_encoder=teacher_encoder, progress=progress
    )
    if overlong and config.overlong == "error":
        more = f", and {len(overlong) - 1} more" if len(overlong) > 1 else ""
        raise ValueError(
            f"{source.name}, {overlong[0]}{more}. Raise the limit, lower data.max_pixels, or set "
            "data.overlong=drop."
        )
    if not fitting and overlong:
        raise ValueError(f"{source.name}: every prompt is too long, the first: {overlong[0]}.")
    return source if len(fitting) == len(source) else source.select(fitting), overlong
