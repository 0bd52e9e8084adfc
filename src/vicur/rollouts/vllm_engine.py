"""Samples responses with vLLM, which holds a copy of the model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from vicur import distributed
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.randomness import stream_key
from vicur.rollouts.rollout import Response
from vicur.vllm.backend import Backend, Completion, EngineError, make_backend
from vicur.vllm.installed import check_installed
from vicur.vllm.settings import DEFAULT_LENGTH, VLLMConfig


class VLLMEngine:
    """Samples with vLLM, in this process or on a server. It starts when it is used for the first time.

    A response is keyed like those of PyTorch, but drawn from vLLM's random numbers: other tokens than PyTorch
    would draw, from the same distribution. The other prompts of a batch change logits by rounding, so that
    sometimes a token differs.

    Args:
        loaded: the model.
        config: settings of the engine.
        longest: largest number of tokens of a prompt and its response, if known.

    Raises:
        ValueError: vLLM is missing or of another version, or the model cannot be copied.
    """

    def __init__(self, loaded: LoadedModel, config: VLLMConfig, longest: int | None = None) -> None:
        check_installed()
        if loaded.mode is not nullcontext:
            raise ValueError("vLLM runs models with weights of their own, not a teacher within the student.")
        self.loaded, self.config = loaded, config
        self._length = config.max_model_len or _rounded(longest or DEFAULT_LENGTH, self._positions)
        self._backend: Backend | None = None
        self._has_weights = False
        self._is_awake = False

    @contextmanager
    def awake(self) -> Iterator[None]:
        """As described in `Engine.awake`: weights are copied if they have changed.

        Raises:
            EngineError: vLLM does not start or cannot load the weights.
        """
        if self._is_awake:
            yield
            return
        try:
            self._wake()
            yield
        except EngineError:
            self._give_up()
            raise
        except BaseException:
            with suppress(Exception):  # the error to report is the first
                self._sleep()
            raise
        else:
            self._sleep()
        finally:
            self._is_awake = False

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
        """Sample as described in `Engine.sample`.

        Raises:
            EngineError: vLLM fails, or a prompt and its response are too long for it.
        """
        sampling.check_engine("vllm")
        # In a row, so that a server gets one request for all responses to a prompt.
        numbers = range(first, first + group_size)
        seeds = [
            [(stream_key(seed, step, sample_id, 0) + number) % 2**63 for number in numbers]
            for sample_id in ids
        ]
        longest = max((len(prompt) for prompt in prompts), default=0) + sampling.max_new_tokens
        # All ranks are here unless the engine is awake already.
        self._make_room(longest if self._is_awake else distributed.largest(longest))
        with self.awake():
            assert self._backend is not None
            groups = self._backend.generate(prompts, seeds, self._parameters(sampling))
        return [[_response(completion, sampling) for completion in group] for group in groups]

    def sync(self) -> None:
        """Note that the weights have changed; they are copied before the next response."""
        self._has_weights = False

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        self._has_weights = False

    @property
    def _positions(self) -> int:
        return int(self.loaded.model.config.text_config.max_position_embeddings)

    def _wake(self) -> None:
        if self._backend is None:
            self._backend = make_backend(self.loaded, self.config, self._length)
        self._backend.wake("weights")
        if not self._has_weights:
            self._backend.load()
            self._has_weights = True
        self._backend.wake("kv_cache")
        self._is_awake = True

    def _give_up(self) -> None:
        """Stop an engine that has failed; whatever fails now is not the error to report."""
        with suppress(Exception):
            self.close()
        self._backend, self._has_weights = None, False

    def _make_room(self, length: int) -> None:
        """Start vLLM again if it was started for shorter prompts.

        Raises:
            EngineError: its length was set, or other ranks would have to start theirs again, too.
        """
        if length <= self._length:
            return
        is_alone = self._is_awake and distributed.size() > 1
        if self.config.max_model_len is not None or is_alone or length > self._positions:
            raise EngineError(
                f"A prompt and its response may take {length:,} tokens, and vLLM was started for "
                f"{self._length:,}. Raise max_model_len in the settings of vllm, or lower data.max_pixels or "
                "max_new_tokens."
            )
        self._length = _rounded(length, self._positions)
        self.close()
        if self._is_awake:
            self._wake()

    def _sleep(self) -> None:
        if self._backend is not None:
            self._backend.sleep()

    def _parameters(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Arguments of vLLM's `SamplingParams`."""
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "presence_penalty": sampling.presence_penalty,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(self.loaded.vocabulary.stop_ids),
            "ignore_eos": True,  # the checkpoint's own, which are among the ids above
            "detokenize": False,
        }


def _rounded(length: int, positions: int) -> int:
    """The next power of two, at most what the model supports."""
    return min(1 << (length - 1).bit_length(), positions)


def _response(completion: Completion, sampling: SamplingConfig) -> Response:
    log_probs = torch.tensor(completion.log_probs)
    return Response(
        ids=torch.tensor(completion.ids),
        # vLLM tells the log-probs of the model, which are those of sampling only where nothing changes them.
        log_probs=log_probs if sampling.is_policy else None,
        finish_reason="stop" if completion.stopped else "length",
        engine_log_probs=log_probs,
    )
