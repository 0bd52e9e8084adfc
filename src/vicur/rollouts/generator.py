"""The one door to responses: a model answers problems under a view.

Training, evaluation, the worth of privileges, pretraining and the preflight all ask through `Generator`.
Another engine than PyTorch in this process is another class with these two methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.rewards.thinking import opened_thought
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Rollouts
from vicur.rollouts.sampler import Sampler

PROMPT_END = 16
"""Tokens at the end of a prompt in which the opening tag of a thought may be."""
Encode = Callable[[Sequence[Sample], View], list[EncodedPrompt]]
"""Makes a model's prompts of samples under a view."""


@runtime_checkable
class Generator(Protocol):
    """Generates responses of one model."""

    def generate(
        self, samples: Sequence[Sample], view: View, *, group_size: int = 1, seed: int = 0, step: int = 0
    ) -> Rollouts:
        """Responses to problems.

        They depend on the model, the view, `seed`, `step`, a sample's id and the number within its group, and
        not on which samples are asked together.

        Args:
            samples: the problems.
            view: the model's view of them.
            group_size: number of responses to each problem.
            seed: another seed, other responses.
            step: rollout step; another step, other responses.
        """
        ...

    def sync(self) -> None:
        """Take over the student's weights after an update."""
        ...


class TorchGenerator:
    """Samples with PyTorch in this process, from the very model that is trained: there is nothing to sync.

    Args:
        loaded: the model.
        sampling: temperature and the like.
        prompts_per_batch: prompts that are prefilled and decoded together.
        limits: on the pixels of what the model is shown; the checkpoint's own if not given.
        encode: makes its prompts, where that is shared with the scoring of the responses.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sampling: SamplingConfig,
        prompts_per_batch: int = 64,
        *,
        limits: PixelLimits | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.tokenizer = loaded.processor.tokenizer
        self._sampler = Sampler(loaded, sampling, prompts_per_batch)
        self._encode = encode or prompts_of(loaded, limits)

    def generate(
        self, samples: Sequence[Sample], view: View, *, group_size: int = 1, seed: int = 0, step: int = 0
    ) -> Rollouts:
        """Generate as described in `Generator.generate`."""
        prompts = self._encode(samples, view)
        ids = [sample.id for sample in samples]
        responses = self._sampler.sample(prompts, ids, group_size=group_size, seed=seed, step=step)
        ends = [self.tokenizer.decode(prompt.input_ids[-PROMPT_END:]) for prompt in prompts]
        opened = [opened_thought(end) for end in ends]
        return Rollouts.decoded(samples, responses, self.tokenizer, opened)

    def sync(self) -> None:
        """Nothing to do."""


def prompts_of(loaded: LoadedModel, limits: PixelLimits | None = None) -> Encode:
    """Makes the prompts of a model.

    Args:
        loaded: the model.
        limits: on the pixels of images and frames; the checkpoint's own if not given.
    """
    encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index, limits)

    def encode(samples: Sequence[Sample], view: View) -> list[EncodedPrompt]:
        return encoder.encode([view.show(sample) for sample in samples])

    return encode
