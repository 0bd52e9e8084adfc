"""Joins what the ranks computed for their problems into that of the whole batch.

Ranks hold contiguous shares of the problems of each update, so joining in rank order restores the order of
one process. Weights and metrics are computed from the whole, on every rank alike.

Shape suffixes: N response tokens of this rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vicur import distributed
from vicur.objectives.objective import ScoredTokens, Weighed
from vicur.training.scoring import ScoredBatch


def whole_tokens(scored: ScoredTokens) -> tuple[ScoredTokens, slice]:
    """The scored tokens of all ranks, and which of them are this rank's."""
    if distributed.size() == 1:
        return scored, slice(0, len(scored))
    counts = distributed.gather((len(scored), len(scored.prompt_index), int(scored.prompt_index[-1]) + 1))
    before = counts[: distributed.rank()]
    # As in one process, where one response without a grade leaves the whole batch without rewards.
    have_rewards = not distributed.any_rank(scored.rewards is None)
    tokens, responses, prompts = (sum(count[kind] for count in before) for kind in range(3))
    joined = replace(
        scored,
        response_index=distributed.gather_tensor(scored.response_index + responses),
        prompt_index=distributed.gather_tensor(scored.prompt_index + prompts),
        log_probs=_joined(scored.log_probs),
        divergences=_joined(scored.divergences),
        segments=_joined(scored.segments),
        lacking=_joined(scored.lacking),
        draws=None if scored.draws is None else distributed.gather_tensor(scored.draws),
        rewards=distributed.gather_tensor(_present(scored.rewards)) if have_rewards else None,
    )
    return joined, slice(tokens, tokens + len(scored))


def part_of(weighed: Weighed, tokens: slice) -> Weighed:
    """The terms and their weights on a slice of the tokens; the metrics stay those of the whole batch."""
    return replace(
        weighed,
        terms=[term.part(tokens) for term in weighed.terms],
        tokens={name: values[tokens] for name, values in weighed.tokens.items()},
    )


def whole_batch(batch: ScoredBatch) -> ScoredBatch:
    """The rollouts of all ranks with their grades, for metrics and records: their problems have no media."""
    if distributed.size() == 1:
        return batch
    samples = tuple(sample.without_media() for sample in batch.rollouts.samples)
    part = ScoredBatch(replace(batch.rollouts, samples=samples), batch.grades)
    return ScoredBatch.joined(distributed.gather(part))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: distributed.gather_tensor(tensor) for name, tensor in tensors.items()}
