"""Segments of responses: which tokens belong to a part that a pattern matches, e.g. a description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

import torch
from jaxtyping import Bool
from torch import Tensor

from vicur.rollouts.pieces import Decoder, pieces_of
from vicur.rollouts.rollout import Rollouts

REST = "rest"
"""Name of the segment of all tokens that no pattern matches: the whole of a response without any match."""


def segment_masks(
    rollouts: Rollouts, patterns: Mapping[str, str], decoder: Decoder
) -> dict[str, Bool[Tensor, " N"]]:
    """Which tokens of all responses, in the flat order, are in each segment, and in none (`REST`).

    Args:
        rollouts: the responses.
        patterns: regular expressions by the segment's name; a dot matches line breaks too.
        decoder: the tokenizer.
    """
    compiled = {name: re.compile(pattern, re.DOTALL) for name, pattern in patterns.items()}
    ids = [response.ids.tolist() for response in rollouts.flat_responses]
    parts = [_segments_of(pieces_of(each, decoder), compiled) for each in ids]
    return {name: torch.cat([part[name] for part in parts]) for name in (*patterns, REST)}


def _segments_of(pieces: list[str], patterns: Mapping[str, re.Pattern[str]]) -> dict[str, Bool[Tensor, " T"]]:
    """The segments of one response. A token belongs to a segment if a character of it does; one without a
    character of its own, which a later token completes, goes with that one."""
    text = "".join(pieces)
    ends = torch.tensor(list(accumulate(map(len, pieces))), dtype=torch.long)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    # A token without characters starts and ends where the next one starts.
    last = torch.maximum(ends, starts + 1)
    masks = {}
    for name, pattern in patterns.items():
        mask = torch.zeros(len(pieces), dtype=torch.bool)
        for match in pattern.finditer(text):
            mask |= (starts < match.end()) & (last > match.start())
        masks[name] = mask
    inside = torch.stack(list(masks.values())).any(0)
    return {**masks, REST: ~inside}
