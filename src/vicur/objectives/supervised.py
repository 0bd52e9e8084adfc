"""CoT-SFT: cross-entropy on given or teacher-written responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vicur.objectives.objective import Needs, ScoredTokens, check_weight
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
        """Nothing but responses of somebody else: the student's own would teach it nothing."""
        return Needs(sources=frozenset({"teacher", "dataset"}))

    def terms(self, scored: ScoredTokens) -> list[Term]:
        """The cross-entropy."""
        mean = mean_weights(scored.response_index, self.aggregation)
        return [Term("cross_entropy", _cross_entropy, mean)]

    def tokens(self, scored: ScoredTokens) -> Mapping[str, Float[Tensor, " N"]]:
        """Nothing beyond what the terms observe."""
        return {}

    def metrics(self, scored: ScoredTokens) -> Mapping[str, float]:
        """Nothing: all weights are alike."""
        return {}


def _cross_entropy(block: Block) -> Tensor:
    return cross_entropy(block.log_prob_C)
