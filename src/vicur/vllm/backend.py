"""What an engine of vLLM does, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vicur.distributed import PeerError
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.vllm.settings import VLLMConfig


class EngineError(ValueError):
    """An engine failed, is stuck, or differs from the trainer."""


@dataclass(frozen=True)
class Completion:
    """A response as the engine returned it.

    Attributes:
        ids: its tokens, stop token included.
        log_probs: log-prob of each token under the model at temperature 1, in nats.
        stopped: whether it ended with a stop token.
    """

    ids: list[int]
    log_probs: list[float]
    stopped: bool


class Backend(Protocol):
    """An engine of vLLM with the weights of a model."""

    def load(self) -> None:
        """Copy the model's current weights into the engine, and drop what was computed with the old ones.

        All ranks must call this, because sharded weights are gathered.

        Raises:
            EngineError: the weights cannot be loaded.
        """
        ...

    def generate(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]], sampling: Mapping[str, Any]
    ) -> list[list[Completion]]:
        """Generate responses.

        Args:
            prompts: the prompts.
            seeds: for each prompt the seed of each response to it.
            sampling: arguments of vLLM's `SamplingParams` that all responses share.

        Returns:
            the responses to each prompt.

        Raises:
            EngineError: the engine fails or is stuck.
        """
        ...

    def sleep(self) -> None:
        """Free the GPU's memory until `wake`, if the engine shares the GPU with the trainer."""
        ...

    def wake(self, part: str) -> None:
        """Take a part of the memory back: "weights" or "kv_cache"."""
        ...

    def close(self) -> None:
        """Stop the engine and free its memory."""
        ...


def make_backend(loaded: LoadedModel, config: VLLMConfig, max_model_len: int) -> Backend:
    """An engine in this process, or the client of servers.

    Args:
        loaded: the model.
        config: settings of the engine.
        max_model_len: maximum number of tokens of a prompt and its response.

    Raises:
        EngineError: the engine does not start or cannot be reached.
    """
    if config.servers:
        from vicur.vllm.remote import RemoteEngine

        return RemoteEngine(loaded, config, max_model_len)
    from vicur.vllm.local import LocalEngine

    return LocalEngine(loaded, config, max_model_len)


@contextmanager
def failures_reported(what: str) -> Iterator[None]:
    """A context whose errors are reported in a sentence.

    Args:
        what: what did not work, e.g. "vLLM does not start".

    Raises:
        EngineError: any error inside, unless it is another rank's.
    """
    try:
        yield
    except (EngineError, PeerError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise EngineError(f"{what}: {reason}") from error
