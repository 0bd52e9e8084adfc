"""`View`, and its parts: which parts of a sample a model is shown.

A view maps a `Sample` to messages and media, and nothing else. Student and teachers differ only in their view
(and their weights). Only this package reads `Sample.privilege`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.sample import Message, Sample, placeholders_in
from vicur.media.images import SizeOnly
from vicur.media.video import Video


@dataclass(frozen=True)
class Shown:
    """A sample under a view: the chat and the media that fill its placeholders."""

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A response to a problem, for views in hindsight.

    Attributes:
        response: its text.
        correct: whether it was graded as correct; None if it could not be graded.
        solution: another response to the same problem that was graded as correct; None if there is none.
    """

    response: str
    correct: bool | None = None
    solution: str | None = None


EXAMPLE = Attempt("a response", correct=False, solution="a solution")
"""An example of an attempt, to check what a view in hindsight shows."""


@runtime_checkable
class View(Protocol):
    """A selection of what a sample shows. Views are small frozen values, equal when they show the same.

    A view may also have the attributes of `Part`: `privileged` and `hindsight`, which are false without them.
    """

    @property
    def name(self) -> str:
        """Short label for records, e.g. "cue + crop"."""
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


class Part:
    """Base of the views that can be combined: a change of what is shown.

    Subclasses are frozen dataclasses that define `name` and `change`.

    Attributes:
        keeps_tokens: whether the prompt keeps the plain view's tokens.
        privileged: whether it shows what only a teacher may see.
        hindsight: whether it shows the response that is scored, or what became of it.
        rank: parts of a lower rank are applied first: another prompt (-2), other media (-1), texts (0),
            changes of media (1), order (2).
    """

    keeps_tokens: bool = False
    privileged: bool = False
    hindsight: bool = False
    rank: int = 1

    @property
    def name(self) -> str:
        """The part as written in settings, e.g. "degraded(0.1)"."""
        raise NotImplementedError

    def applies(self, sample: Sample) -> bool:
        """Whether the sample has what the part shows."""
        return True

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        """What is shown, changed by this part.

        Args:
            prompt: what the parts before this one show.
            sample: the problem.
            attempt: the response that is scored, for parts in hindsight.
        """
        raise NotImplementedError

    def at_step(self, step: int) -> Part:
        """The view at a step of training: views that change at random are drawn anew at every step."""
        return self

    def show(self, sample: Sample, attempt: Attempt | None = None) -> Shown:
        """The messages and media.

        Args:
            sample: the problem.
            attempt: the response that is scored, for views in hindsight; None for what they show before
                there is one.

        Raises:
            RowProblem: the prompt has placeholders for other media than those shown.
            ValueError: the sample lacks what the view shows.
        """
        prompt = self.change(Shown(sample.messages, sample.images, sample.videos), sample, attempt)
        _check_placeholders(prompt, self.name)
        return prompt


@dataclass(frozen=True)
class Plain(Part):
    """The problem as it is in the data: media and question."""

    name = "plain"
    keeps_tokens = True

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return prompt


@dataclass(frozen=True)
class Combined(Part):
    """Several changes at once, e.g. a hint and a crop. Made by `combined`.

    Attributes:
        parts: at least two, in the order in which they are applied.
    """

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def keeps_tokens(self) -> bool:  # type: ignore[override]
        return all(part.keeps_tokens for part in self.parts)

    @property
    def privileged(self) -> bool:  # type: ignore[override]
        return any(part.privileged for part in self.parts)

    @property
    def hindsight(self) -> bool:  # type: ignore[override]
        return any(part.hindsight for part in self.parts)

    def at_step(self, step: int) -> Combined:
        return replace(self, parts=tuple(part.at_step(step) for part in self.parts))

    def applies(self, sample: Sample) -> bool:
        return all(part.applies(sample) for part in self.parts)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        for part in self.parts:
            prompt = part.change(prompt, sample, attempt)
        return prompt


