"""Drift of responses: do they get longer, repeat themselves, or stop stating an answer?"""

from __future__ import annotations

from collections.abc import Sequence

LENGTH = 4
"""Number of tokens of an n-gram."""


def repetition(ids: Sequence[int]) -> float:
    """Share of a response's n-grams that it has written before: 0 for none, near 1 for a loop.

    1 - distinct / all, over n-grams of `LENGTH` tokens; 0 for a response without any.
    """
    grams = list(zip(*(ids[start:] for start in range(LENGTH)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
