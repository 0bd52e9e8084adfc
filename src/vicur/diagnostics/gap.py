"""The teacher-student log-prob gap, over whole responses and their parts (ViCuR figure 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PARTS = {"whole": 1, "half": 2, "quarter": 4}


def log_prob_gap(
    teacher_log_probs: Float[Tensor, " N"],
    student_log_probs: Float[Tensor, " N"],
    response_index: Int[Tensor, " N"],
) -> dict[str, float]:
    """Mean of log q(y_t) - log p(y_t) over tokens, in nats, for each part of the responses.

    A response of T tokens is cut at ceil(iT / parts); parts that no response reaches are left out.

    Returns:
        "gap_whole", "gap_half_1", "gap_half_2", "gap_quarter_1" ... "gap_quarter_4".
    """
    gap = teacher_log_probs - student_log_probs
    lengths = torch.bincount(response_index)
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(len(gap), device=gap.device) - starts[response_index]
    found = {}
    for name, parts in PARTS.items():
        part = position * parts // lengths[response_index]
        for i in range(parts):
            chosen = gap[part == i]
            if len(chosen):
                found[f"gap_{name}" + (f"_{i + 1}" if parts > 1 else "")] = float(chosen.mean())
    return found
