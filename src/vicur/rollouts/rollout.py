"""`Rollouts`: the responses to a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.sample import Sample
from vicur.rollouts.randomness import stream_key, uniforms


@dataclass(frozen=True)
class Rollouts:
    """The responses to a batch of samples.

    The flat order used by every per-token tensor (suffix N) is: samples in order, each sample's responses in
    order, each response's tokens in order.

    Attributes:
        samples: the problems.
        responses: the responses to each problem.
        texts: the responses decoded without special tokens, preceded by the opening tag of thinking if the
            prompt ends with one.
    """

    samples: tuple[Sample, ...]
    responses: tuple[tuple[Response, ...], ...]
    texts: tuple[tuple[str, ...], ...]

    @property
    def flat_responses(self) -> list[Response]:
        """All responses in the flat order."""
        return [response for group in self.responses for response in group]

    @property
    def flat_texts(self) -> list[str]:
        """All texts in the flat order."""
        return [text for group in self.texts for text in group]

    @property
    def response_ids(self) -> list[list[Int[Tensor, " _"]]]:
        """Token ids, as `build_sequences` takes them."""
        return [[response.ids for response in group] for group in self.responses]

    @property
    def response_index(self) -> Int[Tensor, " N"]:
        """Index of the response, in the flat order, that each token belongs to."""
        lengths = torch.tensor([len(response.ids) for response in self.flat_responses])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    @property
    def prompt_index(self) -> Int[Tensor, " R"]:
        """Index of the sample that each response belongs to."""
        counts = torch.tensor([len(group) for group in self.responses])
        return torch.repeat_interleave(torch.arange(len(counts)), counts)

    @property
    def sampling_log_probs(self) -> Float[Tensor, " N"]:
        """Log-probability of each token under the distribution it was sampled from.

        Raises:
            ValueError: a response was not sampled.
        """
        per_response = [response.log_probs for response in self.flat_responses]
        sampled = [log_probs for log_probs in per_response if log_probs is not None]
        if len(sampled) < len(per_response):
            raise ValueError("These responses have no sampling log-probs.")
        return torch.cat(sampled)

    def draws(self, seed: int, step: int) -> Float[Tensor, " N"]:
        """A uniform number for each token, keyed by seed, step, sample, response number and position."""
        draws = []
        for sample, group in zip(self.samples, self.responses, strict=True):
            for number, response in enumerate(group):
                key = [stream_key(seed, step, f"{sample.id}/draw", number)]
                draws += [uniforms(key, position) for position in range(len(response.ids))]
        return torch.from_numpy(np.concatenate(draws))

    def part(self, prompts: slice) -> Rollouts:
        """The rollouts of a slice of the samples."""
        return Rollouts(self.samples[prompts], self.responses[prompts], self.texts[prompts])

    @classmethod
    def joined(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Several rollouts as one, in order."""
        return cls(
            tuple(sample for part in parts for sample in part.samples),
            tuple(group for part in parts for group in part.responses),
            tuple(texts for part in parts for texts in part.texts),
        )

    def tokens(self, prompts: slice) -> slice:
        """The positions, in the flat order, of the tokens of a slice of the samples."""
        lengths = [sum(len(response.ids) for response in group) for group in self.responses]
        first, last, _ = prompts.indices(len(lengths))
        return slice(sum(lengths[:first]), sum(lengths[:last]))


@dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
        ids: tokens, stop token included.
        log_probs: log-prob of each token under the distribution it was sampled from, in nats; None if it was
            not sampled, or if the engine does not tell.
        finish_reason: "stop", or "length" if it was cut off.
        engine_log_probs: log-prob of each token as an engine with weights of its own computed it, at
            temperature 1 over the tokens that can be sampled, in nats; None if the model itself sampled.
    """

    ids: Int[Tensor, " T"]
    log_probs: Float[Tensor, " T"] | None
    finish_reason: Literal["stop", "length"]
    engine_log_probs: Float[Tensor, " T"] | None = None


def texts_of(
    responses: Sequence[Sequence[Response]], tokenizer: Any, opened: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """The texts of responses, without special tokens.

    Args:
        responses: the responses to each prompt.
        tokenizer: tokenizer of the model that wrote them.
        opened: for each prompt the tag of a thought that it opened, or "".
    """
    return tuple(
        tuple(tag + tokenizer.decode(response.ids, skip_special_tokens=True) for response in group)
        for tag, group in zip(opened, responses, strict=True)
    )
