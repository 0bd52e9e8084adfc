"""Generates responses: a model answers problems under a view.

Training, evaluation, the worth of privileges, pretraining and the preflight all generate here, on any engine
(`vicur.rollouts.engines`). `ModelGenerator.respond` samples and decodes. `generate` calls it with the prompts
of problems under a view; `vicur cues build` with a local model calls it with a chat about a problem, which is
not a view.
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
from vicur.rollouts.engines import Engine
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response, Rollouts, texts_of

PROMPT_END = 32
"""Number of tokens at the end of a prompt that are searched for an opening tag such as `<think>`. Most
tokenizers need one to four tokens for it; one that falls back to bytes needs up to twenty, and more for the
line breaks after it."""
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


class ModelGenerator:
    """Encodes prompts, has an engine sample the responses, and decodes them.

    Args:
        engine: samples the responses.
        sampling: temperature and the like.
        limits: pixel limits of images and frames; by default the checkpoint's own.
        encode: encodes the prompts, to share them with the scoring of the responses.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingConfig,
        *,
        limits: PixelLimits | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.engine, self.sampling = engine, sampling
        self._encode = encode or prompts_of(engine.loaded, limits)

    def generate(
        self,
        samples: Sequence[Sample],
        view: View,
        *,
        group_size: int = 1,
        first: int = 0,
        seed: int = 0,
        step: int = 0,
    ) -> Rollouts:
        """Generate as described in `Generator.generate`; the first response has the number `first`."""
        prompts, ids = self._encode(samples, view), [sample.id for sample in samples]
        responses, texts = self.respond(
            prompts, ids, group_size=group_size, first=first, seed=seed, step=step
        )
        return Rollouts(tuple(samples), responses, texts)

    def respond(
        self,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[str],
        *,
        group_size: int = 1,
        first: int = 0,
        seed: int = 0,
        step: int = 0,
    ) -> tuple[tuple[tuple[Response, ...], ...], tuple[tuple[str, ...], ...]]:
        """Responses to prompts, sampled and decoded.

        Args:
            prompts: the model's prompts.
            ids, group_size, first, seed, step: as in `Engine.sample`.

        Returns:
            for each prompt its responses, on the CPU, and their texts without special tokens. If the prompt
            ends in an opening tag such as `<think>`, the texts begin with it.

        Raises:
            OutOfMemory: memory is exhausted even with batches of one prompt.
            EngineError: an engine other than "torch" failed.
        """
        responses = self.engine.sample(
            prompts, ids, self.sampling, group_size=group_size, first=first, seed=seed, step=step
        )
        tokenizer = self.engine.loaded.processor.tokenizer
        ends = [tokenizer.decode(prompt.input_ids[-PROMPT_END:]) for prompt in prompts]
        texts = texts_of(responses, tokenizer, [opened_thought(end) for end in ends])
        return tuple(map(tuple, responses)), texts

    def sync(self) -> None:
        """Let the engine load the model's weights before it samples again."""
        self.engine.sync()


def prompts_of(loaded: LoadedModel, limits: PixelLimits | None = None) -> Encode:
    """A function that encodes samples as prompts of a model.

    Args:
        loaded: the model.
        limits: pixel limits of images and frames; by default the checkpoint's own.
    """
    encoder = PromptEncoder.of(loaded, limits)

    def encode(samples: Sequence[Sample], view: View) -> list[EncodedPrompt]:
        return encoder.encode([view.show(sample) for sample in samples])

    return encode
