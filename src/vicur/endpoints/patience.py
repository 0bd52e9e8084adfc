"""Sends a request again until it succeeds, or until it cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vicur.endpoints.limits import backoff
from vicur.endpoints.request import RequestFailed, Unreachable

SILENCE, FIRST_SILENCE = 300.0, 30.0
"""Seconds without any reply after which an endpoint is given up; the second if there never was a connection,
as the address is probably wrong."""
Result = TypeVar("Result")


class Patience:
    """How often the requests to one endpoint are sent, and how long it may be silent.

    Args:
        tries: number of times that a request is sent.
        backoff_seconds: seconds before a request is sent again, doubled each time.
    """

    def __init__(self, tries: int, backoff_seconds: float = 1.0) -> None:
        self.tries, self.backoff_seconds = tries, backoff_seconds
        self._last_reply = time.monotonic()
        self._has_answered = False

    def start(self) -> None:
        """Count silence from now: nothing was asked for a while."""
        self._last_reply = time.monotonic()

    async def ask(self, send: Callable[[int], Awaitable[Result]]) -> Result:
        """The result of a request.

        Args:
            send: sends the request, given the number of the try from 0, and reads the reply. It raises
                `RequestFailed` for a reply that cannot be used.

        Raises:
            RequestFailed: all tries failed, or another would not help.
            Unreachable: the endpoint cannot be reached, and was silent for too long.
            Hopeless: as it says.
        """
        tries = waits = 0
        while True:
            after = None
            try:
                result = await send(tries)
                self._last_reply, self._has_answered = time.monotonic(), True
                return result
            except Unreachable as error:
                self._has_answered |= error.answered
                silence = SILENCE if self._has_answered else FIRST_SILENCE
                if time.monotonic() - self._last_reply > silence:
                    raise Unreachable(f"no reply for {silence:g} s: {error}") from error
                waits, after = waits + 1, error.after
            except RequestFailed as error:
                self._last_reply, self._has_answered = time.monotonic(), True
                tries += 1
                if not error.again or tries >= self.tries:
                    raise
            await asyncio.sleep(backoff(max(tries, waits) - 1, self.backoff_seconds, after))
