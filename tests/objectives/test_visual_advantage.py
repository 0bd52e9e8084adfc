"""VA-OPD: the published example, and what its settings do to the weights."""

from __future__ import annotations

import pytest
import torch

import vicur.objectives.visual_advantage as module
from vicur.objectives.objective import TEACHER_PLAIN, ScoredTokens
from vicur.objectives.visual_advantage import TEACHER_DEGRADED, VisualAdvantageOPD, rollout_weights


def scored_of(*responses, prompts=None, draws=None):
    """Responses by the visual advantage of their tokens; all of one prompt unless said otherwise."""
    lengths = torch.tensor([len(own) for own in responses])
    flat = torch.tensor([a for own in responses for a in own], dtype=torch.float64)
    index = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    prompt_index = torch.zeros(len(lengths), dtype=torch.long) if prompts is None else torch.tensor(prompts)
    looks = {TEACHER_PLAIN: torch.zeros_like(flat), TEACHER_DEGRADED: -flat}
    return ScoredTokens(index, prompt_index, looks, draws=draws)


def weights_of(objective, scored):
    """The weight of every token in the one term."""
    (term,) = objective.weigh(scored).terms
    return term.weights


def test_the_papers_example():
    """VA-OPD figure 3: mean VA .045 .030 .020 .010 gives the weights .656 .206 .095 .044."""
    means = torch.tensor([0.045, 0.030, 0.020, 0.010], dtype=torch.float64)
    result = rollout_weights(means, torch.zeros(4, dtype=torch.long))
    assert [round(w, 3) for w in result.tolist()] == [0.656, 0.206, 0.095, 0.044]
    # The same from tokens whose VA only has that mean.
    scored = scored_of([0.09, 0.0], [0.03], [0.06, 0.0, 0.0], [0.01, 0.01])
    sums = (
        torch.zeros(4).double().index_add_(0, scored.response_index, weights_of(VisualAdvantageOPD(), scored))
    )
    torch.testing.assert_close(sums, result)


def test_negative_advantage_is_none():
    advantage = VisualAdvantageOPD().weigh(scored_of([0.5, -0.5])).tokens["visual_advantage"]
    assert advantage.tolist() == [0.5, 0.0]


def test_high_and_low_tokens_are_averaged_apart():
    """Five tokens: one high, four low; lambda .5 gives it .5 and the others .125 each."""
    objective = VisualAdvantageOPD()
    assert weights_of(objective, scored_of([0, 1, 0, 0, 0])).tolist() == [0.125, 0.5, 0.125, 0.125, 0.125]
    assert weights_of(objective, scored_of([0.2])).tolist() == [1.0]  # no low token: all the mass is high


def test_weights_of_a_prompt_sum_to_its_share():
    scored = scored_of([1, 0, 3], [0, 0], [2, 1, 1, 0, 0, 0], [5], prompts=[0, 0, 1, 1])
    for objective in (VisualAdvantageOPD(), VisualAdvantageOPD(grouped=False, rollout_weights=False)):
        weights = weights_of(objective, scored)
        assert weights.sum().item() == pytest.approx(1.0)
        assert weights[:5].sum().item() == pytest.approx(0.5)


def test_both_halves_off_is_the_mean_of_response_means():
    weights = weights_of(
        VisualAdvantageOPD(grouped=False, rollout_weights=False), scored_of([3, 1], [0, 0, 0])
    )
    assert weights.tolist() == pytest.approx([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6])


@pytest.mark.parametrize("drop, gone", [("top", [1]), ("lowest", [0]), ("random", [2]), ("none", [])])
def test_dropped_tokens_leave_the_denominator(drop, gone):
    draws = torch.tensor([0.1, 0.2, 0.9, 0.4], dtype=torch.float64)
    objective = VisualAdvantageOPD(grouped=False, rollout_weights=False, drop=drop)
    weights = weights_of(objective, scored_of([0.0, 0.9, 0.2, 0.1], draws=draws)).tolist()
    assert weights == [0.0 if i in gone else 0.25 for i in range(4)]


def test_dropping_nothing_drops_nothing():
    objective = VisualAdvantageOPD(drop="top", drop_fraction=0.0)
    assert weights_of(objective, scored_of([0.0, 0.9, 0.2])).sum().item() == pytest.approx(1.0)


def test_one_response_per_prompt_must_be_configured():
    assert VisualAdvantageOPD().needs(0).group_size == 2
    assert VisualAdvantageOPD(rollout_weights=False).needs(0).group_size == 1


def test_recorded_range_of_weights():
    result = VisualAdvantageOPD().weigh(scored_of([1.0], [0.0], [4.0], [4.0], prompts=[0, 0, 1, 1])).metrics
    assert result["rollout_weight_max"] == pytest.approx(2 / (1 + 2.718281828**-2), rel=1e-4)
    assert result["rollout_weight_min"] == pytest.approx(2 - result["rollout_weight_max"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"top_fraction": 1.5}, "top_fraction must be at most 1"),
        ({"rollout_temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        VisualAdvantageOPD(**settings)


def test_visual_advantage_is_computed_once_per_update(monkeypatch):
    calls = []

    def counted(log_prob, degraded_log_prob):
        calls.append(len(log_prob))
        return (log_prob - degraded_log_prob).clamp(min=0)

    monkeypatch.setattr(module, "visual_advantage", counted)
    VisualAdvantageOPD(drop="top").weigh(scored_of([1.0, 0.0], [0.5]))
    assert calls == [3]
