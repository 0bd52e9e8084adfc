"""A checkpoint that answers the problems of a harness, exactly as it answers those of `vicur eval`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.evaluation.responders import ModelResponder
from vicur.evaluation.responses import StoredResponse
from vicur.evaluation.settings import EvaluationSettings
from vicur.models.load import load_model
from vicur.rollouts.engines import make_engine
from vicur.rollouts.processors import SamplingConfig


class Answering:
    """A loaded checkpoint, cue recovery included, on an engine.

    Args:
        settings: which checkpoint, and how it is run.
        device: device of the model; by default a GPU if there is one, otherwise the CPU.

    Attributes:
        device: device of the model.

    Raises:
        ValueError: the checkpoint is missing or broken, lacks weights or has unexpected ones; or the engine
            cannot run it.
    """

    def __init__(self, settings: EvaluationSettings, device: torch.device | None = None) -> None:
        (model,) = settings.models
        loaded = load_model(model, settings.dtype, device)
        self.settings, self.device = settings, loaded.device
        self._stack = ExitStack()
        self._engine = make_engine(
            loaded,
            settings.engine,
            settings.vllm,
            prompts_per_batch=settings.prompts_per_batch,
            setting="batch_size",
        )
        self._stack.callback(self._engine.close)
        self._stack.enter_context(self._engine.awake())
        self._responders: dict[SamplingConfig, ModelResponder] = {}

    def answer(
        self, problems: Sequence[Sample], sampling: SamplingConfig, count: int = 1
    ) -> list[list[StoredResponse]]:
        """Responses 0 to `count` - 1 to each problem; greedy ones are all the same.

        Args:
            problems: the problems.
            sampling: settings for sampling.
            count: number of responses to each.

        Raises:
            ValueError: the engine cannot sample like this.
            EngineError: an engine other than PyTorch failed.
        """
        sampling.check_engine(self.settings.engine)
        if sampling not in self._responders:
            limits = self.settings.data.pixel_limits()
            self._responders[sampling] = ModelResponder(self._engine, sampling, limits)
        once = sampling.temperature == 0
        responder = self._responders[sampling]
        numbers = range(1 if once else count)
        groups = responder.sample(problems, Plain(), numbers, self.settings.seed)
        return [group * count if once else group for group in groups]

    def close(self) -> None:
        """Free the engine."""
        self._stack.close()
