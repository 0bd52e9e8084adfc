"""`Rollouts`: the responses to a batch of prompts, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.rows import PromptEncoder
from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.sampler import Response, Sampler


@dataclass(frozen=True)
class RolloutConfig:
    """How the responses of a training step are made."""

    siblings: int = 1
    """Responses to each prompt (K)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How they are sampled."""
    prompts_per_batch: int = 64
    """Prompts that are prefilled and decoded together; memory grows with it."""

    def __post_init__(self) -> None:
        for name in ("siblings", "prompts_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Rollouts:
    """The responses to a batch of samples.

    The flat order used by every per-token tensor (suffix N) is: samples in order, each sample's
    siblings in order, each response's tokens in order.

    Attributes:
        samples: the problems.
        responses: the sibling responses to each.
        texts: the same, decoded without special tokens.
    """

    samples: tuple[Sample, ...]
    responses: tuple[tuple[Response, ...], ...]
    texts: tuple[tuple[str, ...], ...]

    @property
    def flat_responses(self) -> list[Response]:
        """All responses in the flat order."""
        return [response for siblings in self.responses for response in siblings]

    @property
    def flat_texts(self) -> list[str]:
        """All texts in the flat order."""
        return [text for siblings in self.texts for text in siblings]

    @property
    def response_ids(self) -> list[list[Int[Tensor, " _"]]]:
        """Token ids, as `build_rows` takes them."""
        return [[response.ids for response in siblings] for siblings in self.responses]

    @property
    def response_index(self) -> Int[Tensor, " N"]:
        """To which response, in the flat order, each token belongs."""
        lengths = torch.tensor([len(response.ids) for response in self.flat_responses])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    @property
    def sampling_log_probs(self) -> Float[Tensor, " N"]:
        """Log-probability of each token under the distribution it was sampled from."""
        return torch.cat([response.log_probs for response in self.flat_responses])


class StudentSource:
    """On-policy rollouts: the student answers what it is shown.

    Args:
        sampler: samples from the student.
        encoder: makes the student's prompts.
        view: what the student sees.
        config: how many responses.
        seed: with the step and the sample, decides what is sampled.
    """

    def __init__(
        self, sampler: Sampler, encoder: PromptEncoder, view: View, config: RolloutConfig, seed: int
    ) -> None:
        self.sampler, self.encoder, self.view = sampler, encoder, view
        self.config, self.seed = config, seed

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """Sample `siblings` responses to each sample."""
        prompts = self.encoder.encode([self.view.show(sample) for sample in samples])
        responses = self.sampler.sample(
            prompts,
            [sample.id for sample in samples],
            siblings=self.config.siblings,
            seed=self.seed,
            step=step,
        )
        decode = self.encoder.tokenizer.decode
        texts = [
            tuple(decode(response.ids, skip_special_tokens=True) for response in siblings)
            for siblings in responses
        ]
        return Rollouts(tuple(samples), tuple(map(tuple, responses)), tuple(texts))
