"""Metrics of a rollout step.

Shape suffixes: N response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vicur.diagnostics.dependence import quantiles, top_mass
from vicur.diagnostics.drift import repetition
from vicur.diagnostics.gap import means_by_part
from vicur.diagnostics.leakage import HintLeakage
from vicur.objectives.objective import Summary
from vicur.rewards.answers import extract_answer
from vicur.training.scoring import ScoredBatch

GAP = "gap"
"""Name of log q(y_t) - log p(y_t), teacher minus student. The papers do not state a sign; the mean of its
absolute value is recorded as gap_absolute."""
PRIVILEGE_GAP = "privilege_gap"
"""Name of the part of the gap that the teacher's privilege adds: log q^z(y_t) - log q(y_t)."""
CAPABILITY_GAP = "capability_gap"
"""Name of the part of the gap that the teacher's weights add: log q(y_t) - log p(y_t)."""
GAPS = (GAP, PRIVILEGE_GAP, CAPABILITY_GAP)
TOKEN_LOSS = "token_loss"
"""Name of what a token adds to the loss: the sum over terms of weight times value."""


@dataclass(frozen=True)
class Update:
    """The result of one update.

    Attributes:
        losses: loss of each weighted term, with any measured gradient scale applied; they add up to the loss.
        tokens: per-token numbers in the flat order of the update.
        summaries: how each of `tokens` is reduced to metrics; "mean" if not listed.
        numbers: other metrics.
        was_taken: whether the optimizer took the step; false if a loss or the gradient was not finite.
    """

    losses: Mapping[str, float]
    tokens: Mapping[str, Tensor]
    summaries: Mapping[str, Summary]
    numbers: Mapping[str, float]
    was_taken: bool = True


def describe_step(
    batch: ScoredBatch, updates: Sequence[Update], tokens: Mapping[str, Tensor], leaked: HintLeakage
) -> dict[str, float]:
    """The metrics of a rollout step, from its updates, its response tokens and its responses.

    Args:
        batch: the rollout batch.
        updates: results of its updates.
        tokens: per-token numbers of all updates, as `join_tokens` returns them.
        leaked: hint leakage of the responses.
    """
    metrics = describe_updates(updates)
    skipped = sum(not update.was_taken for update in updates)
    metrics |= {"skipped_updates": float(skipped)} if skipped else {}
    metrics |= describe_tokens(tokens, batch.rollouts.response_index, updates[0].summaries)
    return metrics | describe_responses(batch, leaked)


def join_tokens(updates: Sequence[Update]) -> dict[str, Tensor]:
    """Join the per-token numbers of all updates of a step."""
    return {name: torch.cat([update.tokens[name] for update in updates]) for name in updates[0].tokens}


def describe_updates(updates: Sequence[Update]) -> dict[str, float]:
    """Loss, its parts and their shares, gradient norm and the like: means over the updates."""
    losses = {name: _mean([update.losses[name] for update in updates]) for name in updates[0].losses}
    metrics = {"loss": sum(losses.values())}
    if len(losses) > 1:
        size = sum(map(abs, losses.values())) or 1.0
        metrics |= {f"loss_{name}": value for name, value in losses.items()}
        metrics |= {f"share_{name}": abs(value) / size for name, value in losses.items()}
    # An update without any image has no recovery metrics; other updates of the step may have them.
    for name in dict.fromkeys(name for update in updates for name in update.numbers):
        metrics[name] = _mean([u.numbers[name] for u in updates if name in u.numbers])
    return metrics


def describe_tokens(
    tokens: Mapping[str, Tensor], response_index: Tensor, summaries: Mapping[str, Summary]
) -> dict[str, float]:
    """Metrics of per-token numbers.

    Args:
        tokens: the numbers of a step, by name.
        response_index: index of each token's response.
        summaries: reduction of each to metrics; "mean" if not listed.
    """
    metrics: dict[str, float] = {}
    for name, values in tokens.items():
        index = response_index.to(values.device)
        metrics |= _summarise(name, values, index, summaries.get(name, "mean"))
        if name == GAP:
            metrics |= means_by_part(values.abs(), index, f"{GAP}_absolute")
    return metrics


def _summarise(name: str, values: Tensor, response_index: Tensor, summary: Summary) -> dict[str, float]:
    mean = {name: float(values.mean())}
    match summary:
        case "none":
            return {}
        case "mean":
            return mean
        case "parts":
            return means_by_part(values, response_index, name)
        case "top_mass":
            return mean | {f"{name}_top10_mass": top_mass(values)}
        case "quantiles":
            return mean | quantiles(values, name)


def describe_responses(batch: ScoredBatch, leaked: HintLeakage) -> dict[str, float]:
    """Metrics of the responses."""
    responses, texts = batch.rollouts.flat_responses, batch.rollouts.flat_texts
    graded = [grade.correct for grade in batch.grades if grade is not None]
    metrics = {
        "response_tokens": sum(len(response.ids) for response in responses) / len(responses),
        "truncated": sum(r.finish_reason == "length" for r in responses) / len(responses),
        "answers_marked": sum(extract_answer(text, lenient=False) is not None for text in texts) / len(texts),
        "repetition": sum(repetition(response.ids.tolist()) for response in responses) / len(responses),
        "hint_samples": float(leaked.samples),
        "hint_occurrences": float(leaked.occurrences),
    }
    return metrics | ({"rollout_accuracy": 100 * sum(graded) / len(graded)} if graded else {})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
