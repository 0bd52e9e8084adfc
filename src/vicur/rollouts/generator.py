"""Generates responses: a model answers problems under a view.

Training, evaluation, the worth of privileges, pretraining and the preflight all use the `Generator` protocol.
To add an engine other than PyTorch in this process, write another class with its two methods.
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
"""Number of tokens at the end of a prompt that are searched for an opening tag such as `<think>`."""
Encode = Callable[[Sequence[Sample], View], list[EncodedPrompt]]
"""Encodes samples under a view as prompts of a model."""


@runtime_checkable
class Generator(Protocol):
    """Generates responses of one model."""

    def generate(
        self, samples: Sequence[Sample], view: View, *, group_size: int = 1, seed: int = 0, step: int = 0
    ) -> Rollouts:
        """Generate responses to problems.

        A response depends only on the model, the view, `seed`, `step`, the sample's id and the response's
        number within its group, not on which samples are in the same call.

        Args:
            samples: the problems.
            view: the model's view of them.
            group_size: number of responses to each problem.
            seed: random seed.
            step: rollout step; responses differ from step to step.
        """
        ...

    def sync(self) -> None:
        """Load the student's current weights after an update."""
        ...


class TorchGenerator:
    """Samples with PyTorch in this process, from the model that is trained, so there is nothing to sync.

    Args:
        loaded: the model.
        sampling: temperature and the like.
        prompts_per_batch: number of prompts that are prefilled and decoded together.
        limits: pixel limits of images and frames; by default the checkpoint's own.
        encode: encodes the prompts, to share them with the scoring of the responses.
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
        """Do nothing: the sampled model is the trained one."""


def prompts_of(loaded: LoadedModel, limits: PixelLimits | None = None) -> Encode:
    """A function that encodes samples as prompts of a model.

    Args:
        loaded: the model.
        limits: pixel limits of images and frames; by default the checkpoint's own.
    """
    encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index, limits)

    def encode(samples: Sequence[Sample], view: View) -> list[EncodedPrompt]:
        return encoder.encode([view.show(sample) for sample in samples])

    return encode
