"""A source of cues."""

from __future__ import annotations

from typing import Protocol

from vicur.cues.requests import CueRequest
from vicur.endpoints.request import Reply


class CueClient(Protocol):
    """A source of cues."""

    @property
    def name(self) -> str:
        """Name of the model, for records."""
        ...

    def identity(self, index: int) -> str:
        """Everything about the client that determines its reply to a problem."""
        ...

    async def ask(self, request: CueRequest) -> Reply:
        """Send one request.

        Raises:
            Unreachable, RequestFailed, Hopeless: as these say (`vicur.endpoints.request`).
        """
        ...

    async def close(self) -> None:
        """Close connections and threads."""
        ...
