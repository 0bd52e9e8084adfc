"""The optimizer: its schedule, its groups, and its states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vicur.training.optimizer import Optimizer, OptimizerConfig


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(8, 4, bias=False).to(dtype)


def test_half_precision_is_refused():
    """At 1e-6 the weights of a bfloat16 model would never move: its masters come from sharding."""
    with pytest.raises(ValueError, match=r"weight weight is in torch.bfloat16; it must be in float32"):
        Optimizer(layer(torch.bfloat16), OptimizerConfig(), 1)


def test_parameters_are_not_copied():
    model = layer()
    (parameter,) = Optimizer(model, OptimizerConfig(), 1).parameters
    assert parameter is model.weight


def test_checkpoints_hold_weights_and_states_from_the_start():
    """A checkpoint is loaded into the tensors, which must therefore exist before the first update."""
    model = layer()
    optimizer = Optimizer(model, OptimizerConfig(), 1)
    names = {"student.weight", *(f"optimizer.{key}.weight" for key in ("step", "exp_avg", "exp_avg_sq"))}
    assert set(optimizer.tensors()) == names and not optimizer.tensors()["optimizer.exp_avg.weight"].any()
    plain = layer()
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01)
    for each in (model, plain):
        each(torch.ones(1, 8)).sum().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    reference.step()
    optimizer.step(0, optimizer.grad_norm())
    assert torch.equal(model.weight, plain.weight)
    assert optimizer.tensors()["optimizer.step.weight"] == 1


def test_the_gradient_can_be_measured_and_scaled():
    model = layer()
    optimizer = Optimizer(model, OptimizerConfig(), 1)
    model(torch.ones(2, 8)).sum().backward()
    before = model.weight.grad.clone()
    assert float(optimizer.grad_norm()) == pytest.approx(float(before.norm()))
    optimizer.scale_gradient(0.5)
    torch.testing.assert_close(model.weight.grad, before / 2)


def test_what_is_frozen_is_left_out():
    model = nn.Sequential(layer(torch.bfloat16), layer())
    model[0].requires_grad_(False)
    (own,) = Optimizer(model, OptimizerConfig(), 1).parameters
    assert own is model[1].weight


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    model = layer()
    optimizer = Optimizer(model, OptimizerConfig(), 1)
    (model(torch.ones(1, 8)).sum() * math.inf).backward()
    with pytest.raises(AssertionError, match="must not reach the weights"):
        optimizer.step(0, optimizer.grad_norm())
