"""How often an endpoint is asked: the rate of requests, and the wait after one that was refused."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

Sleep = Callable[[float], Awaitable[Any]]


class RateLimit:
    """Limits the requests per minute by spacing them evenly.

    Args:
        per_minute: None for no limit.
        clock, sleep: functions that read the time and wait, in seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._distance = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = clock()

    async def turn(self) -> None:
        """Wait until the next request may be sent."""
        if not self._distance:
            return
        now = self._clock()
        turn = max(self._next, now)
        self._next = turn + self._distance
        if turn > now:
            await self._sleep(turn - now)


def backoff(attempt: int, base: float, after: float | None = None) -> float:
    """Seconds to wait before another attempt: doubled each time up to a minute, with a random part, so that
    requests that were refused together are not all retried together.

    Args:
        attempt: number of the attempt, from 0.
        base: seconds before the first.
        after: seconds that the endpoint asked to wait, which are a lower bound.
    """
    seconds = min(base * 2.0 ** min(attempt, 16), 60.0) * random.uniform(0.5, 1.0)
    return seconds if after is None else max(seconds, after)
