"""Slow float64 references, written from the papers' formulas and not from the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor


@dataclass
class Response:
    """One sampled response: T >= 1 tokens over V words, with every model's logits on it."""

    ids: Tensor  # (T,) token indices < V
    student: Tensor  # (T, V) logits of p, may require grad
    student_blind: Tensor  # (T, V) logits of p0, may require grad
    teacher: Tensor  # (T, V) logits of the distillation target q
    teacher_plain: Tensor  # (T, V) logits of the teacher on the original image
    teacher_degraded: Tensor  # (T, V) logits of the teacher on the degraded image
    teacher_blind: Tensor  # (T, V) logits of q0
    old_log_probs: Tensor  # (T,) log p_old(y_t)
    masked_log_probs: Tensor  # (T,) log pi(y_t | masked image)
    reward: float


Batch = list[list[Response]]


# Building blocks


def log_probs(logits: Tensor, t: int) -> Tensor:
    """Notation: log-probabilities of all words at step t, at temperature 1."""
    row = logits[t].double()
    return row - torch.logsumexp(row, dim=0)


def token_log_prob(logits: Tensor, response: Response, t: int) -> Tensor:
    """Notation: log-probability of the sampled token y_t."""
    return log_probs(logits, t)[int(response.ids[t])]


def kl(a: Tensor, b: Tensor) -> Tensor:
    """Notation: KL(a || b) = sum_v a_v (log a_v - log b_v), from log-probabilities."""
    return (a.exp() * (a - b)).sum()


def length(response: Response) -> int:
    """Notation: T, the number of tokens of a response."""
    return len(response.ids)


def mean(values: list[Tensor]) -> Tensor:
    """The arithmetic mean of a list of scalars, which may not be empty."""
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = total + value
    return total / len(values)


def average(per_response: list[list[Tensor]], aggregation: str) -> Tensor:
    """Sections 1 and 3: 'token' = mean over all tokens; 'sequence' = over a response's, then responses."""
    if aggregation == "token":
        return mean([number for numbers in per_response for number in numbers])
    if aggregation == "sequence":
        return mean([mean(numbers) for numbers in per_response])
    raise ValueError(aggregation)


def aggregate(batch: Batch, value: Callable[[Response, int], Tensor], aggregation: str) -> Tensor:
    """Sections 1 and 3: the mean over the global batch of one value per token."""
    per_response = []
    for prompt in batch:
        for response in prompt:
            per_response.append([value(response, t) for t in range(length(response))])
    return average(per_response, aggregation)


def share(fraction: float, count: int) -> int:
    """VA-OPD: ceil(fraction * count), exact on the decimal as written (as floats, ceil(0.07 * 100) is 8)."""
    return math.ceil(Fraction(str(fraction)) * count)


