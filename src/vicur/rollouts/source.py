"""Sources of rollouts: the student, the teacher, or the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from vicur.data.sample import Sample
from vicur.data.special_tokens import QuotedTokens
from vicur.data.views import View, at_step
from vicur.models.vocabulary import Vocabulary
from vicur.rollouts.generator import Generator
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response, Rollouts, texts_of
from vicur.settings.section import Count, Positive, section
from vicur.vllm.settings import EngineName, VLLMConfig

SourceName = Literal["student", "teacher", "dataset"]


@section
class RolloutConfig:
    """Settings for the responses of a rollout step."""

    source: SourceName = "student"
    """Source of the responses: the student (on-policy), the teacher under its own view (off-policy), or the
    data (`target_response`)."""
    group_size: Count = 1
    """Group size: number of responses per problem (K in the papers, num_generations in TRL)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the responses. Responses from the data are cut off at max_new_tokens."""
    prompts_per_batch: Count = 64
    """Number of prompts prefilled and decoded together with engine=torch; memory grows with it."""
    engine: EngineName = "torch"
    """Engine that samples the student's responses: "torch" (PyTorch, the reference) or "vllm" (vLLM, which
    `pip install 'vicur[vllm]'` installs). docs/engines.md compares them."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    importance_cap: Positive | None = None
    """Correction for an engine that samples from slightly other probabilities than the trainer's: the weight
    of every token is multiplied by min(p_trainer / p_engine, importance_cap), which takes one more forward
    pass of the student; null for none. A usual value is 2."""

    def __post_init__(self) -> None:
        if self.source == "dataset" and self.group_size > 1:
            raise ValueError(
                "rollout.source=dataset has one response to each problem: set rollout.group_size=1."
            )
        self.sampling.check_engine(self.engine)
        if self.importance_cap is not None and self.engine == "torch":
            raise ValueError(
                "rollout.importance_cap corrects for an engine with weights of its own; with "
                "rollout.engine=torch the trainer itself samples. Remove it."
            )
        if self.engine != "torch" and self.source != "student":
            raise ValueError(
                f"rollout.engine={self.engine} samples the student's responses, and rollout.source="
                f"{self.source}. Set rollout.engine=torch."
            )


@runtime_checkable
class RolloutSource(Protocol):
    """Provides the responses to a batch of samples."""

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """The responses at a rollout step."""
        ...

    def sync(self) -> None:
        """Load the student's current weights after an update."""
        ...


class GeneratedSource:
    """Responses that a model generates.

    Args:
        generator: generates the responses.
        view: the model's view of a problem.
        group_size: number of responses to each problem.
        seed: seed of sampling, used together with the step and the problem's id.
    """

    def __init__(self, generator: Generator, view: View, group_size: int, seed: int) -> None:
        self.generator, self.view = generator, view
        self.group_size, self.seed = group_size, seed

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """A group of responses to each problem."""
        view = at_step(self.view, step)
        return self.generator.generate(samples, view, group_size=self.group_size, seed=self.seed, step=step)

    def sync(self) -> None:
        """Let the generator load the student's current weights."""
        self.generator.sync()


class DatasetSource:
    """Responses from the data: the target response of each sample.

    Args:
        tokenizer: tokenizer of the student.
        vocabulary: the student's vocabulary, with the tokens that end a response.
        max_tokens: longer responses are cut off.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, max_tokens: int) -> None:
        self.tokenizer, self.vocabulary, self.max_tokens = tokenizer, vocabulary, max_tokens
        self.quoted = QuotedTokens(tokenizer)
        self.stops = tuple(tokenizer.convert_ids_to_tokens(vocabulary.stop_ids))

    def rollouts(self, samples: Sequence[Sample], step: int) -> Rollouts:
        """The samples' target responses, with a stop token at the end.

        Raises:
            ValueError: a sample has no target response.
        """
        responses = tuple((self._response(sample),) for sample in samples)
        return Rollouts(tuple(samples), responses, texts_of(responses, self.tokenizer, [""] * len(samples)))

    def sync(self) -> None:
        """Do nothing: the data do not depend on the student."""

    def _response(self, sample: Sample) -> Response:
        if sample.target_response is None:
            raise ValueError(f"Sample {sample.id} has no target_response to learn from.")
        text = sample.target_response
        while text.endswith(self.stops):
            text = text.removesuffix(next(stop for stop in self.stops if text.endswith(stop)))
        ids = self.quoted.plain_ids(text)  # special tokens inside the response are text
        ids = [*ids, self.vocabulary.stop_ids[0]]
        cut = len(ids) > self.max_tokens
        return Response(torch.tensor(ids[: self.max_tokens]), None, "length" if cut else "stop")
