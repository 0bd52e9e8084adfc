"""The text of each token of a response, so that the texts join to that of the whole response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""Character that a tokenizer decodes the bytes of an unfinished character to."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to a response.

    Byte-level tokens may hold a part of a character: decoded one by one they are replacement characters. Here
    the token that completes a character has its text, and the tokens before it have none.

    Args:
        tokenizer: tokenizer of the model.
        ids: the tokens.

    Returns:
        a text for each token, special tokens included; joined they are the decoded response.
    """
    texts: list[str] = []
    # Decoding starts a little before the new text, because a tokenizer may treat the first token specially;
    # it never starts inside a character.
    start = read = 0
    for end in range(1, len(ids) + 1):
        known, extended = _decoded(tokenizer, ids[start:read]), _decoded(tokenizer, ids[start:end])
        is_whole = not extended.endswith(REPLACEMENT) or end == len(ids)
        texts.append(extended[len(known) :] if is_whole else "")
        if is_whole:
            start, read = read, end
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