def quantile(values: list[float], level: float) -> float:
    """VGS: the quantile with linear interpolation; the position, level * (n - 1), is exact."""
    ordered = sorted(values)
    position = Fraction(str(level)) * (len(ordered) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + float(position - below) * (ordered[above] - ordered[below])


def threshold(values: list[float], level: float) -> float:
    """VGS: what a score must exceed to be above the quantile. The sorted score at or before the quantile's
    position, and a margin of 1e-6 + 1e-4 of it, so that scores equal up to rounding are not above."""
    below = sorted(values)[math.floor(Fraction(str(level)) * (len(values) - 1))]
    return below + 1e-6 + 1e-4 * abs(below)


def clipped_policy_term(
    advantage: Tensor | float,
    log_prob: Tensor,
    old_log_prob: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    max_log_ratio: float,
) -> Tensor:
    """PPO: -min(r A, clip(r) A), the surrogate bounded below by dual_clip * A where A < 0."""
    log_ratio = (log_prob - old_log_prob.double().detach()).clamp(-max_log_ratio, max_log_ratio)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    if dual_clip is not None and advantage < 0:
        surrogate = torch.maximum(surrogate, torch.zeros_like(surrogate) + dual_clip * advantage)
    return -surrogate


# ViCuR


def opd_advantage(response: Response, t: int, limit: float, advantage_at: str) -> Tensor:
    """ViCuR eq. 6: A_t = sg[clamp(log q^z_t(y_t) - log p_t(y_t))], p current or the starting policy."""
    if advantage_at == "current":
        student = token_log_prob(response.student, response, t)
    elif advantage_at == "start":
        student = response.old_log_probs[t].double()
    else:
        raise ValueError(advantage_at)
    return (token_log_prob(response.teacher, response, t) - student).clamp(-limit, limit).detach()


def sampled_token_opd(
    batch: Batch,
    *,
    limit: float = 10.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    max_log_ratio: float = 20.0,
    aggregation: str = "token",
    advantage_at: str = "current",
) -> Tensor:
    """ViCuR eqs. 6-8: the PPO clipped surrogate with the teacher's advantage of each sampled token."""

    def value(response: Response, t: int) -> Tensor:
        return clipped_policy_term(
            opd_advantage(response, t, limit, advantage_at),
            token_log_prob(response.student, response, t),
            response.old_log_probs[t],
            clip_low,
            clip_high,
            dual_clip,
            max_log_ratio,
        )

    return aggregate(batch, value, aggregation)


# Standard OPD and generalised divergences


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """GKD: beta KL(Q||M) + (1 - beta) KL(P||M), M = beta Q + (1 - beta) P.

    At the ends the formula itself is 0, so there the two KLs are taken that it tends to when divided by
    beta or by 1 - beta: beta = 0 is KL(Q||P) and beta = 1 is KL(P||Q).
    """
    if beta == 0:
        return kl(q, p)
    if beta == 1:
        return kl(p, q)
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def token_divergence(response: Response, t: int, kind: str, beta: float) -> Tensor:
    """Section 4: the divergence of student p and teacher q at step t."""
    p = log_probs(response.student, t)
    q = log_probs(response.teacher, t).detach()
    if kind == "reverse_kl":
        return kl(p, q)
    if kind == "forward_kl":
        return kl(q, p)
    if kind == "jsd":
        return jsd(p, q, beta)
    raise ValueError(kind)


def divergence_opd(
    batch: Batch, *, kind: str = "reverse_kl", beta: float = 0.5, aggregation: str = "sequence"
) -> Tensor:
    """Section 4, GKD: the mean full-vocabulary divergence of student and teacher."""
    return aggregate(batch, lambda response, t: token_divergence(response, t, kind, beta), aggregation)


# VA-OPD


def visual_advantage(response: Response) -> Tensor:
    """VA-OPD eq. 2: a_t = max(log q_t(y_t) - log q~_t(y_t), 0), detached."""
    values = []
    for t in range(length(response)):
        plain = token_log_prob(response.teacher_plain, response, t)
        degraded = token_log_prob(response.teacher_degraded, response, t)
        values.append(max(float(plain) - float(degraded), 0.0))
    return torch.tensor(values, dtype=torch.float64)


def tokens_by_advantage(response: Response, *, highest_first: bool) -> list[int]:
    """VA-OPD: token indices ordered by a_t; among equal tokens the earlier one comes first."""
    advantage = visual_advantage(response).tolist()
    sign = -1.0 if highest_first else 1.0
    return sorted(range(length(response)), key=lambda t: (sign * advantage[t], t))


def masked_opd(batch: Batch, *, mask: str = "top", fraction: float = 0.1) -> Tensor:
    """VA-OPD, Observation 2: Standard OPD without the KL of some tokens; the denominator stays T."""
    if mask not in ("top", "lowest"):
        raise ValueError(mask)
    means = []
    for prompt in batch:
        for response in prompt:
            order = tokens_by_advantage(response, highest_first=mask == "top")
            dropped = order[: share(fraction, length(response))]
            values = []
            for t in range(length(response)):
                weight = 0.0 if t in dropped else 1.0
                values.append(weight * token_divergence(response, t, "reverse_kl", 0.5))
            means.append(mean(values))
    return mean(means)


def rollout_weights(means: list[float], temperature: float = 1.0, epsilon: float = 1e-6) -> list[float]:
    """VA-OPD eqs. 3-4: softmax of the responses' standardised mean VA (ddof 0); equal responses: uniform."""
    count = len(means)
    if min(means) == max(means):
        return [1 / count] * count
    mu = sum(means) / count
    sigma = math.sqrt(sum((value - mu) ** 2 for value in means) / count)
    scores = [(value - mu) / (sigma + epsilon) for value in means]
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


response_weights = rollout_weights  # for va_opd, where a setting of the same name hides the function


def grouped_kl(response: Response, top_fraction: float, visual_share: float) -> Tensor:
    """VA-OPD eq. 5: lambda mean_V KL_t + (1 - lambda) mean_L KL_t; without L, V takes all the mass."""
    order = tokens_by_advantage(response, highest_first=True)
    count = max(1, share(top_fraction, length(response)))
    visual = [token_divergence(response, t, "reverse_kl", 0.5) for t in order[:count]]
    language = [token_divergence(response, t, "reverse_kl", 0.5) for t in order[count:]]
    if not language:
        return mean(visual)
    return visual_share * mean(visual) + (1 - visual_share) * mean(language)


def plain_kl(response: Response) -> Tensor:
    """VA-OPD eq. 1: mean_t KL_t of one response."""
    return mean([token_divergence(response, t, "reverse_kl", 0.5) for t in range(length(response))])


def va_opd(
    batch: Batch,
    *,
    rollout_weights: bool = True,
    grouped: bool = True,
    temperature: float = 1.0,
    epsilon: float = 1e-6,
    top_fraction: float = 0.2,
    visual_share: float = 0.5,
) -> Tensor:
    """VA-OPD eq. 6: the mean over prompts of sum_k w_k * grouped_k."""
    prompts = []
    for prompt in batch:
        if rollout_weights:
            means = [float(visual_advantage(response).mean()) for response in prompt]
            weights = response_weights(means, temperature, epsilon)
        else:
            weights = [1 / len(prompt) for _ in prompt]
        total = torch.zeros((), dtype=torch.float64)
        for weight, response in zip(weights, prompt, strict=True):
            value = grouped_kl(response, top_fraction, visual_share) if grouped else plain_kl(response)
            total = total + weight * value
        prompts.append(total)
    return mean(prompts)


# VGS


def standard_term(response: Response, t: int) -> Tensor:
    """VGS eq. 3: l_std = KL(p_t || q_t)."""
    return kl(log_probs(response.student, t), log_probs(response.teacher, t).detach())


def language_term(response: Response, t: int) -> Tensor:
    """VGS eq. 6: l_lang = KL(p0_t || q0_t), p0 live."""
    return kl(log_probs(response.student_blind, t), log_probs(response.teacher_blind, t).detach())


def visual_target(response: Response, t: int, detach_prior: bool = True) -> Tensor:
    """VGS eq. 10: log q* = log p0 + log q - log q0 - log Z; p0 a constant, or live."""
    blind = log_probs(response.student_blind, t)
    gain = log_probs(response.teacher, t) - log_probs(response.teacher_blind, t)
    unnormalised = (blind.detach() if detach_prior else blind) + gain.detach()
    return unnormalised - torch.logsumexp(unnormalised, dim=0)


def visual_term(response: Response, t: int, detach_prior: bool = True) -> Tensor:
    """VGS eq. 11: l_vis = KL(p_t || q*_t)."""
    return kl(log_probs(response.student, t), visual_target(response, t, detach_prior))


def dependency_score(response: Response, t: int) -> float:
    """VGS eq. 12: VDS_t = KL(q_t || q0_t)."""
    return float(kl(log_probs(response.teacher, t), log_probs(response.teacher_blind, t)))


def dependency_threshold(batch: Batch, level: float) -> float:
    """VGS eqs. 16 and 25: above which VDS a token lies above the quantile over all tokens of the batch."""
    scores = []
    for prompt in batch:
        for response in prompt:
            for t in range(length(response)):
                scores.append(dependency_score(response, t))
    return threshold(scores, level)


def adaptive_alpha(score: float, alpha: float, low: float, high: float) -> float:
    """VGS eq. 25: 0 up to the low threshold, alpha / 2 up to the high one, alpha above."""
    if score <= low:
        return 0.0
    if score <= high:
        return alpha / 2
    return alpha


def vgs_parts(
    batch: Batch,
    *,
    alpha: float = 2.0,
    adaptive: bool = False,
    steering: str = "visual",
    aggregation: str = "sequence",
    preserve_quantile: float = 0.7,
    adaptive_quantile: float = 0.4,
    detach_prior: bool = True,
) -> dict[str, Tensor]:
    """VGS eqs. 13, 16, 19, 21 and 24: the three aggregated parts, without beta and without s.

    'steering' is the mean of the steered term, without alpha; where adaptive it is the mean of
    alpha_t * term, alpha included. 'preservation' is a mean over all tokens, those it skips counting as 0.
    The upper threshold of alpha_t is the preservation threshold (both are Q_0.7 in the paper).
    """
    towards_visual = partial(visual_term, detach_prior=detach_prior)
    if steering == "visual":
        steered, preserved = towards_visual, language_term
    elif steering == "language":
        steered, preserved = language_term, towards_visual
    else:
        raise ValueError(steering)
    high = dependency_threshold(batch, preserve_quantile)
    low = dependency_threshold(batch, adaptive_quantile)

    def steering_value(response: Response, t: int) -> Tensor:
        weight = adaptive_alpha(dependency_score(response, t), alpha, low, high) if adaptive else 1.0
        return weight * steered(response, t)

    def preservation_value(response: Response, t: int) -> Tensor:
        weight = 1.0 if dependency_score(response, t) > high else 0.0
        return weight * preserved(response, t)

    return {
        "standard": aggregate(batch, standard_term, aggregation),
        "steering": aggregate(batch, steering_value, aggregation),
        "preservation": aggregate(batch, preservation_value, aggregation),
    }


def vgs(
    batch: Batch,
    *,
    alpha: float = 2.0,
    beta: float = 0.01,
    scale: float = 1.0,
    adaptive: bool = False,
    steering: str = "visual",
    aggregation: str = "sequence",
    preserve_quantile: float = 0.7,
    adaptive_quantile: float = 0.4,
    detach_prior: bool = True,
) -> Tensor:
    """VGS eqs. 17-19 and 24: s * mean(l_std + alpha * steered + beta * preservation)."""
    parts = vgs_parts(
        batch,
        alpha=alpha,
        adaptive=adaptive,
        steering=steering,
        aggregation=aggregation,
        preserve_quantile=preserve_quantile,
        adaptive_quantile=adaptive_quantile,
        detach_prior=detach_prior,
    )
    steered = parts["steering"] if adaptive else alpha * parts["steering"]
    return scale * (parts["standard"] + steered + beta * parts["preservation"])


# GRPO, PAPO and supervised losses


def group_advantages(rewards: list[float], epsilon: float = 1e-4) -> list[float]:
    """GRPO: (r - mean) / (sample deviation + epsilon), ddof 1; a group without variance gets 0."""
    count = len(rewards)
    if min(rewards) == max(rewards):
        return [0.0] * count
    mu = sum(rewards) / count
    deviation = math.sqrt(sum((reward - mu) ** 2 for reward in rewards) / (count - 1))
    return [(reward - mu) / (deviation + epsilon) for reward in rewards]


def kl_estimate(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """Section 4: d = log q - log p of the sampled token; k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1, which
    PAPO's code clamps: d within +-20 and k3 within +-10."""
    d = log_q - log_p
    if kind == "k1":
        return -d
    if kind == "k2":
        return d * d / 2
    if kind == "k3":
        d = d.clamp(-20.0, 20.0)
        return (d.exp() - d - 1).clamp(-10.0, 10.0)
    raise ValueError(kind)


def grpo(
    batch: Batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: float = 20.0,
    epsilon: float = 1e-4,
    aggregation: str = "token",
    kl_weight: float = 0.0,
    kl_estimator: str = "k3",
) -> Tensor:
    """GRPO: the clipped surrogate with group-normalised rewards, plus kl_weight times a KL estimate.

    The reference policy of the estimate is `teacher`; its gradient flows through log p.
    """
    per_response = []
    for prompt in batch:
        advantages = group_advantages([response.reward for response in prompt], epsilon)
        for response, advantage in zip(prompt, advantages, strict=True):
            values = []
            for t in range(length(response)):
                log_p = token_log_prob(response.student, response, t)
                old = response.old_log_probs[t]
                term = clipped_policy_term(
                    advantage, log_p, old, clip_low, clip_high, dual_clip, max_log_ratio
                )
                if kl_weight != 0:
                    log_q = token_log_prob(response.teacher, response, t).detach()
                    term = term + kl_weight * kl_estimate(log_p, log_q, kl_estimator)
                values.append(term)
            per_response.append(values)
    return average(per_response, aggregation)


def perception_term(response: Response, t: int) -> Tensor:
    """PAPO: k3 of d = log pi(y_t | masked) - log pi(y_t), d within +-20 and k3 within +-10."""
    masked = response.masked_log_probs[t].double().detach()
    return kl_estimate(token_log_prob(response.student, response, t), masked, "k3")


def cross_entropy(batch: Batch, *, aggregation: str = "token") -> Tensor:
    """Section 4, CoT-SFT: the mean of -log p(y_t)."""
    return aggregate(batch, lambda response, t: -token_log_prob(response.student, response, t), aggregation)


def masked_entropy(batch: Batch, *, aggregation: str = "token") -> Tensor:
    """PAPO: H_mask, the mean of -log pi(y_t | masked), which carries no gradient and is only logged."""
    return aggregate(batch, lambda response, t: -response.masked_log_probs[t].double().detach(), aggregation)


def papo(
    batch: Batch,
    *,
    gamma: float = 0.01,
    entropy_weight: float = 0.03,
    masked_entropy_weight: float = 0.03,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: float = 20.0,
    epsilon: float = 1e-4,
    aggregation: str = "token",
    kl_weight: float = 0.0,
    kl_estimator: str = "k3",
) -> Tensor:
    """PAPO: GRPO - gamma * mean(k3) + eta1 * H; masked_entropy_weight has no gradient to weigh: unused.

    H = -mean log p(y_t), which is the cross-entropy of the sampled tokens.
    """
    policy = grpo(
        batch,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        max_log_ratio=max_log_ratio,
        epsilon=epsilon,
        aggregation=aggregation,
        kl_weight=kl_weight,
        kl_estimator=kl_estimator,
    )
    perception = aggregate(batch, perception_term, aggregation)
    entropy = cross_entropy(batch, aggregation=aggregation)
    return policy - gamma * perception + entropy_weight * entropy


def mixture(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Section 4, VGS eq. 22: the weighted sum of losses, each with its own 1/N."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, loss in parts:
        total = total + weight * loss
    return total
