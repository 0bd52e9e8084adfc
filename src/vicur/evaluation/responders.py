"""What answers the problems of an evaluation: a model on an engine, or an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.evaluation.responses import StoredResponse
from vicur.media.pixels import PixelLimits
from vicur.rollouts.engines import Engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response

Keep = Callable[[Sequence[StoredResponse]], None]
"""Takes responses as they come."""


@runtime_checkable
class Responder(Protocol):
    """Answers problems."""

    def respond(
        self, samples: Sequence[Sample], view: View, missing: Sequence[Sequence[int]], seed: int, keep: Keep
    ) -> Sequence[str | None]:
        """Get responses to problems.

        Args:
            samples: the problems.
            view: what is shown of them.
            missing: numbers of the responses that each lacks, ascending, from 0.
            seed: sampling seed.
            keep: is given every response, also those before an error.

        Returns:
            for each problem why a response is missing, as half a sentence; None if none is.
        """
        ...


class ModelResponder:
    """A model on an engine.

    Args:
        engine: runs the model.
        sampling: settings for sampling.
        limits: pixel limits of what it is shown; the checkpoint's own if not given.
    """

    def __init__(self, engine: Engine, sampling: SamplingConfig, limits: PixelLimits | None = None) -> None:
        self.generator = ModelGenerator(engine, sampling, limits=limits)

    def respond(
        self, samples: Sequence[Sample], view: View, missing: Sequence[Sequence[int]], seed: int, keep: Keep
    ) -> list[str | None]:
        """Sample responses, as `ModelGenerator.generate` does.

        Raises:
            EngineError: an engine other than PyTorch failed.
        """
        for numbers in dict.fromkeys(map(tuple, missing)):  # the problems that lack the same responses
            alike = [s for s, lacking in zip(samples, missing, strict=True) if tuple(lacking) == numbers]
            if numbers:
                between = range(numbers[0], numbers[-1] + 1)
                sampled = self.sample(alike, view, between, seed)
                keep([response for group in sampled for response in group if response.number in numbers])
        return [None] * len(samples)

    def sample(
        self, samples: Sequence[Sample], view: View, numbers: range, seed: int
    ) -> list[list[StoredResponse]]:
        """Responses to each problem, by its place: problems of several data sets may share an id.

        Args:
            samples: the problems.
            view: what is shown of them.
            numbers: numbers of the responses to each.
            seed: sampling seed.

        Raises:
            EngineError: an engine other than PyTorch failed.
        """
        rollouts = self.generator.generate(
            samples, view, group_size=len(numbers), first=numbers.start, seed=seed
        )
        return [
            _stored(sample.id, shown_digest(view.show(sample)), numbers, texts, group)
            for sample, group, texts in zip(rollouts.samples, rollouts.responses, rollouts.texts, strict=True)
        ]


def _stored(
    problem: str, digest: str, numbers: range, texts: Sequence[str], responses: Sequence[Response]
) -> list[StoredResponse]:
    """The responses to one problem as they are stored."""
    return [
        StoredResponse(
            problem, number, digest, text, response.ids.tolist(), len(response.ids), response.finish_reason
        )
        for number, text, response in zip(numbers, texts, responses, strict=True)
    ]
