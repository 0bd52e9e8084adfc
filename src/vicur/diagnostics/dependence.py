"""How much tokens depend on the image: visual advantage and visual dependency scores."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Degraded, Plain
from vicur.objectives.reduction import quantile
from vicur.scoring.scorer import Scorer
from vicur.scoring.terms import visual_advantage

QUANTILES = (0.1, 0.4, 0.5, 0.7, 0.9)


def measure_visual_advantage(
    scorer: Scorer, samples: Sequence[Sample], responses: Sequence[Sequence[Tensor]], ratio: float = 0.1
) -> Float[Tensor, " N"]:
    """a_t of every response token in the eyes of any model (VA-OPD eq. 2, figures 1 and 6).

    The teacher as scorer asks whether a student writes what can only be known by looking; the student
    itself as scorer asks whether it looks.

    Args:
        scorer: the model.
        samples: the problems.
        responses: the token ids of the responses to each.
        ratio: how far the degraded image shrinks.
    """
    plain, degraded = (scorer.log_probs(samples, responses, view) for view in (Plain(), Degraded(ratio)))
    return visual_advantage(plain, degraded)


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
