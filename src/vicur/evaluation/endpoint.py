"""Answers from an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import Shown, View
from vicur.endpoints.client import EndpointClient
from vicur.endpoints.limits import backoff
from vicur.endpoints.request import ChatRequest, Hopeless, Reply, RequestFailed, Unreachable
from vicur.evaluation.responders import Unanswered
from vicur.evaluation.responses import StoredResponse
from vicur.media.pixels import within
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.randomness import stream_key

PATIENCE = 300.0
"""Seconds without any reply after which an endpoint that cannot be reached is given up."""
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
        self.client, self.sampling, self.tries = client, sampling, tries
        self.concurrency, self.max_pixels, self.backoff_seconds = concurrency, max_pixels, backoff_seconds
        self._runner = asyncio.Runner()
        self._last_reply = time.monotonic()

    def __enter__(self) -> EndpointResponder:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._runner:
            self._runner.run(self.client.close())

    def respond(
        self, samples: Sequence[Sample], view: View, count: int, seed: int, present: Sequence[int]
    ) -> Sequence[list[StoredResponse] | Unanswered]:
        """Send a request for every response, several at a time.

        Raises:
            ValueError: the endpoint cannot be reached, or will answer no request.
        """
        return self._runner.run(self._respond(samples, view, count, seed, present))

    async def _respond(
        self, samples: Sequence[Sample], view: View, count: int, seed: int, present: Sequence[int]
    ) -> list[list[StoredResponse] | Unanswered]:
        free = asyncio.Semaphore(self.concurrency)
        self._last_reply = time.monotonic()
        tasks: list[list[asyncio.Task[StoredResponse | Unanswered]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for sample, first in zip(samples, present, strict=True):
                    question = view.show(sample)
                    tasks.append(
                        [
                            group.create_task(self._response(free, sample.id, question, number, seed))
                            for number in range(first, count)
                        ]
                    )
        except ExceptionGroup as failures:
            raise ValueError(str(failures.exceptions[0])) from failures
        return [_joined([task.result() for task in of_problem]) for of_problem in tasks]

    async def _response(
        self, free: asyncio.Semaphore, problem: str, question: Shown, number: int, seed: int
    ) -> StoredResponse | Unanswered:
        """One response, or why there is none after all tries."""
        images = tuple(within(image, self.max_pixels) for image in question.images)
        request = ChatRequest(
            question=replace(question, images=images),
            seed=int(stream_key(seed, 0, problem, number)) % _SEEDS,
            temperature=self.sampling.temperature,
            max_tokens=self.sampling.max_new_tokens,
            sampling=_other_settings(self.sampling),
        )
        tries = waits = 0
        while True:
            after = None
            try:
                async with free:
                    reply = await self.client.ask(request)
                self._last_reply = time.monotonic()
                return _stored(problem, number, question, reply)
            except Hopeless as error:
                raise ValueError(f"The evaluation stopped: {error}.") from error
            except Unreachable as error:
                if time.monotonic() - self._last_reply > PATIENCE:
                    raise ValueError(f"No reply for {PATIENCE:g} s: {error}.") from error
                waits, after = waits + 1, error.after
            except RequestFailed as error:
                tries += 1
                if not error.again or tries >= self.tries:
                    return Unanswered(str(error))
            await asyncio.sleep(backoff(max(tries, waits) - 1, self.backoff_seconds, after))


def _other_settings(sampling: SamplingConfig) -> dict[str, Any]:
    """The sampling settings that are not the default: some endpoints refuse those that they lack."""
    values = {"top_p": sampling.top_p, "top_k": sampling.top_k, "presence_penalty": sampling.presence_penalty}
    off = SamplingConfig()
    return {name: value for name, value in values.items() if value != getattr(off, name)}


def _stored(problem: str, number: int, question: Shown, reply: Reply) -> StoredResponse:
    thoughts = f"<think>{reply.thoughts}</think>\n" if reply.thoughts else ""
    return StoredResponse(
        problem,
        number,
        shown_digest(question),
        thoughts + reply.text,
        None,
        reply.completion_tokens,
        "length" if reply.cut_off else "stop",
    )


def _joined(responses: Sequence[StoredResponse | Unanswered]) -> list[StoredResponse] | Unanswered:
    """The responses to a problem; if one is missing, why."""
    failed = next((response for response in responses if isinstance(response, Unanswered)), None)
    if failed is not None:
        return failed
    return [response for response in responses if isinstance(response, StoredResponse)]
