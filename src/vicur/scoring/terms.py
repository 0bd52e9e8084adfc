"""The pure maths of the objectives: one number for each response token.

No model, no configuration, no collectives. Everything is at least float32, in nats, and flat over
response tokens (suffix N).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PerToken = Float[Tensor, " N"]


def log_prob_advantage(
    teacher_log_prob: PerToken, student_log_prob: PerToken, limit: float = 10.0
) -> PerToken:
    """A_t = sg[clamp(log q(y_t) - log p(y_t), -limit, limit)] (ViCuR eq. 6). Detached."""
    return (teacher_log_prob - student_log_prob).detach().clamp(-limit, limit)


def clipped_policy(
    log_prob: PerToken,
    old_log_prob: PerToken,
    advantage: PerToken,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    max_log_ratio: float = 20.0,
) -> PerToken:
    """PPO's clipped surrogate with dual clipping, to be minimised (ViCuR eq. 7).

    With r = exp(clamp(log p - log p_old)):

        A >= 0:  -min(r A, clip(r, 1 - low, 1 + high) A)
        A <  0:   min(max(-r A, -clip(r, ...) A), -dual_clip A)

    Args:
        log_prob: of the sampled token under the current policy; the gradient flows here.
        old_log_prob: under the policy at the start of the rollout batch, detached.
        advantage: detached.
        clip_low, clip_high: how far the ratio may fall below and rise above 1.
        dual_clip: bound on the loss, in multiples of |A|, where the advantage is negative.
        max_log_ratio: the log-ratio is clamped to plus and minus this.
    """
    log_ratio = (log_prob - old_log_prob).clamp(-max_log_ratio, max_log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-ratio * advantage, -clipped * advantage)
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


def was_clipped(
    log_prob: PerToken,
    old_log_prob: PerToken,
    advantage: PerToken,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PerToken:
    """1 where the clipped branch of `clipped_policy` is the one taken, for the clip fraction."""
    ratio = (log_prob - old_log_prob).exp()
    return torch.where(advantage >= 0, ratio > 1 + clip_high, ratio < 1 - clip_low).float()
