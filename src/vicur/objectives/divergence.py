"""Full-vocabulary distillation: Standard OPD, forward KL, generalized JSD, off-policy KD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vicur.objectives.objective import TEACHER, Needs, ScoredTokens, check_weight, look_of
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import forward_kl, generalized_jsd, reverse_kl

DivergenceKind = Literal["reverse_kl", "forward_kl", "jsd"]


@dataclass(frozen=True)
class DivergenceOPD:
    """The mean divergence between the student's and the teacher's next-token distributions.

    With the reverse KL and the student's own responses it is the Standard OPD of VA-OPD (eq. 1) and
    VGS (eq. 4). With the forward KL and rollout.source: teacher, it is off-policy KD (VGS eq. 1).
    """

    weight: float = 1.0
    """Coefficient of this objective in the sum of several."""
    kind: DivergenceKind = "reverse_kl"
    """Divergence of student p and teacher q: reverse_kl is KL(p || q), forward_kl is KL(q || p), jsd the
    generalized Jensen-Shannon divergence."""
    beta: float = 0.5
    """Interpolation of kind=jsd: 0 is the forward KL, 1 the reverse KL."""
    aggregation: Aggregation = "sequence"
    """Reduction: "sequence", the mean over responses of their token means (both papers), or "token", the
    mean over all tokens."""

    def __post_init__(self) -> None:
        check_weight("divergence", self.weight)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"divergence.beta must be between 0 and 1, not {self.beta}.")

    def needs(self, step: int) -> Needs:
        """The teacher's distributions."""
        return Needs(distributions={TEACHER: look_of(TEACHER)})

    def terms(self, scored: ScoredTokens) -> list[Term]:
        """The divergence; observed: the reverse KL, where it is another."""
        weights = mean_weights(scored.response_index, self.aggregation)
        terms = [Term(self.kind, divergence_term(self.kind, self.beta), weights, reads=(TEACHER,))]
        if self.kind != "reverse_kl":
            terms.append(Term("reverse_kl", student_reverse_kl, reads=(TEACHER,)))
        return terms

    def tokens(self, scored: ScoredTokens) -> Mapping[str, Float[Tensor, " N"]]:
        """Nothing beyond what the terms observe."""
        return {}

    def metrics(self, scored: ScoredTokens) -> Mapping[str, float]:
        """Nothing: all weights are alike."""
        return {}


def divergence_term(kind: DivergenceKind, beta: float) -> Callable[[Block], Tensor]:
    """The divergence of the live student from the teacher."""
    functions: dict[DivergenceKind, Callable[..., Tensor]] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "jsd": partial(generalized_jsd, beta=beta),
    }
    return lambda block: functions[kind](block.log_p_CV, block.distribution(TEACHER))


def student_reverse_kl(block: Block) -> Tensor:
    """KL(p || q) of the student and the teacher under its own view."""
    return reverse_kl(block.log_p_CV, block.distribution(TEACHER))
