"""PPO's clip, as settings of the objectives that use it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vicur.scoring.terms import clipped_policy, was_clipped


@dataclass(frozen=True)
class Clipping:
    """How far one update may move the probability of a token."""

    low: float = 0.2
    """Lower clip range: the probability ratio to the old policy is clipped at 1 - low."""
    high: float = 0.2
    """Upper clip range: the probability ratio to the old policy is clipped at 1 + high."""
    dual: float | None = None
    """Dual clip: upper bound on the loss of a token with negative advantage, in multiples of |A|; null for
    no bound."""
    max_log_ratio: float = 20.0
    """Bound on the absolute log-ratio to the old policy, against overflow."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or self.high < 0:
            raise ValueError(f"clip needs 0 <= low <= 1 and high >= 0, not {self.low} and {self.high}.")
        if self.max_log_ratio <= 0:
            raise ValueError(f"clip.max_log_ratio must be above 0, not {self.max_log_ratio}.")
        if self.dual is not None and self.dual <= 1:
            raise ValueError(f"clip.dual must be above 1 or null, not {self.dual}.")

    def surrogate(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
        """The clipped surrogate of each token, to be minimised."""
        return clipped_policy(
            log_prob,
            old_log_prob,
            advantage,
            clip_low=self.low,
            clip_high=self.high,
            dual_clip=self.dual,
            max_log_ratio=self.max_log_ratio,
        )

    def bites(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
        """1 where the clipped branch is taken."""
        return was_clipped(log_prob, old_log_prob, advantage, clip_low=self.low, clip_high=self.high)
