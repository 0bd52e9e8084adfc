"""Salts of vLLM's prefix cache.

vLLM keys a cached block by the tokens up to its end and the images inside it. With cue recovery the first
block also depends on every image of the prompt, because the first token gathers from them. A salt that
depends on all of them keeps prompts apart that differ in an image, and still lets the responses to one prompt
share its prefill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Medium(NamedTuple):
    """An image or a group of frames in a prompt.

    Attributes:
        offset: position of its first visual token.
        length: number of positions up to its last visual token.
        digest: digest of its pixels.
    """

    offset: int
    length: int
    digest: str


def prompt_digest(ids: Sequence[int], media: Iterable[Medium]) -> str:
    """Digest of everything that the first token's state depends on; "" without visual tokens.

    Args:
        ids: the prompt's tokens.
        media: its images and frames.
    """
    media = sorted(media)
    if not media:
        return ""
    last = media[-1]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(list(ids[: last.offset + last.length])).encode())
    digest.update(repr([tuple(medium) for medium in media]).encode())
    return digest.hexdigest()
