"""Splits a cue into claims, which a verifier checks one by one against the image."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vicur.data.sample import Sample

_END = re.compile(r"[.!?](?=\s|$)|[;\n]")

Verifier = Callable[[Sample, str], bool | None]
"""Whether a claim about a sample's image is true; None if that cannot be decided."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a cue, with its position in characters."""

    start: int
    end: int
    text: str


def split_claims(text: str) -> list[Claim]:
    """The sentences of a cue, also split at semicolons. Decimal points do not end a sentence."""
    claims, start = [], 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        part = text[start:end]
        if re.search(r"\w", part):
            lead = len(part) - len(part.lstrip())
            text_end = len(part.rstrip().rstrip(";"))
            claims.append(Claim(start + lead, start + text_end, part[lead:text_end]))
        start = end
    return claims
