"""A request to a chat model, its reply, and the ways in which it fails.

What goes wrong is one of three things: the endpoint cannot be reached just now (`Unreachable`: no fault of
the request), this one request failed (`RequestFailed`), or no request will ever work (`Hopeless`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Literal

from vicur.data.views import Shown

ImageFormat = Literal["png", "jpeg"]
"""Format in which images are sent."""


class Unreachable(Exception):
    """The endpoint cannot answer just now.

    Args:
        reason: the reason, as half a sentence.
        after: seconds to wait, if it said so.
        answered: whether it answered that it is busy; otherwise there was no connection.
    """

    def __init__(self, reason: str, after: float | None = None, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.after, self.answered = after, answered


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


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One request to a model.

    Attributes:
        question: the chat and its media, as they are sent.
        seed: sampling seed.
        temperature: sampling temperature; None for the model's default.
        max_tokens: maximum length of the reply, in tokens.
        field: key of the JSON object that is requested as reply; None for free text.
        schema: JSON schema of the reply; None for an object with the text `field`.
        sampling: other sampling settings, under the names of OpenAI's API or of vLLM's extension of it.
    """

    question: Shown
    seed: int
    temperature: float | None
    max_tokens: int
    field: str | None = None
    schema: dict[str, Any] | None = None
    sampling: Mapping[str, Any] = dataclass_field(default_factory=dict)


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
