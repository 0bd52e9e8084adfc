"""Targets and gates of the methods of 2026 in numpy float64, token by token.

Written from the papers' formulas and never from the library, so that it can check the library. All
log-probabilities are natural logarithms of shape (N tokens, V words), already normalised.
"""

from __future__ import annotations

import numpy as np


def _log_normalise(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities from the scores (V,) of one token."""
    top = np.max(scores)
    return scores - (top + np.log(np.sum(np.exp(scores - top))))


def _kl(log_a: np.ndarray, log_b: np.ndarray) -> float:
    """KL(a || b) of one token; a word with a = 0 adds nothing."""
    live = log_a > -np.inf
    return float(np.sum(np.exp(log_a[live]) * (log_a[live] - log_b[live])))


def _table(values, name: str) -> np.ndarray:
    """A float64 table of shape (N, V)."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"{name} must have the shape (tokens, words), not {table.shape}")
    return table


def _finite(values, name: str) -> np.ndarray:
    """The same, without infinities and NaN."""
    table = _table(values, name)
    if not np.all(np.isfinite(table)):
        raise ValueError(f"{name} must be finite")
    return table


def _same_shape(*tables: np.ndarray) -> None:
    """Refuse tables of different shapes."""
    if len({table.shape for table in tables}) != 1:
        raise ValueError(f"shapes differ: {[table.shape for table in tables]}")


def _check_cut(beta: float, exempt: list[int], words: int) -> None:
    """Refuse a beta outside [0, 1], and a word outside the vocabulary."""
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie between 0 and 1, not {beta}")
    for word in exempt:
        if not 0 <= word < words:
            raise ValueError(f"exempt word {word} is outside the vocabulary of {words} words")


def linear_target(
    looks: list[np.ndarray], coefficients: list[float], reference: np.ndarray, beta: float, exempt: list[int]
) -> np.ndarray:
    """log target ~ exp(sum_i a_i log d_i) on the words with d_ref >= beta max d_ref (VGS, VCSD, OPD-Aha).

    The maximum is over all words, and words that are left out get -inf. For words in `exempt` every look is
    the reference.
    """
    if len(looks) != len(coefficients) or len(looks) == 0:
        raise ValueError("there must be one coefficient for each look, and at least one look")
    tables = [_finite(look, f"looks[{i}]") for i, look in enumerate(looks)]
    log_reference = _finite(reference, "reference")
    _same_shape(log_reference, *tables)
    tokens, words = log_reference.shape
    _check_cut(beta, exempt, words)

    target = np.full((tokens, words), -np.inf)
    for t in range(tokens):
        probability = np.exp(log_reference[t])
        keep = probability >= beta * np.max(probability)
        score = np.zeros(words)
        for table, coefficient in zip(tables, coefficients, strict=True):
            score = score + coefficient * table[t]
        for word in exempt:
            score[word] = sum(coefficients) * log_reference[t, word]
        target[t, keep] = _log_normalise(score[keep])
    return target


def forward_kl_to(target_log: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """KL(target || p) of each token; words that the target leaves out add nothing."""
    target_log, log_p = _table(target_log, "target_log"), _table(log_p, "log_p")
    _same_shape(target_log, log_p)
    return np.array([_kl(target_log[t], log_p[t]) for t in range(len(log_p))], dtype=np.float64)


def reverse_kl_to(target_log: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """KL(p' || target) - log P of each token; p' is the student renormalised on the words that the target
    keeps, and P their probability."""
    target_log, log_p = _table(target_log, "target_log"), _finite(log_p, "log_p")
    _same_shape(target_log, log_p)
    result = np.zeros(len(log_p))
    for t in range(len(log_p)):
        keep = target_log[t] > -np.inf
        kept = np.sum(np.exp(log_p[t][keep]))
        result[t] = _kl(_log_normalise(log_p[t][keep]), target_log[t][keep]) - np.log(kept)
    return result


def vad_target(
    log_p: np.ndarray, log_q: np.ndarray, log_q_evidence: np.ndarray, log_q_erased: np.ndarray
) -> np.ndarray:
    """log softmax(log p + <c, u> / <u, u> u), VAD (arXiv 2607.28590) as its abstract reads to us.

    u is log q(evidence) - log q(erased) and c is log q - log p, both minus their mean over the words.
    """
    log_p, log_q = _finite(log_p, "log_p"), _finite(log_q, "log_q")
    log_q_evidence = _finite(log_q_evidence, "log_q_evidence")
    log_q_erased = _finite(log_q_erased, "log_q_erased")
    _same_shape(log_p, log_q, log_q_evidence, log_q_erased)
    target = np.zeros_like(log_p)
    for t in range(len(log_p)):
        u = log_q_evidence[t] - log_q_erased[t]
        u = u - np.mean(u)
        c = log_q[t] - log_p[t]
        c = c - np.mean(c)
        length = np.sum(u * u)
        if length == 0.0:
            target[t] = log_p[t]
        else:
            target[t] = _log_normalise(log_p[t] + (np.sum(c * u) / length) * u)
    return target


def mixture_target(looks: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """log sum_v w_v q_v with weights (looks, N) divided by their sum at each token (M-OPSD, 2608.25356)."""
    if len(looks) == 0:
        raise ValueError("there must be at least one look")
    tables = [_table(look, f"looks[{i}]") for i, look in enumerate(looks)]
    _same_shape(*tables)
    tokens, words = tables[0].shape
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(tables), tokens):
        raise ValueError(f"weights must have the shape {(len(tables), tokens)}, not {weights.shape}")
    if not np.all(np.isfinite(weights)) or np.any(weights < 0.0):
        raise ValueError("weights must be finite and not negative")

    target = np.zeros((tokens, words))
    for t in range(tokens):
        total = np.sum(weights[:, t])
        if total == 0.0:
            raise ValueError(f"all the weights of token {t} are 0")
        mixed = np.full(words, -np.inf)
        for v, table in enumerate(tables):
            if weights[v, t] > 0.0:
                mixed = np.logaddexp(mixed, np.log(weights[v, t] / total) + table[t])
        target[t] = mixed
    return target


def evidence_weights(
    log_q_evidence: np.ndarray,
    log_q_negative: np.ndarray,
    response_index: np.ndarray,
    prompt_index: np.ndarray,
    alpha: float,
    gamma: float,
    w_min: float,
    w_max: float,
    epsilon: float,
) -> np.ndarray:
    """The weight of each response (V-Zero, arXiv 2606.25319).

    d_t = log q(y_t|v+) - log q(y_t|v-); s is the mean over a response of relu(d_t) - gamma relu(-d_t);
    z = (s - mean) / (population standard deviation + epsilon) among the responses to a prompt; the weight is
    clip(1 + alpha z, w_min, w_max).
    """
    log_q_evidence = np.asarray(log_q_evidence, dtype=np.float64)
    log_q_negative = np.asarray(log_q_negative, dtype=np.float64)
    response_index, prompt_index = np.asarray(response_index), np.asarray(prompt_index)
    _same_shape(log_q_evidence, log_q_negative, response_index)
    tokens, responses = len(response_index), len(prompt_index)
    for t in range(tokens):
        if not 0 <= response_index[t] < responses:
            raise ValueError(f"token {t} names response {response_index[t]}, and there are {responses}")

    scores = np.zeros(responses)
    for r in range(responses):
        values = []
        for t in range(tokens):
            if response_index[t] == r:
                delta = log_q_evidence[t] - log_q_negative[t]
                values.append(max(delta, 0.0) - gamma * max(-delta, 0.0))
        if not values:
            raise ValueError(f"response {r} has no tokens")
        scores[r] = np.mean(values)

    weights = np.zeros(responses)
    for r in range(responses):
        siblings = np.array([scores[k] for k in range(responses) if prompt_index[k] == prompt_index[r]])
        mean = np.mean(siblings)
        spread = np.sqrt(np.mean((siblings - mean) ** 2))
        z = 0.0 if spread + epsilon == 0.0 else (scores[r] - mean) / (spread + epsilon)
        weights[r] = min(max(1.0 + alpha * z, w_min), w_max)
    return weights


def rlsd_weights(
    advantage: np.ndarray, log_q_hinted: np.ndarray, log_p: np.ndarray, lam: float, epsilon: float
) -> np.ndarray:
    """(1 - lam) + lam clip(exp(sign(A_t) d_t), 1 - epsilon, 1 + epsilon), d_t = log q^z(y_t) - log p(y_t)
    (RLSD, arXiv 2604.03128)."""
    advantage = np.asarray(advantage, dtype=np.float64)
    log_q_hinted, log_p = np.asarray(log_q_hinted, dtype=np.float64), np.asarray(log_p, dtype=np.float64)
    _same_shape(advantage, log_q_hinted, log_p)
    weights = np.zeros(len(advantage))
    for t in range(len(advantage)):
        with np.errstate(over="ignore"):  # An infinite ratio is clipped to 1 + epsilon.
            ratio = np.exp(np.sign(advantage[t]) * (log_q_hinted[t] - log_p[t]))
        weights[t] = (1.0 - lam) + lam * min(max(ratio, 1.0 - epsilon), 1.0 + epsilon)
    return weights


def sdar_gate(log_q_hinted: np.ndarray, log_p: np.ndarray, beta: float) -> np.ndarray:
    """sigmoid(beta (log q^z(y_t) - log p(y_t))) of each token (SDAR)."""
    log_q_hinted, log_p = np.asarray(log_q_hinted, dtype=np.float64), np.asarray(log_p, dtype=np.float64)
    _same_shape(log_q_hinted, log_p)
    # 1 / (1 + exp(-x)) = exp(-log(exp(0) + exp(-x))), which does not overflow.
    return np.exp(-np.logaddexp(0.0, -beta * (log_q_hinted - log_p)))


def cv_margin(log_p: np.ndarray, log_q_plus: np.ndarray, log_q_minus: np.ndarray, m: float) -> np.ndarray:
    """KL(p||q+) + max(0, m + KL(p||q+) - KL(p||q-)) of each token (CV-OPD)."""
    log_p = _finite(log_p, "log_p")
    log_q_plus, log_q_minus = _finite(log_q_plus, "log_q_plus"), _finite(log_q_minus, "log_q_minus")
    _same_shape(log_p, log_q_plus, log_q_minus)
    result = np.zeros(len(log_p))
    for t in range(len(log_p)):
        pull = _kl(log_p[t], log_q_plus[t])
        push = _kl(log_p[t], log_q_minus[t])
        result[t] = pull + max(0.0, m + pull - push)
    return result


def vgs_target(log_p_blind: np.ndarray, log_q: np.ndarray, log_q_blind: np.ndarray) -> np.ndarray:
    """log softmax(log p0 + log q - log q0) (VGS, arXiv 2606.00564)."""
    log_p_blind = _finite(log_p_blind, "log_p_blind")
    log_q, log_q_blind = _finite(log_q, "log_q"), _finite(log_q_blind, "log_q_blind")
    _same_shape(log_p_blind, log_q, log_q_blind)
    target = np.zeros_like(log_q)
    for t in range(len(log_q)):
        target[t] = _log_normalise(log_p_blind[t] + log_q[t] - log_q_blind[t])
    return target


def vcsd_target(
    log_q: np.ndarray, log_q_blank: np.ndarray, alpha: float, beta: float, exempt: list[int]
) -> np.ndarray:
    """q* ~ exp((1 + alpha) log q(v) - alpha log q(blank)) on {w: q(v) >= beta max q(v)} (VCSD, 2607.21556).

    End tokens in `exempt` are not contrasted: their score is log q(v). The cut applies to them too.
    """
    log_q, log_q_blank = _finite(log_q, "log_q"), _finite(log_q_blank, "log_q_blank")
    _same_shape(log_q, log_q_blank)
    tokens, words = log_q.shape
    _check_cut(beta, exempt, words)
    target = np.full((tokens, words), -np.inf)
    for t in range(tokens):
        threshold = beta * np.exp(log_q[t]).max()
        kept = [w for w in range(words) if np.exp(log_q[t, w]) >= threshold]
        contrast = [
            log_q[t, w] + (0.0 if w in exempt else alpha * (log_q[t, w] - log_q_blank[t, w])) for w in kept
        ]
        target[t, kept] = _log_normalise(np.array(contrast))
    return target


def soften(log_d: np.ndarray, temperature: float) -> np.ndarray:
    """The distributions d^(1/T), normalised: knowledge distillation's temperature (arXiv 1503.02531)."""
    return np.stack([_log_normalise(row / temperature) for row in _finite(log_d, "log_d")])


def jsd(log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """1/2 KL(q || m) + 1/2 KL(p || m) with m = 1/2 (q + p) (Vision-OPD, arXiv 2605.18740)."""
    log_q, log_p = _table(log_q, "log_q"), _table(log_p, "log_p")
    _same_shape(log_q, log_p)
    result = np.zeros(len(log_p))
    for t in range(len(log_p)):
        log_m = np.logaddexp(log_q[t], log_p[t]) + np.log(0.5)
        result[t] = 0.5 * _kl(log_q[t], log_m) + 0.5 * _kl(log_p[t], log_m)
    return result
