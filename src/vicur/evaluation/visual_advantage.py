"""Measures the visual advantage of responses by running a model on them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Degraded, Plain
from vicur.scoring.scorer import Scorer
from vicur.scoring.terms import visual_advantage


def measure_visual_advantage(
    scorer: Scorer, samples: Sequence[Sample], responses: Sequence[Sequence[Tensor]], ratio: float = 0.1
) -> Float[Tensor, " N"]:
    """a_t of every response token under any model (VA-OPD eq. 2, figures 1 and 6).

    With the teacher as scorer, this measures whether a student writes what can only be known from the
    image; with the student itself, whether it uses the image.

    Args:
        scorer: the model.
        samples: the problems.
        responses: the token ids of the responses to each.
        ratio: ratio of side lengths of the degraded image.
    """
    plain, degraded = (scorer.log_probs(samples, responses, view) for view in (Plain(), Degraded(ratio)))
    return visual_advantage(plain, degraded)
