"""Dependence of tokens on the image: visual advantage and visual dependency scores."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.objectives.reduction import quantile

QUANTILES = (0.1, 0.4, 0.5, 0.7, 0.9)
POINTS = 200
"""Number of points of a curve of mass; half of them in the top 10 %, where most of the mass is."""


def top_mass(values: Float[Tensor, " N"], fraction: float = 0.1) -> float:
    """The share of the sum that the highest `fraction` of the values hold; 0 where all are 0.

    VA is heavy-tailed: the paper finds about 0.93 for the top 10 % (VA-OPD figure 2a).
    """
    values = values.double()
    total = float(values.sum())
    count = max(1, round(fraction * len(values)))
    return float(values.topk(count).values.sum()) / total if total > 0 else 0.0


def top_mass_within(
    values: Float[Tensor, " N"], response_index: Int[Tensor, " N"], fraction: float = 0.1
) -> float | None:
    """The mean over responses of `top_mass` of their own tokens; None if no response has any mass.

    Responses whose values are all 0 are left out: nothing of theirs can be shared.
    """
    lengths = torch.bincount(response_index).tolist()
    parts = [part for part in values.split(lengths) if len(part) and bool(part.any())]
    return sum(top_mass(part, fraction) for part in parts) / len(parts) if parts else None


def mass_curve(values: Float[Tensor, " N"]) -> dict[str, list[float]]:
    """The distribution of a heavy-tailed value over tokens (VA-OPD figure 2a).

    Args:
        values: one for each token, none negative; at least one.

    Returns:
        `percentile` of the tokens from the lowest (0) to the highest (100), `value` of the token at that
        percentile, and `share_above`: share of the sum, 0 to 1, that the tokens above it hold.
    """
    ordered = values.double().sort().values
    count, half = len(ordered), POINTS // 2
    percentiles = [90 * i / half for i in range(half)]
    percentiles += [90 + 10 * i / (POINTS - half - 1) for i in range(POINTS - half)]
    below = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    total = float(below[-1])
    starts = [count - round((100 - percentile) / 100 * count) for percentile in percentiles]
    return {
        "percentile": percentiles,
        "value": [float(ordered[min(start, count - 1)]) for start in starts],
        "share_above": [(total - float(below[start])) / total if total > 0 else 0.0 for start in starts],
    }


def equal_frequency_bins(values: Float[Tensor, " N"], bins: int) -> Int[Tensor, " N"]:
    """The bin of each value, 0 for the lowest: bins of equal size up to one value (VGS section 3.2).

    Ties are divided in their order.

    Raises:
        ValueError: there are fewer values than bins.
    """
    count = len(values)
    if count < bins:
        raise ValueError(
            f"{count} tokens cannot be divided into {bins} bins; use fewer bins or more problems."
        )
    result = torch.empty(count, dtype=torch.long, device=values.device)
    result[values.argsort(stable=True)] = torch.arange(count, device=values.device) * bins // count
    return result


def quantiles(values: Float[Tensor, " N"], name: str) -> dict[str, float]:
    """Quantiles in percent, e.g. "vds_q70" (VGS figure 3 and equation 16)."""
    return {f"{name}_q{round(100 * q)}": float(quantile(values, q)) for q in QUANTILES}
