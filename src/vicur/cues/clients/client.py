"""A source of cues, what it replies, and how it fails.

What goes wrong is one of three things: the client cannot be reached just now (`Unreachable`: no fault of
the problem), this one request failed (`RequestFailed`), or no request will ever work (`Hopeless`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vicur.cues.requests import CueRequest


class Unreachable(Exception):
    """The client cannot answer just now.

    Args:
        reason: the reason, as half a sentence.
        after: seconds to wait, if it said so.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class RequestFailed(Exception):
    """One request failed.

    Args:
        reason: the reason, as half a sentence.
        again: whether another try may help.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Hopeless(Exception):
    """No request will work, and why, in half a sentence."""


@dataclass(frozen=True)
class Reply:
    """A model's reply.

    Attributes:
        text: the reply, verbatim.
        prompt_tokens, completion_tokens: as counted by the model's server; None where it gives no count.
        cut_off: whether it ended because there were no tokens left.
        thoughts: the model's reasoning, where the server keeps it apart from the text.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut_off: bool = False
    thoughts: str = ""


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
            Unreachable, RequestFailed, Hopeless: as these say.
        """
        ...

    async def close(self) -> None:
        """Close connections and threads."""
        ...
