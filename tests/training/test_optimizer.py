"""The optimizer on float32 masters, its schedule and its groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vicur.training.optimizer import Optimizer, OptimizerConfig


def layer(dtype):
    torch.manual_seed(0)
    return nn.Linear(8, 4, bias=False).to(dtype)


def update(model, optimizer, inputs, step=0):
    for part in inputs:
        model(part.to(model.weight.dtype)).float().square().sum().backward()
    return optimizer.step(step)


def test_one_step_at_the_published_rate_changes_the_masters_of_a_bfloat16_model():
    """At 1e-6 the weights move; rounded to bfloat16 after each step they would stand still for good."""
    model = layer(torch.bfloat16)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-6, weight_decay=0.0), 1000)
    (master,) = optimizer.parameters
    start, start_model = master.detach().clone(), model.weight.detach().clone()
    inputs = [torch.randn(5, 8)]
    update(model, optimizer, inputs)
    assert master.dtype == torch.float32
    moved = (master - start).abs()
    # AdamW's first step is the learning rate in every entry, to within the rounding of weights near 0.3.
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-6), rtol=0.05, atol=3e-8)
    assert torch.equal(model.weight, start_model)
    for step in range(1, 1000):
        update(model, optimizer, inputs, step)
    assert (model.weight != start_model).float().mean() > 0.5
    assert torch.equal(model.weight, master.bfloat16())


def test_gradients_of_many_micro_batches_add_up_in_float32():
    """Parts of 1/400 each: in bfloat16 the sum would stop growing once a part is below half a step."""
    model, exact = layer(torch.bfloat16), layer(torch.float32)
    optimizer = Optimizer(model, OptimizerConfig(max_grad_norm=1e9), 1)
    (master,) = optimizer.parameters
    part = torch.full((1, 8), 0.05).bfloat16()
    for _ in range(400):
        model(part).float().sum().backward()
        exact(part.float()).sum().backward()
    assert model.weight.grad is None and master.grad is not None
    torch.testing.assert_close(master.grad, exact.weight.grad, rtol=1e-3, atol=0)
    assert float(optimizer.grad_norm()) == pytest.approx(float(exact.weight.grad.norm()), rel=1e-3)
    optimizer.scale_gradient(torch.tensor(0.5))
    torch.testing.assert_close(master.grad, exact.weight.grad / 2, rtol=1e-3, atol=0)


def test_a_float32_model_has_no_second_copy():
    model = layer(torch.float32)
    (own,) = Optimizer(model, OptimizerConfig(), 1).parameters
    assert own is model.weight


def test_what_is_frozen_is_left_out():
    model = nn.Sequential(layer(torch.bfloat16), layer(torch.float32))
    model[0].requires_grad_(False)
    (own,) = Optimizer(model, OptimizerConfig(), 1).parameters
    assert own is model[1].weight


def test_a_gradient_that_is_not_finite_leaves_the_weights():
    model = layer(torch.bfloat16)
    optimizer = Optimizer(model, OptimizerConfig(), 1)
    before = model.weight.detach().clone()
    (model(torch.ones(1, 8).bfloat16()).float().sum() * math.inf).backward()
    with pytest.raises(FloatingPointError, match="gradient of update 1 is"):
        optimizer.step(0)
    assert torch.equal(model.weight, before)
