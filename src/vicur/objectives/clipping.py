"""PPO's clip: settings shared by the objectives that use it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from vicur.scoring.terms import clipped_policy, was_clipped
from vicur.settings.section import LARGEST, NonNegative, Positive, Share, section


@section
class Clipping:
    """PPO's clip of the probability ratio to the old policy."""

    low: Share = 0.2
    """Lower clip range: the probability ratio to the old policy is clipped at 1 - low."""
    high: NonNegative = 0.2
    """Upper clip range: the probability ratio to the old policy is clipped at 1 + high."""
    dual: Annotated[float, Field(gt=1, le=LARGEST)] | None = None
    """Dual clip: upper bound on the loss of a token with negative advantage, as a multiple of |A|; null for
    no bound."""
    max_log_ratio: Positive = 20.0
    """Bound on the absolute log-ratio to the old policy, to prevent overflow."""

    def surrogate(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
        """The clipped surrogate loss of each token."""
        return clipped_policy(
            log_prob,
            old_log_prob,
            advantage,
            clip_low=self.low,
            clip_high=self.high,
            dual_clip=self.dual,
            max_log_ratio=self.max_log_ratio,
        )

    def is_clipped(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> Tensor:
        """1 where the clipped branch is taken."""
        return was_clipped(log_prob, old_log_prob, advantage, clip_low=self.low, clip_high=self.high)
