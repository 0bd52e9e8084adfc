"""A per-token number over whole responses and their parts (ViCuR figure 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PARTS = {"whole": 1, "half": 2, "quarter": 4}


def means_by_part(
    values: Float[Tensor, " N"], response_index: Int[Tensor, " N"], name: str
) -> dict[str, float]:
    """Mean over tokens of each part of the responses, e.g. of the teacher-student log-prob gap.

    A response of T tokens is cut at ceil(iT / parts); parts that no response reaches are left out.

    Args:
        values: one for each response token.
        response_index: index of the response that each belongs to.
        name: name of the values.

    Returns:
        "<name>_whole", "<name>_half_1", "<name>_half_2", "<name>_quarter_1" ... "<name>_quarter_4".
    """
    lengths = torch.bincount(response_index)
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(len(values), device=values.device) - starts[response_index]
    means = {}
    for part_name, parts in PARTS.items():
        part = position * parts // lengths[response_index]
        for i in range(parts):
            part_values = values[part == i]
            if len(part_values):
                key = f"{name}_{part_name}" + (f"_{i + 1}" if parts > 1 else "")
                means[key] = float(part_values.mean())
    return means
