"""Weights that turn a sum over tokens into a paper's mean, and statistics within groups.

Shape suffixes: N values (response tokens, or responses), G groups (responses, or prompts).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence"]

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-6
"""A value counts as above a quantile only by more than this (the absolute one in the values' unit). KL
divergences of float32 models differ by less when only padding or batch size change."""


def mean_weights(response_index: Int[Tensor, " N"], aggregation: Aggregation) -> Float[Tensor, " N"]:
    """float64 weights that sum to 1, for the mean over tokens or the mean over responses of their token
    means.

    Args:
        response_index: index of the response that each token belongs to, 0 ... R - 1.
        aggregation: "token": 1 / N each. "sequence": 1 / (R * length of the response).
    """
    count = len(response_index)
    if aggregation == "token":
        return torch.full((count,), 1.0 / max(1, count), dtype=torch.float64, device=response_index.device)
    lengths = torch.bincount(response_index).double()
    responses = (lengths > 0).sum()
    return 1.0 / (responses * lengths[response_index])


def group_sums(values: Float[Tensor, " N"], index: Int[Tensor, " N"]) -> Float[Tensor, " G"]:
    """The sum of each group."""
    groups = int(index.max()) + 1 if len(index) else 0
    return values.new_zeros(groups).index_add_(0, index, values)


def group_means(values: Float[Tensor, " N"], index: Int[Tensor, " N"]) -> Float[Tensor, " G"]:
    """The mean of each group."""
    return group_sums(values, index) / torch.bincount(index)


def standardised(
    values: Float[Tensor, " N"], index: Int[Tensor, " N"], *, ddof: int, epsilon: float
) -> Float[Tensor, " N"]:
    """(value - mean) / (standard deviation + epsilon) within each group; 0 in a group of equal values.

    Args:
        values: e.g. the rewards of responses.
        index: index of the group that each value belongs to.
        ddof: 0 for the population standard deviation, 1 for the sample standard deviation.
        epsilon: keeps the results for nearly equal values from blowing up.
    """
    deviation = values - group_means(values, index)[index]
    counts = torch.bincount(index)
    variance = group_sums(deviation.square(), index) / (counts - ddof).clamp(min=1)
    lowest = values.new_full((len(counts),), torch.inf).scatter_reduce_(0, index, values, "amin")
    highest = values.new_full((len(counts),), -torch.inf).scatter_reduce_(0, index, values, "amax")
    # Compared directly: through rounding, equal values have a deviation, which may exceed epsilon.
    varies = (highest > lowest)[index]
    return torch.where(varies, deviation / (variance.sqrt()[index] + epsilon), 0.0)


def group_softmax(values: Float[Tensor, " N"], index: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Softmax within each group."""
    highest = values.new_full((int(index.max()) + 1,), -torch.inf)
    highest = highest.scatter_reduce_(0, index, values, "amax")
    unnormalised = (values - highest[index]).exp()
    return unnormalised / group_sums(unnormalised, index)[index]


def group_ranks(
    values: Float[Tensor, " N"], index: Int[Tensor, " N"], *, descending: bool
) -> Int[Tensor, " N"]:
    """The rank of each value within its group, from 0; ties keep their order."""
    by_value = values.argsort(descending=descending, stable=True)
    order = by_value[index[by_value].argsort(stable=True)]
    counts = torch.bincount(index)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(index)
    ranks[order] = torch.arange(len(index), device=index.device) - starts[index[order]]
    return ranks


def in_top_fraction(
    values: Float[Tensor, " N"],
    index: Int[Tensor, " N"],
    fraction: float,
    *,
    descending: bool = True,
    at_least: int = 0,
) -> Tensor:
    """Whether each value is among the first ceil(fraction * size) of its group by rank.

    Args:
        values: values to rank.
        index: index of the group that each value belongs to.
        fraction: share of the group's size, 0 to 1.
        descending: whether the highest values come first, or the lowest.
        at_least: minimum number of values selected in each group.
    """
    counts = torch.bincount(index)
    # In float64 and slightly lower, so that 0.2 * 5 is 1 and not a rounding error above 1.
    quota = (counts.double() * fraction - 1e-9).ceil().clamp(min=at_least)
    return group_ranks(values, index, descending=descending) < quota[index]


def above_quantile(values: Float[Tensor, " N"], q: float) -> Bool[Tensor, " N"]:
    """Whether each value is above the q-quantile of all of them; values that tie with it are not.

    With linear interpolation, "above the quantile" means above the sorted value t at position
    floor(q * (N - 1)). Here a value must exceed t by more than

        ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * |t|

    so that values that are equal up to rounding are on the same side, not above. Such ties are common: the
    first tokens of the responses to a problem have the same value, which may be t. If no value is that close
    above t, the result is that of an exact comparison.
    """
    below, _ = _place(len(values), q)
    threshold = values.double().sort().values[below]
    return values.double() > threshold + ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * threshold.abs()


def quantile(values: Float[Tensor, " N"], q: float) -> Float[Tensor, ""]:
    """The q-quantile with linear interpolation, of any number of values (torch.quantile takes 16 million)."""
    ordered = values.sort().values
    below, rest = _place(len(values), q)
    return ordered[below] if rest == 0 else ordered[below].lerp(ordered[below + 1], rest)


def _place(count: int, q: float) -> tuple[int, float]:
    """The position of the q-quantile among sorted values: the index before it, and the fraction towards the
    next."""
    position = q * (count - 1)
    nearest = round(position)
    if abs(position - nearest) < 1e-6:  # in floats 0.7 * 90 is 62.99...
        return nearest, 0.0
    return int(position), position - int(position)
