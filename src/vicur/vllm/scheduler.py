"""vLLM's scheduler with two checks that cue recovery needs, where batches are built."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vicur.vllm.salts import Medium, prompt_digest


class SplitPromptError(RuntimeError):
    """A prompt would be prefilled in more than one step, which would leave recovery out.

    Args:
        request: id of the request.
        end: number of the prompt's tokens that would be in this step or before.
        visual_end: number of tokens up to the last visual one.
    """

    def __init__(self, request: str, end: int, visual_end: int) -> None:
        super().__init__(
            f"The prompt of request {request} would be split after {end} tokens, but its last visual token "
            f"is number {visual_end}: cue recovery needs all of them in one prefill. Lower max_num_seqs, or "
            "raise max_num_batched_tokens."
        )


class _ChecksPrompts:
    """Mixed in before a scheduler of vLLM."""

    def add_request(self, request: Any) -> None:
        """Let a request read the prefix cache only if its salt depends on all of its images.

        A request over HTTP may come with another salt or none; it then computes its whole prompt.
        """
        digest = prompt_digest(request.prompt_token_ids, media_of(request.mm_features))
        if not (request.cache_salt or "").endswith(digest):
            request.skip_reading_prefix_cache = True
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The next batch.

        Raises:
            SplitPromptError: it has a part of a prompt that ends before the last visual token.
        """
        output: Any = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for name in output.num_scheduled_tokens:
            request = self.requests[name]  # type: ignore[attr-defined]
            if request.mm_features:
                check_whole(name, request.num_computed_tokens, media_of(request.mm_features))
        return output


class RecoveryScheduler(_ChecksPrompts, Scheduler):
    """The scheduler for engines that wait for each step."""


class AsyncRecoveryScheduler(_ChecksPrompts, AsyncScheduler):
    """The scheduler for engines that build the next batch during a step."""


def make_scheduler(vllm_config: Any, **settings: Any) -> Any:
    """The scheduler of an engine; called by vLLM with the arguments of a scheduler's class."""
    is_async = vllm_config.scheduler_config.async_scheduling
    return (AsyncRecoveryScheduler if is_async else RecoveryScheduler)(vllm_config=vllm_config, **settings)


def check_whole(request: str, end: int, media: list[Medium]) -> None:
    """Check that a prefill reaches the last visual token.

    Args:
        request: id of the request.
        end: number of tokens that are computed after this step.
        media: the prompt's images and frames.

    Raises:
        SplitPromptError: it does not.
    """
    visual_end = max(medium.offset + medium.length for medium in media)
    if end < visual_end:
        raise SplitPromptError(request, end, visual_end)


def media_of(features: Any) -> list[Medium]:
    """The images and frames of a request, from its multimodal features."""
    return [
        Medium(feature.mm_position.offset, feature.mm_position.length, feature.mm_hash or feature.identifier)
        for feature in features
    ]
