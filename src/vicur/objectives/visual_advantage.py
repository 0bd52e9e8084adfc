"""VA-OPD: distillation weighted by how much the teacher needs the fine detail (arXiv 2605.21924)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.objectives.divergence import student_reverse_kl
from vicur.objectives.objective import (
    TEACHER,
    TEACHER_DEGRADED,
    TEACHER_PLAIN,
    Needs,
    ScoredTokens,
    check_weight,
    look_of,
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


@dataclass(frozen=True)
class VisualAdvantageOPD:
    """Reverse KL with each response weighted by its visual advantage (VA) among its siblings, and with
    high-VA and low-VA tokens averaged separately (VA-OPD eq. 6).

    VA is measured on the student's own prompt, also where the teacher that is distilled is hinted: a
    cue replaces the image, and would hide which tokens need it.
    """

    weight: float = 1.0
    """Coefficient of this objective in the sum of several."""
    degraded_ratio: float = 0.1
    """Ratio of side lengths by which the degraded image is downsampled before it is upsampled again."""
    rollout_weights: bool = True
    """Whether to weight the responses to a prompt by their mean VA; false for equal weights. Set it to false
    with one response per prompt."""
    rollout_temperature: float = 1.0
    """Temperature of the softmax over the responses to a prompt; a high one makes their weights equal."""
    epsilon: float = 1e-6
    """Added to the standard deviation of the responses' mean VA."""
    grouped: bool = True
    """Whether to average high-VA and low-VA tokens separately; false for the mean over all tokens."""
    top_fraction: float = 0.2
    """Share of a response's tokens, rounded up and at least one, that form the high-VA group."""
    visual_share: float = 0.5
    """Weight of the high-VA group (lambda)."""
    drop: Literal["none", "top", "lowest", "random"] = "none"
    """Mask ablation: drop the KL of the tokens with the highest or lowest VA, or of random tokens. The paper
    masks Standard OPD, so set rollout_weights and grouped to false."""
    drop_fraction: float = 0.1
    """Share of a response's tokens, rounded up, that `drop` drops."""

    def __post_init__(self) -> None:
        check_weight("visual_advantage", self.weight)
        for name in ("top_fraction", "visual_share", "drop_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"visual_advantage.{name} is a share, 0 to 1, not {getattr(self, name)}.")
        if self.rollout_temperature <= 0:
            raise ValueError(
                f"visual_advantage.rollout_temperature must be above 0, not {self.rollout_temperature}."
            )

    def needs(self, step: int) -> Needs:
        """The teacher's distribution, and its log-probs with and without the fine detail."""
        looks = {
            name: look_of(name, degraded=self.degraded_ratio) for name in (TEACHER_PLAIN, TEACHER_DEGRADED)
        }
        return Needs(
            log_probs=looks,
            distributions={TEACHER: look_of(TEACHER)},
            draws=self.drop == "random",
            siblings=2 if self.rollout_weights else 1,
        )

    def terms(self, scored: ScoredTokens) -> list[Term]:
        """KL(p || q) under VA's weights."""
        return [Term("reverse_kl", student_reverse_kl, self.weights(scored), reads=(TEACHER,))]

    def tokens(self, scored: ScoredTokens) -> Mapping[str, Float[Tensor, " N"]]:
        """The visual advantage."""
        return {"visual_advantage": self.advantage(scored)}

    def metrics(self, scored: ScoredTokens) -> Mapping[str, float]:
        """The range of the responses' weights, as multiples of an equal share."""
        share = self._responses(scored) * torch.bincount(scored.prompt_index)[scored.prompt_index]
        return {"rollout_weight_min": float(share.min()), "rollout_weight_max": float(share.max())}

    def advantage(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """a_t (VA-OPD eq. 2)."""
        return visual_advantage(scored.log_probs[TEACHER_PLAIN], scored.log_probs[TEACHER_DEGRADED])

    def weights(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """(1 / prompts) * w_k * the token's part in its response's average (VA-OPD eq. 5 and 6)."""
        prompts = int(scored.prompt_index.max()) + 1
        within = self._within(scored)
        weights = self._responses(scored)[scored.response_index] * within / prompts
        return torch.where(self._dropped(scored), 0.0, weights)

    def _responses(self, scored: ScoredTokens) -> Float[Tensor, " R"]:
        """w_k of each response; they sum to 1 over siblings (VA-OPD eq. 3 and 4)."""
        if not self.rollout_weights:
            return 1.0 / torch.bincount(scored.prompt_index)[scored.prompt_index].double()
        means = group_means(self.advantage(scored).double(), scored.response_index)
        return rollout_weights(means, scored.prompt_index, self.rollout_temperature, self.epsilon)

    def _within(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """Each token's part in its response's average; they sum to 1 over the response."""
        index = scored.response_index
        if not self.grouped:
            return 1.0 / torch.bincount(index)[index].double()
        high = in_top_fraction(self.advantage(scored), index, self.top_fraction, at_least=1).double()
        num_high, num_low = group_sums(high, index), group_sums(1 - high, index)
        # Without a low-VA token the others take all the mass.
        share = torch.where(num_low > 0, high.new_tensor(self.visual_share), 1.0)
        of_high, of_low = share / num_high, (1 - share) / num_low.clamp(min=1)
        return torch.where(high > 0, of_high[index], of_low[index])

    def _dropped(self, scored: ScoredTokens) -> Tensor:
        index = scored.response_index
        if self.drop == "none":
            return torch.zeros_like(index, dtype=torch.bool)
        if self.drop == "random":
            assert scored.draws is not None
            return in_top_fraction(scored.draws, index, self.drop_fraction)
        return in_top_fraction(
            self.advantage(scored), index, self.drop_fraction, descending=self.drop == "top"
        )


def rollout_weights(
    means: Float[Tensor, " R"],
    prompt_index: Int[Tensor, " R"],
    temperature: float = 1.0,
    epsilon: float = 1e-6,
) -> Float[Tensor, " R"]:
    """softmax over siblings of their standardised mean VA / temperature (VA-OPD eq. 3 and 4).

    The standard deviation is the population's: only that gives the paper's figure. Equal siblings
    share equally, and a single one has weight 1.
    """
    scores = standardised(means, prompt_index, ddof=0, epsilon=epsilon)
    return group_softmax(scores / temperature, prompt_index)
