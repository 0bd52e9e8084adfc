"""VA-OPD: distillation weighted by how much the teacher needs the fine detail (arXiv 2605.21924).

    loss = mean over prompts of  sum_k w_k * (lambda * mean_V KL_t + (1 - lambda) * mean_L KL_t)    eq. 6

    a_t  = max(log q(y_t) - log q~(y_t), 0), q~ the teacher on the degraded image                   eq. 2
    w_k  = softmax over responses of their standardised mean a_t                                    eq. 3, 4
    V, L = a response's top 20 % of tokens by a_t, and the rest                                     eq. 5

Differences from the textbook methods:

1. No reward: responses to a problem are compared by visual advantage, not by whether their answers are right.
2. No policy gradient: the KL over the whole vocabulary is differentiated, and the weights are constants, so
   nothing pulls the student towards responses of higher visual advantage.
3. No second teacher pass under a hint: the advantage is measured on the student's own prompt, even if the
   teacher has a hint, because a cue replaces the image and would hide which tokens need it.
4. No KL to a reference and no entropy bonus, as in Standard OPD.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.views import Degraded, Plain
from vicur.objectives.divergence import REVERSE_KL, REVERSE_KL_SUMMARY, student_reverse_kl
from vicur.objectives.objective import (
    TEACHER,
    TEACHER_PLAIN,
    Look,
    Needs,
    ScoredTokens,
    Weighed,
)
from vicur.objectives.reduction import (
    group_means,
    group_softmax,
    group_sums,
    in_top_fraction,
    standardised,
)
from vicur.scoring.term import Term
from vicur.scoring.terms import visual_advantage
from vicur.settings.section import NonNegative, Positive, PositiveShare, Share, section

TEACHER_DEGRADED = "teacher_degraded"
"""Name of the teacher's look at degraded media: q-tilde."""
VISUAL_ADVANTAGE = "visual_advantage"


@section
class VisualAdvantageOPD:
    """Reverse KL with each response weighted by its visual advantage (VA) among the responses to its problem,
    and with high-VA and low-VA tokens averaged separately (VA-OPD eq. 6)."""

    weight: Positive = 1.0
    """Coefficient of this objective in the total loss."""
    degraded_ratio: PositiveShare = 0.1
    """Factor by which the sides of the image are downsampled, before it is upsampled again, to degrade it."""
    rollout_weights: bool = True
    """Whether to weight the responses to a problem by their mean VA; false for equal weights. It must be
    false with one response per problem."""
    rollout_temperature: Positive = 1.0
    """Temperature of the softmax over the responses to a problem; at high temperatures their weights become
    equal."""
    epsilon: NonNegative = 1e-6
    """Constant added to the standard deviation by which the responses' mean VA is divided."""
    grouped: bool = True
    """Whether to average the KL over high-VA and low-VA tokens separately; false for the mean over all
    tokens."""
    top_fraction: Share = 0.2
    """Fraction of a response's tokens in the high-VA group, rounded up to at least one token."""
    visual_share: Share = 0.5
    """Weight of the high-VA group (lambda in the paper); the low-VA group has 1 - lambda."""
    drop: Literal["none", "top", "lowest", "random"] = "none"
    """Mask ablation: drop the KL of the tokens with the highest or lowest VA, or of random tokens. The paper
    applies it to Standard OPD; for that, set rollout_weights and grouped to false."""
    drop_fraction: Share = 0.1
    """Fraction of a response's tokens that `drop` drops, rounded up."""

    def needs(self, step: int) -> Needs:
        """The teacher's distributions, and its log-probs with and without the fine detail."""
        return Needs(
            log_probs={
                TEACHER_PLAIN: Look("teacher", Plain()),
                TEACHER_DEGRADED: Look("teacher", Degraded(self.degraded_ratio)),
            },
            distributions={TEACHER: Look("teacher")},
            draws=self.drop == "random",
            group_size=2 if self.rollout_weights else 1,
            only_imitates=True,
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh KL(p || q) by VA; record VA, and the range of the responses' weights as multiples of an equal
        share.

        A token's weight is (1 / prompts) * w_k * its share in its response's average (VA-OPD eq. 5 and 6).
        """
        advantage_N = visual_advantage(scored.log_probs[TEACHER_PLAIN], scored.log_probs[TEACHER_DEGRADED])
        responses_R = self._response_weights(advantage_N, scored)
        within_N = self._token_weights(advantage_N, scored.response_index)
        prompts = int(scored.prompt_index.max()) + 1
        weights_N = responses_R[scored.response_index] * within_N / prompts
        weights_N = torch.where(self._dropped(advantage_N, scored), 0.0, weights_N)
        share_R = responses_R * torch.bincount(scored.prompt_index)[scored.prompt_index]
        return Weighed(
            terms=[Term(REVERSE_KL, student_reverse_kl, weights_N, reads=(TEACHER,))],
            tokens={VISUAL_ADVANTAGE: advantage_N},
            metrics={"rollout_weight_min": float(share_R.min()), "rollout_weight_max": float(share_R.max())},
            summaries={**REVERSE_KL_SUMMARY, VISUAL_ADVANTAGE: "top_mass"},
        )

    def _response_weights(
        self, advantage_N: Float[Tensor, " N"], scored: ScoredTokens
    ) -> Float[Tensor, " R"]:
        """w_k of each response; the weights sum to 1 over the responses to a problem (VA-OPD eq. 3 and 4)."""
        if not self.rollout_weights:
            return 1.0 / torch.bincount(scored.prompt_index)[scored.prompt_index].double()
        means = group_means(advantage_N.double(), scored.response_index)
        return rollout_weights(means, scored.prompt_index, self.rollout_temperature, self.epsilon)

    def _token_weights(
        self, advantage_N: Float[Tensor, " N"], index: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Each token's share in its response's average; the shares sum to 1 over the response."""
        if not self.grouped:
            return 1.0 / torch.bincount(index)[index].double()
        high = in_top_fraction(advantage_N, index, self.top_fraction, at_least=1).double()
        num_high, num_low = group_sums(high, index), group_sums(1 - high, index)
        # Without a low-VA token, the high-VA tokens get all the weight.
        share = torch.where(num_low > 0, high.new_tensor(self.visual_share), 1.0)
        of_high, of_low = share / num_high, (1 - share) / num_low.clamp(min=1)
        return torch.where(high > 0, of_high[index], of_low[index])

    def _dropped(self, advantage_N: Float[Tensor, " N"], scored: ScoredTokens) -> Tensor:
        """Whether the mask ablation drops each token: its weight becomes 0, others do not change."""
        index = scored.response_index
        if self.drop == "none":
            return torch.zeros_like(index, dtype=torch.bool)
        if self.drop == "random":
            assert scored.draws is not None
            return in_top_fraction(scored.draws, index, self.drop_fraction)
        return in_top_fraction(advantage_N, index, self.drop_fraction, descending=self.drop == "top")


def rollout_weights(
    means: Float[Tensor, " R"],
    prompt_index: Int[Tensor, " R"],
    temperature: float = 1.0,
    epsilon: float = 1e-6,
) -> Float[Tensor, " R"]:
    """softmax over responses of their standardised mean VA / temperature (VA-OPD eq. 3 and 4).

    The standard deviation is the population's, which alone reproduces the paper's figure. Equal responses
    have equal weights, and a single one has weight 1.
    """
    scores = standardised(means, prompt_index, ddof=0, epsilon=epsilon)
    return group_softmax(scores / temperature, prompt_index)