@dataclass(frozen=True)
class OrPlain(Part):
    """A view where it applies, and the plain problem where a sample lacks what the view shows.

    Attributes:
        view: the view.
    """

    view: Part

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def keeps_tokens(self) -> bool:  # type: ignore[override]
        return self.view.keeps_tokens

    @property
    def privileged(self) -> bool:  # type: ignore[override]
        return self.view.privileged

    @property
    def hindsight(self) -> bool:  # type: ignore[override]
        return self.view.hindsight

    def at_step(self, step: int) -> OrPlain:
        return replace(self, view=self.view.at_step(step))

    def applies(self, sample: Sample) -> bool:
        return self.view.applies(sample)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return self.view.change(prompt, sample, attempt) if self.view.applies(sample) else prompt


def combined(parts: Iterable[Part]) -> Part:
    """Several changes as one view; parts of different rank are equal in any order.

    Args:
        parts: the changes. Those of one rank, e.g. two texts, are applied in this order.
    """
    changes = [part for part in parts if part != Plain()]
    inner = [part for each in changes for part in (each.parts if isinstance(each, Combined) else (each,))]
    ranked = tuple(sorted(inner, key=lambda part: part.rank))
    if len(ranked) < 2:
        return ranked[0] if ranked else Plain()
    return Combined(ranked)


def is_privileged(view: View) -> bool:
    """Whether a view shows what only a teacher may see."""
    return bool(getattr(view, "privileged", False))


def at_step(view: View, step: int) -> View:
    """A view at a step of training; only views that change at random depend on it."""
    return view.at_step(step) if isinstance(view, Part) else view


def on_top(base: View, view: View) -> View:
    """A view of what another view shows; the view itself if it cannot be combined."""
    return combined([base, view]) if isinstance(base, Part) and isinstance(view, Part) else view


def show(view: View, sample: Sample, attempt: Attempt | None = None) -> Shown:
    """What a view shows of a sample; of a view in hindsight, for one response to it.

    Args:
        view: the view.
        sample: the problem.
        attempt: the response; None for what is shown before there is one.
    """
    return view.show(sample, attempt) if isinstance(view, Part) else view.show(sample)


def in_hindsight(view: View) -> bool:
    """Whether a view shows the response that is scored, or what became of it, so that the prompt differs
    between the responses to a problem."""
    return bool(getattr(view, "hindsight", False))


def _check_placeholders(prompt: Shown, view: str) -> None:
    for kind, media in (("image", prompt.images), ("video", prompt.videos)):
        count = placeholders_in(prompt.messages, kind)
        if count != len(media):
            raise RowProblem(
                "placeholders",
                f"the view {view} has {count} {kind} placeholder(s) for {len(media)} {kind}(s); a teacher "
                'prompt about privileged images is shown with "teacher_prompt + images(privileged)"',
            )


def with_media(prompt: Shown, change: Callable[[Image.Image, int], Image.Image]) -> Shown:
    """The same with every image and frame changed; sizes, and so the visual tokens, stay the same.

    Args:
        prompt: what is shown so far.
        change: called with an image or frame and its number; images that have only a size are left alone.
    """
    index = 0

    def changed(images: tuple[Image.Image, ...]) -> tuple[Image.Image, ...]:
        nonlocal index
        changed_images = []
        for image in images:
            changed_images.append(image if isinstance(image, SizeOnly) else change(image, index))
            assert changed_images[-1].size == image.size, "a view must not change the size of an image"
            index += 1
        return tuple(changed_images)

    images = changed(prompt.images)
    videos = tuple(replace(video, frames=changed(video.frames)) for video in prompt.videos)
    return replace(prompt, images=images, videos=videos)


def smooth(image: Image.Image) -> Image.Image:
    """The image in a mode whose pixels can be averaged, unlike a palette's indices and single bits."""
    if image.mode == "P":
        return image.convert("RGB")
    return image.convert("L") if image.mode == "1" else image
