"""Sizes of prompts, measured on outlines of the problems: no pixel is computed, no model is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Shown, View
from vicur.encoding.lengths import prompt_length, visual_tokens
from vicur.encoding.prompts import PromptEncoder

LOOKED_AT = 2_000
"""Problems that are measured; of more, as many at even distances. About a millisecond each."""


@dataclass(frozen=True)
class PromptSizes:
    """Sizes of the prompts that one model is shown.

    Attributes:
        problems: number of problems measured.
        mean_tokens, most_tokens: mean and maximum length of a prompt, media included.
        longest: id of the problem with the longest prompt.
        mean_visual, most_visual: visual tokens of a prompt.
        mean_raw: pixels of a prompt's images and frames before the processor resizes them.
    """

    problems: int
    mean_tokens: float
    most_tokens: int
    longest: str
    mean_visual: float
    most_visual: int
    mean_raw: float

    @classmethod
    def of(cls, samples: Sequence[Sample], encoder: PromptEncoder, view: View) -> PromptSizes:
        """Measure the prompts of samples under a view; outlines of the samples are enough.

        Args:
            samples: the problems, at least one.
            encoder: encoder of the model that reads the prompts, with its limits on pixels.
            view: what the model is shown.
        """
        prompts = [view.show(sample) for sample in samples]
        tokens = [prompt_length(encoder, prompt) for prompt in prompts]
        visual = [visual_tokens(encoder, prompt) for prompt in prompts]
        most = max(range(len(tokens)), key=tokens.__getitem__)
        return cls(
            problems=len(samples),
            mean_tokens=sum(tokens) / len(tokens),
            most_tokens=tokens[most],
            longest=samples[most].id,
            mean_visual=sum(visual) / len(visual),
            most_visual=max(visual),
            mean_raw=sum(map(_raw_pixels, prompts)) / len(prompts),
        )

    def visual_of(self, prompts: int) -> float:
        """Visual tokens in a batch of prompts that includes the largest."""
        return self.most_visual + (prompts - 1) * self.mean_visual if prompts else 0.0


def outlines(source: FileSource) -> Iterator[Sample]:
    """Problems at even distances, with media of which only the size is known.

    Problems whose video cannot be read are left out; the loop decides whether they end the run.

    Raises:
        BadRowError: none can be read.
    """
    count = min(len(source), LOOKED_AT)
    unreadable: list[BadRowError] = []
    for place in range(count):
        try:
            yield source.outline(place * len(source) // count)
        except BadRowError as error:
            unreadable.append(error)
    if len(unreadable) == count:
        raise unreadable[0]


def _raw_pixels(prompt: Shown) -> int:
    images = sum(image.size[0] * image.size[1] for image in prompt.images)
    return images + sum(len(v.frames) * v.size[0] * v.size[1] for v in prompt.videos)
