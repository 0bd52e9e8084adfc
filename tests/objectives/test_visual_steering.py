"""VGS: its two limits, its scale, and which tokens it steers and preserves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.objectives.objective import ScoredTokens
from vicur.objectives.visual_steering import STUDENT_BLIND, VDS, VisualSteeringOPD, derived_scale
from vicur.scoring.term import STUDENT
from vicur.scoring.terms import generalized_jsd, reverse_kl, visual_target_kl


def distributions(seed, count=4):
    torch.manual_seed(seed)
    return [(3 * torch.randn(6, 9, dtype=torch.float64)).log_softmax(-1) for _ in range(count)]


@given(st.integers(0, 2**31))
def test_a_teacher_that_sees_nothing_pulls_towards_the_blind_student(seed):
    """q0 = q: l_vis = KL(p || p0)."""
    p, p0, q, _ = distributions(seed)
    torch.testing.assert_close(visual_target_kl(p, p0, q, q), reverse_kl(p, p0))


@given(st.integers(0, 2**31))
def test_a_student_with_the_teachers_prior_gets_the_standard_term(seed):
    """p0 = q0: l_vis = l_std."""
    p, p0, q, _ = distributions(seed)
    torch.testing.assert_close(visual_target_kl(p, p0, q, p0), reverse_kl(p, q))


@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_jsd_turned_round(seed, beta):
    p, q, *_ = distributions(seed)
    torch.testing.assert_close(generalized_jsd(p, q, 0.5), generalized_jsd(q, p, 0.5))
    torch.testing.assert_close(generalized_jsd(p, q, beta), generalized_jsd(q, p, 1 - beta))
    assert (generalized_jsd(p, q, beta) >= 0).all()
    torch.testing.assert_close(generalized_jsd(p, p, beta), torch.zeros(6).double())


def test_the_blind_student_in_the_target_carries_a_gradient_only_if_asked():
    p, p0, q, q0 = distributions(0)
    p0.requires_grad_()
    assert not visual_target_kl(p, p0, q, q0).requires_grad
    live = visual_target_kl(p, p0, q, q0, detach_prior=False)
    torch.testing.assert_close(live, visual_target_kl(p, p0, q, q0))
    # d KL(p || q*) / d log p0_v = q*_v - p_v
    (gradient,) = torch.autograd.grad(live.sum(), p0)
    target = (p0 + q - q0).softmax(-1)
    torch.testing.assert_close(gradient, (target - p.exp()).detach())
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("ratio, published", [(0.80, 0.41), (0.98, 0.36)])
def test_the_published_scales(ratio, published):
    assert round(derived_scale(2.0, ratio), 2) == published
    assert VisualSteeringOPD(norm_ratio=ratio).fixed_scale == derived_scale(2.0, ratio)
    assert derived_scale(0.0, ratio) == 1.0


def scored_of(vds):
    index = torch.arange(len(vds))
    return ScoredTokens(index, index, divergences={VDS: torch.tensor(vds, dtype=torch.float64)})


def weights_of(objective, vds):
    terms = {term.name: term for term in objective.weigh(scored_of(vds)).terms}
    return {
        name: (term.weights * len(vds)).tolist() for name, term in terms.items() if term.weights is not None
    }


VALUES = [float(i) for i in range(11)]  # quantiles 0.4 and 0.7 are 4 and 7


def test_preserved_tokens_lie_above_the_quantile_and_count_in_the_mean_of_all():
    result = weights_of(VisualSteeringOPD(scale=1.0, beta=0.5), VALUES)
    assert result["language_kl"] == pytest.approx([0.0] * 8 + [0.5] * 3)
    assert result["visual_kl"] == pytest.approx([2.0] * 11)
    assert result["standard_kl"] == pytest.approx([1.0] * 11)


def test_adaptive_steering_has_two_steps():
    result = weights_of(VisualSteeringOPD(scale=1.0, adaptive=True), VALUES)
    assert result["visual_kl"] == pytest.approx([0.0] * 5 + [1.0] * 3 + [2.0] * 3)


def test_language_steering_exchanges_the_two():
    objective = VisualSteeringOPD(scale=1.0, steering="language", beta=0.5)
    result = weights_of(objective, VALUES)
    assert result["language_kl"] == pytest.approx([2.0] * 11)
    assert result["visual_kl"] == pytest.approx([0.0] * 8 + [0.5] * 3)
    live = {term.name: term.live for term in objective.weigh(scored_of(VALUES)).terms}
    assert live == {
        "standard_kl": (STUDENT,),
        "language_kl": (STUDENT_BLIND,),
        "visual_kl": (STUDENT,),
    }
    terms = replace(objective, detach_prior=False).weigh(scored_of(VALUES)).terms
    assert {term.name: term.live for term in terms} == {**live, "visual_kl": (STUDENT, STUDENT_BLIND)}


def test_tokens_that_tie_with_a_quantile_are_treated_alike():
    """Responses to a problem share their first token, and so its VDS, up to rounding: here 4 at the lower
    quantile and 7 at the upper one, three tokens each."""
    vds = [1.0, 2.0, 3.0, 4.0 - 4e-6, 4.0, 4.0 + 4e-6, 7.0 - 7e-6, 7.0, 7.0 + 7e-6, 8.0, 9.0]
    for objective in (VisualSteeringOPD(scale=1.0, beta=0.5, adaptive=True),):
        result = weights_of(objective, vds)
        assert result["visual_kl"] == pytest.approx([0.0] * 6 + [1.0] * 3 + [2.0] * 2)
        assert result["language_kl"] == pytest.approx([0.0] * 9 + [0.5] * 2)


def test_nothing_runs_that_no_term_reads():
    plain = VisualSteeringOPD(alpha=0.0, beta=0.0).needs(0)
    assert STUDENT_BLIND not in plain.distributions and not plain.divergences
    assert VDS in VisualSteeringOPD().needs(0).divergences
    assert not VisualSteeringOPD(beta=0.0).needs(0).divergences


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steering": "language"}, "derived holds for visual steering only"),
        ({"lower_quantile": 0.8}, "must be at most upper_quantile"),
        ({"scale": "measured", "standard": 0.0}, "with standard=0 set a number"),
        ({"standard": 0.0}, "scale=derived compares with the standard gradient"),
        ({"standard": 0.0, "alpha": 0.0, "beta": 0.0, "scale": 1.0}, "one of standard, alpha and beta"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"weight": 0.0}, "weight must be above 0"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        VisualSteeringOPD(**settings)
