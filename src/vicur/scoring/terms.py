"""The pure maths of the objectives: one number for each response token.

There is no model, no configuration and no collective here. Everything is at least float32 and in nats. A term
over whole next-token distributions takes log-probabilities; `p` is the student's, `q` the teacher's.

Shape suffixes: C tokens (of a block or a whole batch, which makes no difference), V vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

PerToken = Float[Tensor, " C"]
LogProbs = Float[Tensor, "C V"]

# --------------------------------------------------------------- divergences of whole distributions


def reverse_kl(log_p: LogProbs, log_q: LogProbs) -> PerToken:
    """KL(p || q) = sum_v p (log p - log q): Standard OPD (VA-OPD eq. 1, VGS eq. 2)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl(log_p: LogProbs, log_q: LogProbs) -> PerToken:
    """KL(q || p): off-policy distillation, and ViCuR's full-vocabulary counterpart (app. F.3)."""
    return reverse_kl(log_q, log_p)


def generalized_jsd(log_p: LogProbs, log_q: LogProbs, beta: float) -> PerToken:
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p (GKD, arXiv 2306.13649).

    Symmetric at 0.5. At 0 and 1 the formula itself is 0; the limits after division by beta and by 1 - beta
    are used instead: the forward KL at 0 and the reverse KL at 1. So the scale jumps there.

    Raises:
        ValueError: beta is not between 0 and 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta of the generalized JSD must be between 0 and 1, not {beta}.")
    if beta == 0:
        return forward_kl(log_p, log_q)
    if beta == 1:
        return reverse_kl(log_p, log_q)
    share = log_p.new_tensor(beta)
    log_m = torch.logaddexp(log_q + share.log(), log_p + torch.log1p(-share))
    return beta * reverse_kl(log_q, log_m) + (1 - beta) * reverse_kl(log_p, log_m)


def visual_target(log_p_blind: LogProbs, log_q: LogProbs, log_q_blind: LogProbs) -> LogProbs:
    """log q* = log p0 + log q - log q0 - log Z: the blind student's prediction, shifted by what the teacher
    sees (VGS eq. 9 and 10)."""
    return (log_p_blind + log_q - log_q_blind).log_softmax(-1)


def visual_target_kl(
    log_p: LogProbs,
    log_p_blind: LogProbs,
    log_q: LogProbs,
    log_q_blind: LogProbs,
    *,
    detach_prior: bool = True,
) -> PerToken:
    """KL(p || q*) (VGS eq. 11).

    Args:
        log_p: log-probs of the student.
        log_p_blind: log-probs of the blind student, the prior inside q*.
        log_q: log-probs of the teacher.
        log_q_blind: log-probs of the blind teacher.
        detach_prior: keep the gradient out of `log_p_blind`.
    """
    prior = log_p_blind.detach() if detach_prior else log_p_blind
    return reverse_kl(log_p, visual_target(prior, log_q, log_q_blind))


def entropy(log_p: LogProbs) -> PerToken:
    """-sum_v p log p."""
    return -(log_p.exp() * log_p).sum(-1)


# ------------------------------------------------------------------- terms of the sampled token alone


def cross_entropy(log_prob: PerToken) -> PerToken:
    """-log p(y_t): supervised fine-tuning, and PAPO's estimate of the entropy."""
    return -log_prob


def k1(log_prob: PerToken, reference_log_prob: PerToken) -> PerToken:
    """log p - log r: unbiased estimate of KL(p || r) on tokens sampled from p. For observation only: the
    expectation of its gradient is 0."""
    return log_prob - reference_log_prob


def k2(log_prob: PerToken, reference_log_prob: PerToken) -> PerToken:
    """(log p - log r)^2 / 2: its gradient is an unbiased estimate of the KL's gradient."""
    return 0.5 * (log_prob - reference_log_prob).square()


def k3(
    log_prob: PerToken,
    reference_log_prob: PerToken,
    max_log_ratio: float = math.inf,
    max_value: float = math.inf,
) -> PerToken:
    """e^d - d - 1 with d = log r - log p: unbiased and never negative (GRPO, PAPO). The expectation of its
    gradient is not the KL's gradient.

    Args:
        log_prob: log-prob of the sampled token; the gradient flows here.
        reference_log_prob: log-prob under the reference, detached.
        max_log_ratio: d is clamped to plus and minus this.
        max_value: the result is clamped to at most this.
    """
    d = (reference_log_prob - log_prob).clamp(-max_log_ratio, max_log_ratio)
    return (d.exp() - d - 1).clamp(max=max_value)


def log_prob_advantage(
    teacher_log_prob: PerToken, student_log_prob: PerToken, limit: float = 10.0
) -> PerToken:
    """A_t = sg[clamp(log q(y_t) - log p(y_t), -limit, limit)] (ViCuR eq. 6). Detached."""
    return (teacher_log_prob - student_log_prob).detach().clamp(-limit, limit)


