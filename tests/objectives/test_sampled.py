"""The sampled-token objective: gradients worked out by hand, and several updates of one rollout batch."""

from __future__ import annotations

import math

import pytest
import torch
from harness import identity

from vicur.objectives.objective import OLD, TEACHER, ScoredTokens
from vicur.objectives.policy import GRPO
from vicur.objectives.sampled import SampledTokenOPD
from vicur.scoring.chunks import Reading, weighted_terms

TWO = torch.arange(2)


def logits_of(probabilities):
    """Logits over two words, of which the first is the sampled one."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], -1)


def run(objective, scored, probabilities):
    """Loss, d loss / d log p of the sampled words, and the observed values by name."""
    logits = logits_of(probabilities).requires_grad_()
    reading = Reading(torch.zeros(len(logits), dtype=torch.long), TWO)
    terms = objective.weigh(scored).terms
    result = weighted_terms(logits, identity(logits).head_WD, reading, terms, {})
    result.loss.backward()
    # d log p_0 / d logit_0 = 1 - p_0.
    slopes = logits.grad[:, 0] / (1 - torch.tensor(probabilities, dtype=torch.float64))
    names = [term.name for term in terms]
    return result.loss.item(), slopes.tolist(), dict(zip(names, result.values_JN.tolist(), strict=True))


def scored_of(old, teacher, rewards=None):
    log_probs = {name: torch.tensor(p).double().log() for name, p in ((OLD, old), (TEACHER, teacher))}
    index = torch.arange(len(old))
    rewards = None if rewards is None else torch.tensor(rewards, dtype=torch.float64)
    return ScoredTokens(index, torch.zeros_like(index), log_probs, rewards=rewards)


def test_on_policy_gradient_is_minus_the_advantage():
    """At ratio 1: loss = -mean A, and d loss / d log p_t = -A_t / N."""
    loss, slopes, values = run(SampledTokenOPD(), scored_of([0.5, 0.2], [0.75, 0.1]), [0.5, 0.2])
    advantages = [math.log(1.5), -math.log(2)]
    assert values["advantage"] == pytest.approx(advantages)
    assert loss == pytest.approx(-sum(advantages) / 2)
    assert slopes == pytest.approx([-a / 2 for a in advantages])
    assert values["clip_fraction"] == [0, 0]


def test_the_second_update_of_a_rollout_batch():
    """The student has moved from 0.5 to 0.65 and from 0.5 to 0.35: ratios 1.3 and 0.7, both outside.

    At the start: A = ln(.9/.5) > 0 at ratio 1.3 is clipped at 1.2, A = ln(.1/.5) < 0 at ratio 0.7 is
    clipped at 0.8; neither has a gradient. Current advantages differ: ln(.9/.65) and ln(.1/.35).
    """
    scored = scored_of([0.5, 0.5], [0.9, 0.1])
    loss, slopes, values = run(SampledTokenOPD(advantage_at="start"), scored, [0.65, 0.35])
    assert loss == pytest.approx((-1.2 * math.log(1.8) + 0.8 * math.log(5)) / 2)
    assert slopes == pytest.approx([0, 0]) and values["clip_fraction"] == [1, 1]
    loss, _, _ = run(SampledTokenOPD(), scored, [0.65, 0.35])
    assert loss == pytest.approx((-1.2 * math.log(0.9 / 0.65) + 0.8 * math.log(0.35 / 0.1)) / 2)


def test_a_second_update_in_the_wrong_direction_is_not_clipped():
    """Ratios 0.7 with A > 0 and 1.3 with A < 0: the surrogate pulls back with its full gradient -r A."""
    scored = scored_of([0.5, 0.5], [0.9, 0.1])
    loss, slopes, values = run(SampledTokenOPD(advantage_at="start"), scored, [0.35, 0.65])
    gain, fall = math.log(1.8), -math.log(5)
    assert loss == pytest.approx(-(0.7 * gain + 1.3 * fall) / 2)
    assert slopes == pytest.approx([-0.7 * gain / 2, -1.3 * fall / 2])
    assert values["clip_fraction"] == [0, 0]


def test_grpo_over_two_updates():
    """Rewards 1 and 0: mean .5, sample deviation sqrt(.5), A = +-.5 / (.70711 + 1e-4) = +-.70701."""
    scored = scored_of([0.5, 0.5], [0.5, 0.5], rewards=[1, 0])
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    loss, slopes, _ = run(GRPO(), scored, [0.5, 0.5])
    assert loss == pytest.approx(0) and slopes == pytest.approx([-advantage / 2, advantage / 2])
    loss, slopes, values = run(GRPO(), scored, [0.65, 0.65])
    assert loss == pytest.approx(-(1.2 * advantage - 1.3 * advantage) / 2)
    assert slopes == pytest.approx([0, 1.3 * advantage / 2]) and values["clip_fraction"] == [1, 0]


def test_equal_rewards_teach_nothing():
    scored = scored_of([0.5, 0.5], [0.5, 0.5], rewards=[1, 1])
    loss, slopes, _ = run(GRPO(), scored, [0.6, 0.4])
    assert loss == 0 and slopes == [0, 0]
    assert GRPO().weigh(scored).metrics == {"reward": 1.0, "informative_share": 0.0}
