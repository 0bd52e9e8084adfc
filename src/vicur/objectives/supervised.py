"""CoT-SFT: cross-entropy on given or teacher-written responses.

Left out of common fine-tuning code:

1. No loss on the prompt: only response tokens, end of turn included, are learnt from.
2. No label smoothing and no length weights beyond `aggregation`.
3. No packing of different problems into one sequence: it would change the recovery module's pooling.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vicur.objectives.objective import Needs, ScoredTokens, Weighed, check_weight
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import cross_entropy


@dataclass(frozen=True)
class SupervisedFineTuning:
    """The mean of -log p(y_t) over responses that the student did not write."""

    weight: float = 1.0
    """Coefficient of this objective in the sum of several."""
    aggregation: Aggregation = "token"
    """Reduction: "token", the mean over the tokens of the global batch, or "sequence", the mean over
    responses of their token means."""

    def __post_init__(self) -> None:
        check_weight("supervised", self.weight)

    def needs(self, step: int) -> Needs:
        """Responses that the student did not write; its own would teach it nothing."""
        return Needs(sources=frozenset({"teacher", "dataset"}))

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """The mean cross-entropy."""
        mean = mean_weights(scored.response_index, self.aggregation)
        return Weighed([Term("cross_entropy", _cross_entropy, mean)])


def _cross_entropy(block: Block) -> Tensor:
    return cross_entropy(block.log_prob_C)
