"""What answers the problems of an evaluation: a model on an engine, or an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import View
from vicur.evaluation.responses import StoredResponse
from vicur.media.pixels import PixelLimits
from vicur.rollouts.engines import Engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig


@dataclass(frozen=True)
class Unanswered:
    """The reason why a problem was not answered, as half a sentence."""

    reason: str


@runtime_checkable
class Responder(Protocol):
    """Answers problems."""

    def respond(
        self, samples: Sequence[Sample], view: View, count: int, seed: int, present: Sequence[int]
    ) -> Sequence[list[StoredResponse] | Unanswered]:
        """The missing responses to each problem, up to number `count` - 1, or why it was not answered.

        Args:
            samples: the problems.
            view: what is shown of them.
            count: number of responses to each.
            seed: sampling seed.
            present: number of responses that each has already; they have the numbers from 0.
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
        self, samples: Sequence[Sample], view: View, count: int, seed: int, present: Sequence[int]
    ) -> list[list[StoredResponse]]:
        """Sample responses, as `ModelGenerator.generate` does.

        Raises:
            EngineError: an engine other than PyTorch failed.
        """
        rollouts = self.generator.generate(samples, view, group_size=count, seed=seed)
        results = []
        groups = zip(rollouts.samples, rollouts.responses, rollouts.texts, present, strict=True)
        for sample, group, texts, first in groups:
            digest = shown_digest(view.show(sample))
            results.append(
                [
                    StoredResponse(
                        sample.id,
                        number,
                        digest,
                        text,
                        response.ids.tolist(),
                        len(response.ids),
                        response.finish_reason,
                    )
                    for number, (text, response) in enumerate(zip(texts, group, strict=True))
                    if number >= first
                ]
            )
        return results
