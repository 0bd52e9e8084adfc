"""The pure maths of the objectives: one number for each response token.

There is no model, no configuration and no collective here. Everything is at least float32 and in nats. A term
over whole next-token distributions takes log-probabilities; `p` is the student's, `q` the teacher's.

Shape suffixes: C tokens (of a block or a whole batch, which makes no difference), V vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PerToken = Float[Tensor, " C"]
LogProbs = Float[Tensor, "C V"]
FLAT = 1e-10
"""Mean square, in nats^2, below which a difference of log-probs is rounding."""

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


# ------------------------------------------------------------ targets made of several distributions


def linear_target(
    log_d: Sequence[LogProbs],
    times: Sequence[float],
    *,
    reference: LogProbs | None = None,
    beta: float = 0.0,
    exempt: Bool[Tensor, " V"] | None = None,
) -> LogProbs:
    """log softmax(sum_i a_i log d_i) over the words with d_ref >= beta max d_ref.

    One formula for the targets of several methods: VGS (a = 1, 1, -1 of the blind student, the teacher and
    the blind teacher), VCSD (a = 1 + alpha, -alpha of the teacher with and without the image), and any other
    sum of distributions in logarithms.

    Args:
        log_d: log-probs of each distribution; at least one.
        times: coefficient a_i of each.
        reference: log-probs of the distribution that decides which words are kept; needed if beta > 0 or with
            `exempt`.
        beta: a word is left out if its probability is below this share of the most likely word's; 0 keeps
            all words.
        exempt: words for which every d_i is d_ref, e.g. the tokens that end a response, which a contrast
            would make likelier (VCSD).

    Returns:
        log-probs; minus infinity for words that are left out.
    """
    total = times[0] * log_d[0]
    for factor, log_probs in zip(times[1:], log_d[1:], strict=True):
        total = total + factor * log_probs
    if exempt is not None:
        assert reference is not None, "exempt words take the score of a reference"
        total = torch.where(exempt, sum(times) * reference, total)
    if beta > 0:
        assert reference is not None, "the words that are kept follow from a reference"
        kept = reference >= reference.amax(-1, keepdim=True) + math.log(beta)
        total = total.masked_fill(~kept, -math.inf)
    return total.log_softmax(-1)


def softened(log_d: LogProbs, temperature: float) -> LogProbs:
    """log softmax(log d / T): a distribution at distillation temperature T > 0."""
    return log_d if temperature == 1 else (log_d / temperature).log_softmax(-1)


def mixture_target(log_d: Sequence[LogProbs], shares: Sequence[PerToken]) -> LogProbs:
    """log sum_i w_i d_i: a mixture of distributions with weights that sum to 1 at every token (M-OPSD).

    Args:
        log_d: log-probs of each distribution; at least one.
        shares: weight of each at every token.
    """
    logs = [share.log()[:, None] + log_probs for share, log_probs in zip(shares, log_d, strict=True)]
    return torch.stack(logs).logsumexp(0)


def projected_target(log_p: LogProbs, log_q: LogProbs, direction: LogProbs) -> LogProbs:
    """log softmax(log p + <c, u> u / |u|^2): the student's prediction, moved towards the teacher's only along
    a direction (our reading of VAD, arXiv 2607.28590, of which we know the abstract).

    u is the direction minus its mean over the words, c likewise the correction log q - log p. A direction
    that is flat up to rounding moves nothing.

    Args:
        log_p: log-probs of the student, which anchor the target; give them detached.
        log_q: log-probs of the teacher.
        direction: e.g. the teacher's log-probs with the evidence minus those without.
    """
    u = direction - direction.mean(-1, keepdim=True)
    correction = log_q - log_p
    c = correction - correction.mean(-1, keepdim=True)
    length = u.square().mean(-1, keepdim=True)
    along = (c * u).mean(-1, keepdim=True) / length.clamp(min=FLAT)
    return (log_p + torch.where(length > FLAT, along, 0.0) * u).log_softmax(-1)


def forward_kl_to(log_p: LogProbs, log_target: LogProbs) -> PerToken:
    """KL(target || p), where a target may have left out words."""
    kept = log_target > -math.inf
    ratio = torch.where(kept, log_target, log_p) - log_p
    return (log_target.exp() * ratio).sum(-1)


def reverse_kl_to(log_p: LogProbs, log_target: LogProbs) -> PerToken:
    """KL(p' || target) - log P, where a target may have left out words: P is the probability that the student
    gives to the words that the target keeps, and p' its distribution over these.

    KL(p || target) itself would be infinite where the target leaves out a word. Without the second term the
    student could move probability to such words at no cost. The sum is 0 only at p = target.
    """
    kept = log_target > -math.inf
    log_share = log_p.masked_fill(~kept, -math.inf).logsumexp(-1, keepdim=True)
    log_kept = log_p - log_share
    ratio = log_kept - torch.where(kept, log_target, log_kept)
    # Filled before the exponential, which would overflow for a word that is left out and likely.
    p_kept = log_kept.masked_fill(~kept, -math.inf).exp()
    return (p_kept * ratio).sum(-1) - log_share[..., 0]


def margin_kl(log_p: LogProbs, log_positive: LogProbs, log_negative: LogProbs, margin: float) -> PerToken:
    """KL(p || q+) + max(0, m + KL(p || q+) - KL(p || q-)): towards the teacher that sees the evidence, and
    away from the one that does not, until the divergences differ by the margin (CV-OPD, of which we know the
    README).

    Args:
        log_p: log-probs of the student.
        log_positive, log_negative: log-probs of the teacher with and without the evidence.
        margin: m, in nats.
    """
    pull, push = reverse_kl(log_p, log_positive), reverse_kl(log_p, log_negative)
    return pull + (margin + pull - push).clamp(min=0)


def visual_target(log_p_blind: LogProbs, log_q: LogProbs, log_q_blind: LogProbs) -> LogProbs:
    """log q* = log p0 + log q - log q0 - log Z: the blind student's prediction, shifted by what the teacher
    sees (VGS eq. 9 and 10)."""
    return linear_target([log_p_blind, log_q, log_q_blind], [1.0, 1.0, -1.0])


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


def evidence_gain(log_prob: PerToken, other_log_prob: PerToken, gamma: float) -> PerToken:
    """relu(d) - gamma relu(-d) with d = log q(y_t | evidence) - log q(y_t | no evidence) (V-Zero, arXiv
    2606.25319). Detached."""
    difference = (log_prob - other_log_prob).detach()
    return difference.clamp(min=0) - gamma * (-difference).clamp(min=0)


def reward_direction(
    advantage: PerToken, teacher_log_prob: PerToken, student_log_prob: PerToken, share: float, clip: float
) -> PerToken:
    """w_t = (1 - share) + share clip(exp(sign(A) (log q^z - log p)), 1 - clip, 1 + clip): the reward decides
    the direction of a token's update, and the privileged teacher its size (RLSD, arXiv 2604.03128). Detached.

    Args:
        advantage: the reward's advantage A of the token; only its sign matters.
        teacher_log_prob, student_log_prob: log-probs of the token that was sampled.
        share: part of the weight that the teacher decides, 0 to 1.
        clip: how far the teacher may move the weight from 1.
    """
    gap = (teacher_log_prob - student_log_prob).detach()
    ratio = (advantage.sign() * gap).exp().clamp(1 - clip, 1 + clip)
    return (1 - share) + share * ratio


def endorsement(teacher_log_prob: PerToken, student_log_prob: PerToken, beta: float) -> PerToken:
    """sigmoid(beta (log q^z - log p)): near 1 for tokens that the privileged teacher endorses (SDAR).
    Detached."""
    return (beta * (teacher_log_prob - student_log_prob).detach()).sigmoid()


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
