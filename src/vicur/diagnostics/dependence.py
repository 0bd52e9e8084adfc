"""Dependence of tokens on the image: visual advantage and visual dependency scores."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vicur.objectives.reduction import quantile

QUANTILES = (0.1, 0.4, 0.5, 0.7, 0.9)


def top_mass(values: Float[Tensor, " N"], fraction: float = 0.1) -> float:
    """The share of the sum that the highest `fraction` of the values hold; 0 where all are 0.

    VA is heavy-tailed: the paper finds about 0.93 for the top 10 % (VA-OPD figure 2a).
    """
    total = float(values.sum())
    count = max(1, round(fraction * len(values)))
    return float(values.topk(count).values.sum()) / total if total > 0 else 0.0


def quantiles(values: Float[Tensor, " N"], name: str) -> dict[str, float]:
    """Quantiles in percent, e.g. "vds_q70" (VGS figure 3 and equation 16)."""
    return {f"{name}_q{round(100 * q)}": float(quantile(values, q)) for q in QUANTILES}