def visual_advantage(log_prob: PerToken, degraded_log_prob: PerToken) -> PerToken:
    """a_t = max(log q(y_t | v) - log q(y_t | degraded v), 0) (VA-OPD eq. 2). Detached."""
    return (log_prob - degraded_log_prob).detach().clamp(min=0)


def clipped_policy(
    log_prob: PerToken,
    old_log_prob: PerToken,
    advantage: PerToken,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    max_log_ratio: float = 20.0,
) -> PerToken:
    """PPO's clipped surrogate with dual clipping, a loss (ViCuR eq. 7).

    With r = exp(clamp(log p - log p_old)):

        A >= 0:  -min(r A, clip(r, 1 - low, 1 + high) A)
        A <  0:   min(max(-r A, -clip(r, ...) A), -dual_clip A)

    Args:
        log_prob: log-prob of the sampled token under the current policy; the gradient flows here.
        old_log_prob: log-prob under the policy at the start of the rollout batch, detached.
        advantage: advantage of the token, detached.
        clip_low, clip_high: how far the ratio may fall below and rise above 1.
        dual_clip: bound on the loss of tokens with negative advantage, in multiples of |A|; None for no
            bound.
        max_log_ratio: the log-ratio is clamped to plus and minus this.
    """
    log_ratio = (log_prob - old_log_prob).clamp(-max_log_ratio, max_log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-ratio * advantage, -clipped * advantage)
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


def was_clipped(
    log_prob: PerToken,
    old_log_prob: PerToken,
    advantage: PerToken,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PerToken:
    """1 where `clipped_policy` takes the clipped branch, for the clip fraction."""
    ratio = (log_prob - old_log_prob).exp()
    above = (advantage > 0) & (ratio > 1 + clip_high)
    below = (advantage < 0) & (ratio < 1 - clip_low)
    return (above | below).float()


def mixture_information(log_q: Sequence[Float[Tensor, "C V"]]) -> Float[Tensor, " C"]:
    """mean_j KL(q^{z_j} || mean_i q^{z_i}) at every token: between 0 and log n.

    The information of a token about which of n equally likely texts the teacher was shown, I(y_t; z) of ViCuR
    eq. 15. Averaged over draws of the texts it is below the information about a freely drawn text, by less
    the more texts there are (entropy is concave). Equal texts give exactly 0.

    Args:
        log_q: log-probabilities under each text; at least one.
    """
    log_mean = _log_mean(torch.stack(list(log_q)))
    return torch.stack([reverse_kl(member, log_mean) for member in log_q]).mean(0)


def mixture_information_above(log_q: Sequence[Float[Tensor, "C V"]]) -> Float[Tensor, " C"]:
    """mean_j KL(q^{z_j} || mean_{i != j} q^{z_i}) at every token.

    Leaving a text out of the mixture that it is compared with reverses the bias of `mixture_information`:
    averaged over draws of the texts it is above the information, and it is not bounded (the upper bound of
    Poole et al., arXiv 1905.06922, eq. 13, for known conditionals).

    Args:
        log_q: log-probabilities under each text; at least two.
    """
    divergences = [
        reverse_kl(member, _log_mean(torch.stack([other for i, other in enumerate(log_q) if i != j])))
        for j, member in enumerate(log_q)
    ]
    return torch.stack(divergences).mean(0)


def divergence_of_each(log_q: Sequence[Float[Tensor, "C V"]], log_p: LogProbs) -> PerToken:
    """mean_j KL(q^{z_j} || p) at every token: the loss of a student that never sees the texts, averaged over
    them (the left side of ViCuR eq. 18).

    It is `mixture_information` plus `divergence_of_mixture`, exactly.

    Args:
        log_q: log-probabilities of the teacher under each text; at least one.
        log_p: log-probabilities of the student.
    """
    return torch.stack([forward_kl(log_p, member) for member in log_q]).mean(0)


def divergence_of_mixture(log_q: Sequence[Float[Tensor, "C V"]], log_p: LogProbs) -> PerToken:
    """KL(mean_j q^{z_j} || p) at every token: the part of `divergence_of_each` that a student without the
    texts can reduce to 0 (the second term of ViCuR eq. 18).

    Args:
        log_q: log-probabilities of the teacher under each text; at least one.
        log_p: log-probabilities of the student.
    """
    return forward_kl(log_p, _log_mean(torch.stack(list(log_q))))


def _log_mean(log_q: Float[Tensor, "n C V"]) -> Float[Tensor, "C V"]:
    # Unlike logsumexp - log n, this is exact for n equal numbers.
    highest = log_q.amax(0)
    return highest + (log_q - highest).exp().mean(0).log()
