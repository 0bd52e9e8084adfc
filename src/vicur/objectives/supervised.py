"""CoT-SFT: cross-entropy on responses from the data or the teacher.

Differences from common fine-tuning code:

1. No loss on the prompt: only response tokens, including the end of turn, have a loss.
2. No label smoothing and no length weights beyond `aggregation`.
3. No packing of different problems into one sequence: it would change the recovery module's pooling.
"""

from __future__ import annotations

from torch import Tensor

from vicur.objectives.objective import Needs, ScoredTokens, Weighed
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.term import Block, Term
from vicur.scoring.terms import cross_entropy
from vicur.settings.section import Positive, section


@section
class SupervisedFineTuning:
    """The mean of -log p(y_t) over responses that the student did not write."""

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    aggregation: Aggregation = "token"
    """Reduction: "token", the mean over the tokens of the global batch, or "sequence", the mean over
    responses of their token means."""

    def needs(self, step: int) -> Needs:
        """Responses of the teacher or of the data; the student's own would teach it nothing."""
        return Needs(sources=frozenset({"teacher", "dataset"}))

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh the mean cross-entropy."""
        mean = mean_weights(scored.response_index, self.aggregation)
        return Weighed([Term("cross_entropy", _cross_entropy, mean)])


def _cross_entropy(block: Block) -> Tensor:
    return cross_entropy(block.log_prob_C)
