"""Engines: what runs a model to sample responses to prompts.

"torch" runs it in this process with PyTorch, and is the reference. "vllm" has vLLM run it, in this process or
on a server. `make_engine` makes one, and `vicur.rollouts.generator` generates with it.
To add an engine, write a class with the methods of `Engine` and a line in `make_engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response
from vicur.rollouts.torch_engine import TorchEngine
from vicur.rollouts.vllm_engine import VLLMEngine
from vicur.vllm.settings import EngineName, VLLMConfig


@runtime_checkable
class Engine(Protocol):
    """Samples responses of one model.

    Attributes:
        loaded: the model. The engine may have weights of its own, copied from it.
    """

    loaded: LoadedModel

    def awake(self) -> AbstractContextManager[None]:
        """A context in which the engine is ready, with the model's current weights.

        All ranks enter it together. Inside, each may sample as often as it needs to.
        """
        ...

    def sample(
        self,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[str],
        sampling: SamplingConfig,
        *,
        group_size: int = 1,
        first: int = 0,
        seed: int = 0,
        step: int = 0,
    ) -> list[list[Response]]:
        """Sample responses; outside of `awake`, all ranks must call this.

        They depend on (seed, step, id, number of the response) and the model, not on which prompts are in
        the same call.

        Args:
            prompts: the model's prompts.
            ids: for each prompt the id that its random numbers are keyed by.
            sampling: temperature and the like.
            group_size: number of responses to each prompt.
            first: number of the first of them, e.g. 8 to continue after responses 0 to 7.
            seed: another seed, other responses.
            step: rollout step; another step, other responses.

        Returns:
            the responses to each prompt, on the CPU.
        """
        ...

    def sync(self) -> None:
        """Note that the model's weights have changed."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def make_engine(
    loaded: LoadedModel,
    name: EngineName = "torch",
    vllm: VLLMConfig | None = None,
    *,
    prompts_per_batch: int = 64,
    setting: str = "prompts_per_batch",
    longest: int | None = None,
) -> Engine:
    """The engine of a name.

    Args:
        loaded: the model that it runs.
        name: its name.
        vllm: settings for "vllm".
        prompts_per_batch: for "torch": number of prompts that are prefilled and decoded together.
        setting: the setting that this number came from, for messages.
        longest: largest number of tokens of a prompt and its response, if known.

    Raises:
        ValueError: vLLM is not installed, of another version, or cannot run this model.
    """
    if name == "torch":
        return TorchEngine(loaded, prompts_per_batch, setting)
    return VLLMEngine(loaded, vllm or VLLMConfig(), longest)
