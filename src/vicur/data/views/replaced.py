"""Views with other media than the problem's: privileged or negative ones, some frames of a video, and another
order of media and text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image

from vicur.data.sample import Message, Sample, placeholders_in
from vicur.data.views.view import Attempt, Part, Shown

Which = Literal["privileged", "negative"]
Order = Literal["image_first", "question_first"]


@dataclass(frozen=True)
class Media(Part):
    """The problem with the images and videos that the data has for a teacher, instead of its own.

    "privileged": what shows the evidence, e.g. a crop, or the image and a crop. "negative": what does not,
    e.g. another crop, as a control (V-Zero, arXiv 2606.25319). If their number differs from that of the
    problem's own, they all come at the place of its first one. In a teacher prompt with places for crops
    they take those places.

    Attributes:
        which: "privileged" or "negative".
    """

    which: Which
    privileged = True
    rank = -1

    @property
    def name(self) -> str:
        return f"images({self.which})"

    def applies(self, sample: Sample) -> bool:
        media = self._of(sample)
        return bool(media.images or media.videos)

    def _of(self, sample: Sample) -> Shown:
        if self.which == "privileged":
            return Shown((), sample.privilege.images, sample.privilege.videos)
        return Shown((), sample.privilege.negative_images)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        """What is shown so far, with the other media.

        Raises:
            ValueError: the sample has none.
        """
        if not self.applies(sample):
            raise ValueError(f"Sample {sample.id} has no {self.which} images or videos.")
        media = self._of(sample)
        if media.images and _has_crops(prompt, sample):
            prompt = with_crops(prompt, sample, media.images)
        elif media.images:
            messages = with_placeholders(prompt.messages, "image", len(media.images))
            prompt = replace(prompt, messages=messages, images=media.images)
        if media.videos:
            messages = with_placeholders(prompt.messages, "video", len(media.videos))
            prompt = replace(prompt, messages=messages, videos=media.videos)
        return prompt


@dataclass(frozen=True)
class Frames(Part):
    """The problem with some frames of its videos, at their true times.

    Attributes:
        count: number of frames, evenly spaced; None for the frames in the data's clue intervals, which are
            privileged (Clue-OPSD, arXiv 2608.25356).

    Raises:
        ValueError: the count is below 1.
    """

    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"A view of frames needs at least 1 of them, not {self.count}.")

    @property
    def name(self) -> str:
        return "frames" if self.count is None else f"frames({self.count})"

    @property
    def privileged(self) -> bool:  # type: ignore[override]
        return self.count is None

    def applies(self, sample: Sample) -> bool:
        return self.count is not None or any(sample.privilege.clips)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        """What is shown so far, with fewer frames.

        Raises:
            ValueError: the sample has no clue intervals.
        """
        count = self.count
        if count is not None:
            return replace(prompt, videos=tuple(video.evenly(count) for video in prompt.videos))
        if not any(sample.privilege.clips):
            raise ValueError(f"Sample {sample.id} has no clue intervals for the view frames.")
        pairs = zip(prompt.videos, sample.privilege.clips, strict=True)
        return replace(
            prompt, videos=tuple(video.within(clips) if clips else video for video, clips in pairs)
        )


@dataclass(frozen=True)
class Ordered(Part):
    """The problem with the media of each of the user's turns before its text, or after it.

    Attributes:
        order: "image_first" or "question_first".
    """

    order: Order
    rank = 2

    @property
    def name(self) -> str:
        return self.order

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return replace(prompt, messages=in_order(prompt.messages, self.order))


def in_order(messages: tuple[Message, ...], order: Order) -> tuple[Message, ...]:
    """The messages with the media of each of the user's turns before its text, or after it."""
    arranged = []
    for message in messages:
        media = [part for part in message["content"] if part["type"] != "text"]
        texts = [part for part in message["content"] if part["type"] == "text"]
        if message["role"] == "user" and media:
            message = {**message, "content": media + texts if order == "image_first" else texts + media}
        arranged.append(message)
    return tuple(arranged)


def _has_crops(prompt: Shown, sample: Sample) -> bool:
    """Whether the messages are a teacher prompt with places for the teacher's images."""
    return bool(sample.privilege.prompt_crops) and prompt.messages is sample.privilege.teacher_prompt


def with_crops(prompt: Shown, sample: Sample, images: tuple[Image.Image, ...]) -> Shown:
    """A sample's teacher prompt with the problem's images at their places and others at those of the crops.

    Args:
        prompt: its messages are the teacher prompt.
        sample: the problem.
        images: images for the teacher; if their number is not that of the crops, they all come at the place
            of the first one.
    """
    each = len(images) == sum(sample.privilege.prompt_crops)
    crops, whole, left = iter(sample.privilege.prompt_crops), iter(sample.images), images
    messages: list[Message] = []
    placed: list[Image.Image] = []
    for message in prompt.messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] != "image":
                content.append(part)
                continue
            if next(crops):
                count = 1 if each else len(left)
                here, left = left[:count], left[count:]
            else:
                here = (next(whole),)
            placed += here
            content += [{"type": "image"}] * len(here)
        messages.append({**message, "content": content})
    same = tuple(messages) == prompt.messages
    return replace(prompt, messages=prompt.messages if same else tuple(messages), images=tuple(placed))


def with_placeholders(messages: tuple[Message, ...], kind: str, count: int) -> tuple[Message, ...]:
    """The messages with a number of placeholders of a kind of medium, at the place of the first one.

    Args:
        messages: unchanged if they have that many.
        kind: "image" or "video".
        count: number of media; above 0.
    """
    if placeholders_in(messages, kind) == count:
        return messages
    changed: list[Message] = []
    left = count
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] != kind:
                content.append(part)
                continue
            content += [{"type": kind}] * left
            left = 0
        changed.append({**message, "content": content})
    if left:
        user = next(index for index, message in enumerate(changed) if message["role"] == "user")
        changed[user] = {**changed[user], "content": [{"type": kind}] * left + changed[user]["content"]}
    return tuple(changed)
