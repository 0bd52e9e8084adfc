"""Where rollouts come from: the student, the teacher, or the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from vicur.data.sample import Sample
from vicur.data.special_tokens import QuotedTokens
from vicur.data.views import View
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.vocabulary import Vocabulary
from vicur.rewards.thinking import opened_thought
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response, Rollouts
from vicur.rollouts.sampler import Sampler
from vicur.settings.section import Count, section

SourceName = Literal["student", "teacher", "dataset"]
PROMPT_END = 16
"""Tokens at the end of a prompt in which the opening tag of a thought may be."""
Encode = Callable[[Sequence[Sample], View], list[EncodedPrompt]]
"""Makes a model's prompts of samples under a view."""


@section
class RolloutConfig:
    """How the responses of a training step are made."""

    source: SourceName = "student"
    """Where responses come from: the student (on-policy), the teacher under its own view (off-policy), or
    the data (`target_response`)."""
    siblings: Count = 1
    """Number of responses to each prompt (K; group size in GRPO)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are sampled. Given responses are cut off at max_new_tokens."""
    prompts_per_batch: Count = 64
    """Number of prompts that are prefilled and decoded together; memory grows with it."""

    def __post_init__(self) -> None:
        if self.source == "dataset" and self.siblings > 1:
            raise ValueError("rollout.source=dataset has one response to a problem: set rollout.siblings=1.")


@runtime_checkable
class RolloutSource(Protocol):
    """Makes the responses to a batch of samples."""

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """The responses at a step of training."""
        ...


class SampledSource:
    """A model answers what it is shown.

    Args:
        sampler: samples from the model.
        encode: makes its prompts.
        tokenizer: decodes what it writes.
        view: what it sees.
        siblings: responses to each sample.
        seed: with the step and the sample, decides what is sampled.
    """

    def __init__(
        self, sampler: Sampler, encode: Encode, tokenizer: Any, view: View, siblings: int, seed: int
    ) -> None:
        self.sampler, self.encode, self.tokenizer = sampler, encode, tokenizer
        self.view, self.siblings, self.seed = view, siblings, seed

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """Sample `siblings` responses to each sample."""
        prompts = self.encode(samples, self.view)
        responses = self.sampler.sample(
            prompts,
            [sample.id for sample in samples],
            siblings=self.siblings,
            seed=self.seed,
            step=step,
        )
        ends = [self.tokenizer.decode(prompt.input_ids[-PROMPT_END:]) for prompt in prompts]
        return _rollouts(samples, responses, self.tokenizer, [opened_thought(end) for end in ends])


class DatasetSource:
    """Every sample brings its own response.

    Args:
        tokenizer: of the student.
        vocabulary: says how a response ends.
        max_tokens: longer responses are cut off.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, max_tokens: int) -> None:
        self.tokenizer, self.vocabulary, self.max_tokens = tokenizer, vocabulary, max_tokens
        self.quoted = QuotedTokens(tokenizer)
        self.stops = tuple(tokenizer.convert_ids_to_tokens(vocabulary.stop_ids))

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """The samples' target responses, with a stop token at the end.

        Raises:
            ValueError: a sample has none.
        """
        responses = [[self._response(sample)] for sample in samples]
        return _rollouts(samples, responses, self.tokenizer, [""] * len(samples))

    def _response(self, sample: Sample) -> Response:
        if sample.target_response is None:
            raise ValueError(f"Sample {sample.id} has no target_response to learn from.")
        text = sample.target_response
        while text.endswith(self.stops):
            text = text.removesuffix(next(stop for stop in self.stops if text.endswith(stop)))
        ids = self.quoted.plain_ids(text)  # a special token that the response quotes is text
        ids = [*ids, self.vocabulary.stop_ids[0]]
        cut = len(ids) > self.max_tokens
        return Response(torch.tensor(ids[: self.max_tokens]), None, "length" if cut else "stop")


def _rollouts(
    samples: Sequence[Sample],
    responses: Sequence[Sequence[Response]],
    tokenizer: Any,
    opened: Sequence[str],
) -> Rollouts:
    """The responses with their texts; `opened` is the tag of a thought that each prompt opened, or ""."""
    texts = [
        tuple(tag + tokenizer.decode(response.ids, skip_special_tokens=True) for response in siblings)
        for tag, siblings in zip(opened, responses, strict=True)
    ]
    return Rollouts(tuple(samples), tuple(map(tuple, responses)), tuple(texts))
