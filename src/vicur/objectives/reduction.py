"""Weights that turn a sum over tokens into the mean a paper writes."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence"]


def mean_weights(response_index: Int[Tensor, " N"], aggregation: Aggregation) -> Float[Tensor, " N"]:
    """Weights that sum to 1: of the mean over tokens, or over responses of their token means.

    Args:
        response_index: to which response each token belongs, 0 ... R - 1.
        aggregation: "token": 1 / N each. "sequence": 1 / (R * length of the response).
    """
    count = len(response_index)
    if aggregation == "token":
        return torch.full((count,), 1.0 / max(1, count), device=response_index.device)
    lengths = torch.bincount(response_index).float()
    responses = (lengths > 0).sum()
    return 1.0 / (responses * lengths[response_index])
