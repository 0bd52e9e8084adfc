"""The clipped surrogate against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vicur.objectives.policy import ESTIMATORS
from vicur.scoring.terms import clipped_policy, forward_kl, k3, log_prob_advantage, was_clipped


def test_advantage_is_clamped_and_detached():
    teacher = torch.tensor([-1.0, -30.0, -0.5])
    student = torch.tensor([-2.0, -1.0, -25.0], requires_grad=True)
    advantage = log_prob_advantage(teacher, student)
    assert advantage.tolist() == [1.0, -10.0, 10.0]
    assert not advantage.requires_grad


# ratio, advantage, loss, d loss / d log p. Outside the clip the gradient is 0; inside it is -r A.
CASES = [
    (1.0, 2.0, -2.0, -2.0),  # on policy
    (1.1, 2.0, -2.2, -2.2),  # inside
    (1.5, 2.0, -2.4, 0.0),  # above, A > 0: clipped at 1.2
    (0.5, 2.0, -1.0, -1.0),  # below, A > 0: the pessimistic branch is the plain one
    (1.0, -2.0, 2.0, 2.0),
    (0.5, -2.0, 1.6, 0.0),  # below, A < 0: clipped at 0.8
    (1.5, -2.0, 3.0, 3.0),  # above, A < 0: plain
    (4.0, -2.0, 6.0, 0.0),  # above 3, A < 0: dual clip at 3 |A|
    (4.0, 2.0, -2.4, 0.0),
    (1.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize("ratio, advantage, loss, gradient", CASES)
def test_clipped_policy(ratio, advantage, loss, gradient):
    old = torch.tensor([-1.3], dtype=torch.float64)
    log_prob = (old + math.log(ratio)).requires_grad_()
    term = clipped_policy(log_prob, old, torch.tensor([advantage], dtype=torch.float64))
    term.sum().backward()
    assert term.item() == pytest.approx(loss, abs=1e-9)
    assert log_prob.grad.item() == pytest.approx(gradient, abs=1e-9)


def test_asymmetric_clip_and_its_fraction():
    old = torch.zeros(4)
    log_prob = torch.tensor([1.25, 1.35, 0.85, 0.75]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    term = clipped_policy(log_prob, old, advantage, clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(term, torch.tensor([-1.25, -1.28, 0.85, 0.8]))
    fraction = was_clipped(log_prob, old, advantage, clip_low=0.2, clip_high=0.28)
    assert fraction.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_log_ratio_is_clamped():
    term = clipped_policy(torch.tensor([0.0]), torch.tensor([-100.0]), torch.tensor([-1.0]), dual_clip=1e12)
    assert term.item() == pytest.approx(math.exp(20), rel=1e-5)


def test_the_gradient_of_the_forward_kl_is_the_teachers_mean_of_the_students_scores():
    """-sum_v q_v d log p_v / d logits = p - q (ViCuR eq. 34)."""
    torch.manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(4, 7, dtype=torch.float64).log_softmax(-1)
    (gradient,) = torch.autograd.grad(forward_kl(logits.log_softmax(-1), log_q).sum(), logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - log_q.exp()).detach())


# d = log r - log p; at either bound the gradient, 1 - e^d, is cut off.
@pytest.mark.parametrize(
    "d, value, slope",
    [
        (0.5, math.exp(0.5) - 1.5, 1 - math.exp(0.5)),
        (-3.0, math.exp(-3) + 2, 1 - math.exp(-3)),
        (5.0, 10.0, 0.0),
        (-15.0, 10.0, 0.0),
        (-60.0, 10.0, 0.0),
    ],
)
def test_clamped_k3(d, value, slope):
    log_prob = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    result = ESTIMATORS["k3"](log_prob, torch.tensor([-2.0 + d], dtype=torch.float64))
    result.sum().backward()
    assert result.item() == pytest.approx(value) and log_prob.grad.item() == pytest.approx(slope)


def test_k3_by_itself_has_no_bound():
    log_prob = torch.zeros(1, dtype=torch.float64)
    assert k3(log_prob, log_prob + 5).item() == pytest.approx(math.exp(5) - 6)
