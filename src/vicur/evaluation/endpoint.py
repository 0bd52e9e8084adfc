"""Answers from an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import Shown, View
from vicur.endpoints.client import EndpointClient
from vicur.endpoints.patience import Patience
from vicur.endpoints.request import ChatRequest, Hopeless, Reply, RequestFailed, Unreachable
from vicur.evaluation.responders import Keep
from vicur.evaluation.responses import StoredResponse
from vicur.media.pixels import within
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.randomness import stream_key

_SEEDS = 2**31
"""Number of seeds: some servers take 32 bits with a sign."""


class EndpointResponder:
    """An endpoint that answers problems. A context manager: it closes its connections at the end.

    Images with more pixels than `max_pixels` are scaled down before they are sent; what else happens to them
    is up to the endpoint.

    Args:
        client: the endpoint.
        sampling: settings for sampling.
        concurrency: number of requests in flight.
        tries: number of times that a request is sent.
        max_pixels: upper bound on the pixels of an image; None for no bound.
        backoff_seconds: seconds before a request is sent again, doubled each time.
    """

    def __init__(
        self,
        client: EndpointClient,
        sampling: SamplingConfig,
        *,
        concurrency: int = 16,
        tries: int = 5,
        max_pixels: int | None = None,
        backoff_seconds: float = 1.0,
    ) -> None:
        self.client, self.sampling = client, sampling
        self.concurrency, self.max_pixels = concurrency, max_pixels
        self._patience = Patience(tries, backoff_seconds)
        self._runner = asyncio.Runner()

    def __enter__(self) -> EndpointResponder:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._runner:
            self._runner.run(self.client.close())

    def respond(
        self, samples: Sequence[Sample], view: View, missing: Sequence[Sequence[int]], seed: int, keep: Keep
    ) -> Sequence[str | None]:
        """Send a request for every response, several at a time.

        Raises:
            ValueError: the endpoint cannot be reached, or will answer no request.
            OSError: the responses cannot be stored.
        """
        return self._runner.run(self._respond(samples, view, missing, seed, keep))

    async def _respond(
        self, samples: Sequence[Sample], view: View, missing: Sequence[Sequence[int]], seed: int, keep: Keep
    ) -> list[str | None]:
        free = asyncio.Semaphore(self.concurrency)
        self._patience.start()
        tasks: list[list[asyncio.Task[str | None]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for sample, numbers in zip(samples, missing, strict=True):
                    question = _Question(sample, view, self.max_pixels)
                    tasks.append(
                        [
                            group.create_task(self._response(free, question, number, seed, keep))
                            for number in numbers
                        ]
                    )
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            kind = OSError if isinstance(first, OSError) else ValueError  # the store may fail, too
            raise kind(str(first)) from failures
        return [next(filter(None, (task.result() for task in of_one)), None) for of_one in tasks]

    async def _response(
        self, free: asyncio.Semaphore, question: _Question, number: int, seed: int, keep: Keep
    ) -> str | None:
        """Get and keep one response; why there is none after all tries."""

        async def send(_: int) -> Reply:
            async with free:
                return await self.client.ask(self._request(question, number, seed))

        try:
            reply = await self._patience.ask(send)
        except (Hopeless, Unreachable) as error:
            raise ValueError(f"The evaluation stopped: {error}.") from error
        except RequestFailed as error:
            return str(error)
        keep([_stored(question, number, reply)])
        return None

    def _request(self, question: _Question, number: int, seed: int) -> ChatRequest:
        return ChatRequest(
            question=question.sent,
            seed=int(stream_key(seed, 0, question.problem, number)) % _SEEDS,
            temperature=self.sampling.temperature,
            max_tokens=self.sampling.max_new_tokens,
            sampling=_other_settings(self.sampling),
        )


class _Question:
    """What is shown of a problem. It is made when the first of its requests is sent.

    Args:
        sample: the problem.
        view: what is shown of it.
        max_pixels: upper bound on the pixels of an image that is sent; None for no bound.
    """

    def __init__(self, sample: Sample, view: View, max_pixels: int | None) -> None:
        self.problem, self._sample, self._view, self._max_pixels = sample.id, sample, view, max_pixels

    @cached_property
    def _chat(self) -> Shown:
        return self._view.show(self._sample)

    @cached_property
    def sent(self) -> Shown:
        """The chat with images that are not too large. Frames of videos are sent as they are."""
        images = tuple(within(image, self._max_pixels) for image in self._chat.images)
        return replace(self._chat, images=images)

    @cached_property
    def digest(self) -> str:
        """Digest of the chat before images are scaled down."""
        return shown_digest(self._chat)


def _other_settings(sampling: SamplingConfig) -> dict[str, Any]:
    """The sampling settings that are not the default: some endpoints refuse those that they lack."""
    values = {"top_p": sampling.top_p, "top_k": sampling.top_k, "presence_penalty": sampling.presence_penalty}
    off = SamplingConfig()
    return {name: value for name, value in values.items() if value != getattr(off, name)}


def _stored(question: _Question, number: int, reply: Reply) -> StoredResponse:
    thoughts = f"<think>{reply.thoughts}</think>\n" if reply.thoughts else ""
    return StoredResponse(
        question.problem,
        number,
        question.digest,
        thoughts + reply.text,
        None,
        reply.completion_tokens,
        "length" if reply.cut_off else "stop",
    )
