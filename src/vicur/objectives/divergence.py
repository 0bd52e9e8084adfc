"""Full-vocabulary distillation: Standard OPD, forward KL, generalized JSD, off-policy KD.

Differences from the textbook methods:

1. No gradient through the sampling of responses (the REINFORCE part of the sequence-level KL): as in
   VA-OPD and VGS, responses are data, and the loss is a mean of per-token divergences.
2. No mixture of on-policy and off-policy responses within a batch (GKD's lambda): `rollout.source` applies to
   the whole run.
3. No distillation temperature: student and teacher are compared at temperature 1, whatever the sampling
   temperature was.
4. No top-k truncation of the vocabulary: a truncated sum is not a KL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Literal

from torch import Tensor

from vicur.objectives.gates import Gate
from vicur.objectives.objective import TEACHER, Look, Needs, ScoredTokens, Summary, Weighed
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import forward_kl, generalized_jsd, reverse_kl
from vicur.settings.section import Positive, Share, section

DivergenceKind = Literal["reverse_kl", "forward_kl", "jsd"]
REVERSE_KL: DivergenceKind = "reverse_kl"
REVERSE_KL_SUMMARY: dict[str, Summary] = {REVERSE_KL: "parts"}
"""Summary of the reverse KL: the papers plot it over halves and quarters of responses."""


@section
class DivergenceOPD:
    """The mean divergence between the student's and the teacher's next-token distributions.

    With the reverse KL and the student's own responses it is the Standard OPD of VA-OPD (eq. 1) and
    VGS (eq. 4). With the forward KL and rollout.source: teacher, it is off-policy KD (VGS eq. 1).
    """

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    kind: DivergenceKind = "reverse_kl"
    """Divergence of student p and teacher q: reverse_kl is KL(p || q), forward_kl is KL(q || p), jsd the
    generalized Jensen-Shannon divergence."""
    beta: Share = 0.5
    """Interpolation of kind=jsd: 0 is the forward KL, 1 the reverse KL."""
    gate: Gate = field(default_factory=Gate)
    """Factors on the weights of responses and tokens."""
    aggregation: Aggregation = "sequence"
    """Reduction: "sequence", the mean over responses of their token means (both papers), or "token", the
    mean over all tokens."""

    def needs(self, step: int) -> Needs:
        """The teacher's distributions, and what the gates compare."""
        return Needs(
            log_probs=self.gate.needs(),
            distributions={TEACHER: Look("teacher")},
            group_size=self.gate.group_size,
            only_imitates=True,
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh the mean divergence; also observe the reverse KL if another divergence is trained."""
        weights = mean_weights(scored.response_index, self.aggregation)
        terms = [Term(self.kind, divergence_term(self.kind, self.beta), weights, reads=(TEACHER,))]
        if self.kind != REVERSE_KL:
            terms.append(Term(REVERSE_KL, student_reverse_kl, reads=(TEACHER,)))
        return self.gate.apply(Weighed(terms, summaries=REVERSE_KL_SUMMARY), scored)


def divergence_term(kind: DivergenceKind, beta: float) -> Callable[[Block], Tensor]:
    """A term function: the divergence between student and teacher."""
    functions: dict[DivergenceKind, Callable[..., Tensor]] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "jsd": partial(generalized_jsd, beta=beta),
    }
    return lambda block: functions[kind](block.log_p_CV, block.distribution(TEACHER))


def student_reverse_kl(block: Block) -> Tensor:
    """KL(p || q) of the student p and the teacher q under its own view."""
    return reverse_kl(block.log_p_CV, block.distribution(TEACHER))
