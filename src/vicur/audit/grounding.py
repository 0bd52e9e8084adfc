"""Claims of a cue, and who can say whether the image bears them out."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from vicur.data.sample import Sample

_END = re.compile(r"[.!?](?=\s|$)|[;\n]")
_REPLY = re.compile(r"\b(yes|true|no|false|cannot|can't|unsure|unclear|unknown)\b", re.IGNORECASE)


class Ask(Protocol):
    """A chat model, at once or to be waited for."""

    def __call__(self, sample: Sample, text: str) -> str | Awaitable[str]:
        """Its reply to a text beside the sample's media."""
        ...


class Verifier(Protocol):
    """Looks at the image. Claims that have to be waited for are verified together."""

    def __call__(self, sample: Sample, claim: str) -> bool | Awaitable[bool | None] | None:
        """Whether what a claim says is so; None where that cannot be told."""
        ...


@dataclass(frozen=True)
class Claim:
    """One sentence of a cue, and where it stands, in characters."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class ModelVerifier:
    """Asks a chat model about each claim, with the image beside it.

    Attributes:
        ask: shows a sample's media and a text to the model, and gives its reply.
    """

    ask: Ask

    async def __call__(self, sample: Sample, claim: str) -> bool | None:
        reply = self.ask(
            sample,
            "Look at the image. Is the following statement about it true? Check every label, number, colour "
            'and position that it mentions. Reply with "yes", "no" or "cannot tell".\n\n'
            f"Statement: {claim}",
        )
        return yes_or_no(reply if isinstance(reply, str) else await reply)


def yes_or_no(reply: str) -> bool | None:
    """What a model's reply to such a question says, by its first telling word."""
    match = _REPLY.search(reply)
    word = match.group().lower() if match else ""
    return True if word in ("yes", "true") else False if word in ("no", "false") else None


def split_claims(text: str) -> list[Claim]:
    """The sentences of a cue, and the parts of one that semicolons separate. Points in numbers end none."""
    claims, start = [], 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        part = text[start:end]
        if re.search(r"\w", part):
            lead = len(part) - len(part.lstrip())
            text_end = len(part.rstrip().rstrip(";"))
            claims.append(Claim(start + lead, start + text_end, part[lead:text_end]))
        start = end
    return claims
