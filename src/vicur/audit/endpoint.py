"""A chat model behind an endpoint as judge of cues."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vicur.audit.judge import SCHEMA, Verdict, judge_question, parse_verdict
from vicur.audit.rows import CueRow
from vicur.audit.run import READ
from vicur.cues.parsing import THINKING_OFF
from vicur.cues.requests import Asking, CueRequest
from vicur.cues.store import CueStore
from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.views import Shown
from vicur.endpoints.client import EndpointClient
from vicur.endpoints.config import EndpointConfig, endpoint_identity
from vicur.endpoints.patience import Patience
from vicur.endpoints.request import Hopeless, Reply, RequestFailed, Unreachable
from vicur.rewards.thinking import without_thoughts

ASKING = Asking(temperature=0.0, max_tokens=300)
"""Sampling of the judge: three short quotes in a JSON object."""


class EndpointJudge:
    """Asks a model about each cue, with its image, question and gold answer.

    Args:
        model: name of the model at the endpoint.
        config: settings of the endpoint.
        store: file that keeps the replies, so that a rerun asks only for what is missing; None for no file.
        tries: attempts per cue before it is left without a verdict.
        backoff_seconds: wait before the second attempt; doubled with each further one.
        concurrency: number of requests in flight.
    """

    def __init__(
        self,
        model: str,
        config: EndpointConfig,
        *,
        store: Path | None = None,
        tries: int = 4,
        backoff_seconds: float = 1.0,
        concurrency: int = 16,
    ) -> None:
        self.model, self.config, self.store = model, config, store
        self.concurrency, self._patience = concurrency, Patience(tries, backoff_seconds)

    def __call__(self, rows: Sequence[CueRow]) -> list[Verdict | None]:
        """A verdict for each row; None if the model gave none.

        It must not be called from a running event loop.

        Raises:
            ValueError: a row has no image, a key is missing, the endpoint cannot be reached or answers
                nothing, or the model spends its replies on reasoning.
            BadRowError: an image cannot be decoded.
        """
        with nullcontext() if self.store is None else CueStore(self.store) as store:
            return asyncio.run(self._judge(rows, store))

    async def _judge(self, rows: Sequence[CueRow], store: CueStore | None) -> list[Verdict | None]:
        client = EndpointClient(self.model, self.config, ASKING.image_format)
        free = asyncio.Semaphore(self.concurrency)
        self._patience.start()

        async def verdict(row: CueRow) -> Verdict | None:
            async with free:  # only the images of cues in flight are decoded
                request = await asyncio.to_thread(_request, row)
                key = f"{endpoint_identity(self.model, self.config)} {shown_digest(request.question)}"
                if store is not None and key in store:
                    return parse_verdict(store.cue(key))
                reply = await self._reply(client, request)
                if reply is not None and store is not None:
                    store.add(key, reply, id=row.id)
                return None if reply is None else parse_verdict(reply)

        try:
            return list(await asyncio.gather(*map(verdict, rows)))
        except (Hopeless, Unreachable) as error:
            raise ValueError(f"The verifier {self.model} cannot be used: {error}.") from error
        finally:
            await client.close()

    async def _reply(self, client: EndpointClient, request: CueRequest) -> str | None:
        """A reply with a verdict; None if no attempt gave one."""

        async def send(attempt: int) -> str:
            text = self._text(await client.ask(request.again(attempt)))
            if parse_verdict(text) is None:
                raise RequestFailed("the reply has no verdict", again=True)
            return text

        try:
            return await self._patience.ask(send)
        except RequestFailed:
            return None

    def _text(self, reply: Reply) -> str:
        """A reply without the model's thoughts.

        Raises:
            ValueError: the reply holds only thoughts; a retry would give the same.
        """
        text, thinking = without_thoughts(reply.text)
        if thinking or (reply.thoughts and not text.strip()):
            raise ValueError(
                f"The verifier {self.model} spends its reply of {ASKING.max_tokens} tokens on reasoning. Use "
                f"another model, or {THINKING_OFF.partition(' with ')[0]}."
            )
        return text


def _request(row: CueRow) -> CueRequest:
    if row.sample is None:
        raise ValueError(f"Sample {row.id} has no image, so its cue cannot be judged.")
    sample: Sample = row.sample()
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    content += [{"type": "video"} for _ in sample.videos]
    content.append({"type": "text", "text": judge_question(row, READ)})
    return CueRequest(
        index=0,
        sample_id=sample.id,
        question=Shown(({"role": "user", "content": content},), sample.images, sample.videos),
        number=0,
        seed=ASKING.seed,
        temperature=ASKING.temperature,
        max_tokens=ASKING.max_tokens,
        field="verdict",
        schema=SCHEMA,
    )
