"""The sampled-token objective: reduction, splits, and a gradient worked out by hand."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.objectives.objective import ScoredTokens
from vicur.objectives.reduction import mean_weights
from vicur.objectives.sampled import SampledTokenOPD


def scored_of(lengths, seed=0):
    torch.manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    old, teacher = -3 * torch.rand(len(index)), -3 * torch.rand(len(index))
    return ScoredTokens(index, old.double(), teacher.double())


def test_token_and_sequence_means():
    index = torch.tensor([0, 0, 0, 1])
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert (mean_weights(index, "token") * values).sum().item() == pytest.approx(4.0)
    assert (mean_weights(index, "sequence") * values).sum().item() == pytest.approx(6.0)


def test_on_policy_gradient_is_minus_the_advantage():
    """At ratio 1: loss = -mean A, and d loss / d log p_t = -A_t / N."""
    scored = scored_of([2, 1])
    log_probs = scored.old_log_probs.clone().requires_grad_()
    objective = SampledTokenOPD()
    loss = (objective.weigh(scored) * objective.terms(log_probs, scored)).sum()
    loss.backward()
    advantage = scored.teacher_log_probs - scored.old_log_probs
    assert loss.item() == pytest.approx(-advantage.mean().item())
    torch.testing.assert_close(log_probs.grad, -advantage / 3)


def test_advantage_at_start_or_current():
    scored = scored_of([4])
    moved = scored.old_log_probs - 0.1
    at_start = SampledTokenOPD(advantage_at="start").metrics(moved, scored)["advantage"]
    current = SampledTokenOPD().metrics(moved, scored)["advantage"]
    torch.testing.assert_close(current - at_start, torch.full((4,), 0.1, dtype=torch.float64))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.sampled_from(["token", "sequence"]),
    st.data(),
)
def test_any_split_gives_the_same_loss_and_gradient(lengths, aggregation, data):
    scored, objective = scored_of(lengths), SampledTokenOPD(aggregation=aggregation)
    weights = objective.weigh(scored)
    start = scored.old_log_probs + 0.3 * torch.randn(len(scored)).double()

    def run(edges):
        log_probs = start.clone().requires_grad_()
        total = 0.0
        for first, last in itertools.pairwise(edges):
            part = slice(first, last)
            loss = (weights[part] * objective.terms(log_probs[part], scored.part(part))).sum()
            loss.backward()  # an empty part is an honest zero with a graph
            total += loss.item()
        return total, log_probs.grad

    cuts = data.draw(st.lists(st.integers(0, len(scored)), max_size=4))
    whole, split = run([0, len(scored)]), run([0, *sorted(cuts), len(scored)])
    assert split[0] == pytest.approx(whole[0])
    torch.testing.assert_close(split[1], whole[1])


def test_same_model_same_view_gives_no_signal(shared_student, samples, responses):
    from vicur.data.views import Hinted, Plain
    from vicur.scoring.scorer import Scorer

    ids = [[r] for r in responses]
    student, teacher = (
        Scorer(loaded).log_probs(samples, ids, Plain(), samples_per_batch=size)
        for loaded, size in ((shared_student, 3), (copy.deepcopy(shared_student), 6))
    )
    index = torch.repeat_interleave(torch.arange(6), torch.tensor([len(r) for r in responses]))
    scored, objective = ScoredTokens(index, student, teacher), SampledTokenOPD()
    assert (objective.weigh(scored) * objective.terms(student, scored)).sum().abs() < 1e-5
    hinted = Scorer(shared_student).log_probs(samples, ids, Hinted("cue"), samples_per_batch=3)
    assert (hinted - student).abs().max() > 1e-2  # the control: another view is seen
