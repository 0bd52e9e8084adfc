"""A backend without vLLM: a copy of the model that PyTorch runs, with the faults that a test plants."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from vicur.models.load import copy_of
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.torch_engine import TorchEngine
from vicur.vllm.backend import Completion, EngineError


class Copy:
    """Answers with the weights that it was given last.

    Attributes:
        events: what was asked of it, in order.
        stale: whether it ignores new weights after the first.
        blind: whether it leaves the images out.
        dies_after: number of calls of `generate` after which it fails.
    """

    made: ClassVar[list[Copy]] = []

    def __init__(self, loaded, config, max_model_len):
        self.loaded, self.length = loaded, max_model_len
        self.copied = copy_of(loaded, with_recovery=True)
        with torch.no_grad():
            for parameter in self.copied.model.parameters():
                parameter.zero_()  # vLLM starts with weights that mean nothing
        self.events = []
        self.stale = self.blind = False
        self.dies_after = None
        Copy.made.append(self)

    def load(self):
        self.events.append("load")
        if not self.stale or self.events.count("load") == 1:
            self.copied.model.load_state_dict(dict(self.loaded.current_weights()))

    def generate(self, prompts, seeds, sampling):
        self.events.append("generate")
        if self.dies_after is not None and self.events.count("generate") > self.dies_after:
            raise EngineError("vLLM failed while it generated: the process is gone")
        engine = TorchEngine(self.copied)
        config = SamplingConfig(temperature=sampling["temperature"], max_new_tokens=sampling["max_tokens"])
        if self.blind:
            prompts = [
                replace(p, media={k: v * (v.dtype == torch.long) for k, v in p.media.items()})
                for p in prompts
            ]
        groups = []
        for prompt, group in zip(prompts, seeds, strict=True):
            responses = [engine.sample([prompt], [str(seed)], config)[0][0] for seed in group]
            groups.append(
                [
                    Completion(r.ids.tolist(), r.log_probs.tolist(), r.finish_reason == "stop")
                    for r in responses
                ]
            )
        return groups

    def sleep(self):
        self.events.append("sleep")

    def wake(self, part):
        self.events.append(f"wake {part}")

    def close(self):
        self.events.append("close")
