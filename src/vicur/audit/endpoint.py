"""A chat model behind an endpoint, for the audit's second look."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from vicur.cues.clients import (
    EndpointClient,
    EndpointConfig,
    Hopeless,
    Reply,
    RequestFailed,
    Unreachable,
    backoff,
)
from vicur.cues.requests import Asking, CueRequest
from vicur.data.sample import Sample
from vicur.data.views import Shown
from vicur.rewards.thinking import without_thoughts

MOST_TOKENS = 60
"""Of a reply: a word, and what a model likes to say around it."""


class EndpointAsk:
    """Shows a sample's media and a text to a model, and gives its reply; "" where none can be had.

    Args:
        model: its name at the endpoint.
        config: where that is.
        tries: of a request, before it counts as without a reply.
        backoff_seconds: before the second; doubled with each further one.

    Raises:
        ValueError: where it is asked: a key is missing, or the endpoint will answer nothing at all.
    """

    def __init__(
        self, model: str, config: EndpointConfig, *, tries: int = 4, backoff_seconds: float = 1.0
    ) -> None:
        self.model, self.config = model, replace(config, structured="off")
        self.tries, self.backoff_seconds = tries, backoff_seconds
        self.asking = Asking(temperature=0.0, max_tokens=MOST_TOKENS)

    async def __call__(self, sample: Sample, text: str) -> str:
        # A client of its own: one that outlives an event loop cannot be closed.
        client = EndpointClient(self.model, self.config, self.asking)
        try:
            return await self._reply(client, self._request(sample, text))
        except Hopeless as error:
            raise ValueError(f"The verifier {self.model} cannot be asked: {error}.") from error
        finally:
            await client.close()

    async def _reply(self, client: EndpointClient, request: CueRequest) -> str:
        for attempt in range(self.tries):
            try:
                return self._said(await client.ask(request))
            except RequestFailed as error:
                if not error.again:
                    return ""
                after = None
            except Unreachable as error:
                after = error.after
                if attempt + 1 == self.tries:
                    raise ValueError(f"The verifier {self.model} cannot be asked: {error}.") from error
            await asyncio.sleep(backoff(attempt, self.backoff_seconds, after))
        return ""

    def _said(self, reply: Reply) -> str:
        """A reply without thoughts.

        Raises:
            ValueError: it has nothing else, and nor would others.
        """
        text, thinking = without_thoughts(reply.text)
        if thinking or (reply.thoughts and not text.strip()):
            raise ValueError(
                f"The verifier {self.model} spends its reply of {MOST_TOKENS} tokens on reasoning. Serve it "
                "with thinking switched off, or use another model."
            )
        return text

    def _request(self, sample: Sample, text: str) -> CueRequest:
        media: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
        media += [{"type": "video"} for _ in sample.videos]
        message = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
        return CueRequest(
            index=0,
            sample_id=sample.id,
            shown=Shown((message,), sample.images, sample.videos),
            number=0,
            seed=self.asking.seed,
            temperature=self.asking.temperature,
            max_tokens=self.asking.max_tokens,
            field="reply",
        )
