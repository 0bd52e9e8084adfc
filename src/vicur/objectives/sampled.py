"""Sampled-token on-policy distillation: ViCuR's objective (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vicur.data.views import Plain, View
from vicur.objectives.objective import ScoredTokens
from vicur.objectives.reduction import Aggregation, mean_weights
from vicur.scoring.terms import clipped_policy, log_prob_advantage, was_clipped


@dataclass(frozen=True)
class SampledTokenOPD:
    """PPO-clipped policy gradient on A_t = clamp(log q(y_t) - log p(y_t)) (ViCuR eq. 6 and 7).

    No task reward, no KL and no entropy term.
    """

    advantage_limit: float = 10.0
    """A_t is clamped to plus and minus this, in nats."""
    advantage_at: Literal["current", "start"] = "current"
    """The student's log-prob in A_t: of the current policy, as the authors' code does, or of the
    start of the rollout batch. With one update per rollout batch they are the same."""
    clip_low: float = 0.2
    """The probability ratio may fall this far below 1."""
    clip_high: float = 0.2
    """The probability ratio may rise this far above 1."""
    dual_clip: float = 3.0
    """Bound on the loss where the advantage is negative, in multiples of |A_t|."""
    max_log_ratio: float = 20.0
    """The log-ratio to the old policy is clamped to plus and minus this."""
    aggregation: Aggregation = "token"
    """Mean over the tokens of the global batch (the authors' code), or over responses of their
    token means (the paper's formula)."""

    @property
    def student_view(self) -> View:
        """The problem without any privilege."""
        return Plain()

    def weigh(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """1/N over the global batch."""
        return mean_weights(scored.response_index, self.aggregation)

    def terms(self, log_probs: Float[Tensor, " N"], scored: ScoredTokens) -> Float[Tensor, " N"]:
        """The clipped surrogate of each token, to be minimised."""
        return clipped_policy(
            log_probs,
            scored.old_log_probs,
            self._advantage(log_probs, scored),
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            max_log_ratio=self.max_log_ratio,
        )

    def metrics(
        self, log_probs: Float[Tensor, " N"], scored: ScoredTokens
    ) -> Mapping[str, Float[Tensor, " N"]]:
        """Advantage, k1 estimate of KL(p || q), and how often the clip bites."""
        log_probs = log_probs.detach()
        advantage = self._advantage(log_probs, scored)
        clipped = was_clipped(
            log_probs,
            scored.old_log_probs,
            advantage,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        return {
            "advantage": advantage,
            "reverse_kl_k1": log_probs - scored.teacher_log_probs,
            "clip_fraction": clipped,
        }

    def _advantage(self, log_probs: Tensor, scored: ScoredTokens) -> Tensor:
        student = log_probs if self.advantage_at == "current" else scored.old_log_probs
        return log_prob_advantage(scored.teacher_log_probs, student, self.advantage_limit)
