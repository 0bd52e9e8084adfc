"""Limits the size of an endpoint's replies: a server that sends without end must not fill the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from httpx2 import AsyncByteStream, Response

MOST_MEBIBYTES = 16
"""Maximum size of a reply. A cue takes a few kilobytes, and the thoughts before it a hundred."""


class ReplyRefused(Exception):
    """A reply is not read; the message completes "the endpoint's reply ..."."""


async def bound(response: Response) -> None:
    """Let the reading of a reply fail once it exceeds the maximum. An event hook of the HTTP client.

    Raises:
        ReplyRefused: the reply is compressed, so its size is unknown.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ReplyRefused("is compressed, although the request forbids that")
    assert isinstance(response.stream, AsyncByteStream)
    response.stream = _Bounded(response.stream)


class _Bounded(AsyncByteStream):
    """A stream of bytes that ends with an error at the maximum."""

    def __init__(self, stream: AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MOST_MEBIBYTES * 2**20:
                raise ReplyRefused(f"has more than {MOST_MEBIBYTES} MiB")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
