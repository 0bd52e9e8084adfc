"""Claims of a cue, to be checked one by one against what is known to be drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vicur.data.sample import Sample

_END = re.compile(r"[.!?](?=\s|$)|[;\n]")

Verifier = Callable[[Sample, str], bool | None]
"""Whether a claim about a sample's image is true; None where that cannot be decided."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a cue, and where it is, in characters."""

    start: int
    end: int
    text: str


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
