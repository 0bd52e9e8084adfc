"""The text of each token of a response, from its ids and the run's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no complete character yet."""


@runtime_checkable
class Decoder(Protocol):
    """Decodes token ids, as `tokenizers.Tokenizer` does."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens."""
        ...


def read_tokenizer(run: Path) -> Decoder | None:
    """The tokenizer that a run saved in its folder; None if there is none."""
    file = run / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer: Decoder = Tokenizer.from_file(str(file))
    return tokenizer


def pieces_of(ids: Sequence[int], decoder: Decoder) -> list[str]:
    """The text that each token adds; together they are the text of the response, special tokens included.

    A character whose bytes are spread over several tokens belongs to the last of them. Only a few tokens are
    decoded at a time, so the time is linear in the length.

    Args:
        ids: the tokens of a response.
        decoder: the tokenizer.
    """
    pieces: list[str] = []
    start = end = 0  # decoded so far: up to `end`; from `start` on decoded again, for its spaces
    for index in range(len(ids)):
        before = decoder.decode(ids[start:end], skip_special_tokens=False)
        text = decoder.decode(ids[start : index + 1], skip_special_tokens=False)
        if text.endswith(REPLACEMENT) and index + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, end = end, index + 1
    return pieces
