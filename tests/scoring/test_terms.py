"""The clipped surrogate against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vicur.scoring.terms import clipped_policy, log_prob_advantage, was_clipped


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
