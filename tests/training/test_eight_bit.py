"""8-bit states: close to AdamW, the same for any sharding, and saved exactly."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from vicur.models.load import StudentConfig, load_student
from vicur.models.sharding import local, shard
from vicur.training.checkpoint import CheckpointConfig, Checkpoints, load_tensors, newest_whole
from vicur.training.eight_bit import block_size, moment_bytes
from vicur.training.optimizer import Optimizer, OptimizerConfig
from vicur.training.state import RunState

CONFIG = OptimizerConfig(learning_rate=1e-2, states="8bit", max_grad_norm=1e9)


@pytest.fixture
def installed():
    pytest.importorskip("torchao")


needs_torchao = pytest.mark.usefixtures("installed")


@pytest.mark.parametrize(
    "shape, block",
    [
        ((32, 512), 256),
        ((16, 2048), 256),
        ((64, 1152), 128),  # a tower's rows of 1,152 are 9 blocks of 128
        ((512, 16), 16),
        ((64, 3, 2, 16, 16), 256),
        ((2048, 15), None),
        ((4, 512), None),  # small
        ((8192,), None),
    ],
)
def test_blocks_do_not_cross_rows(shape, block):
    parameter = torch.zeros(shape)
    assert block_size(parameter) == block
    assert moment_bytes(parameter) == (4 if block is None else 1 + 4 / block)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 32, bias=False), nn.Linear(32, 4))


def step(module, optimizer, index):
    torch.manual_seed(index)
    module(torch.randn(8, 512)).square().sum().backward()
    optimizer.step(index, optimizer.grad_norm())


@needs_torchao
def test_steps_are_those_of_adamw_up_to_the_codes():
    ours, theirs = model(), model()
    optimizer = Optimizer(ours, CONFIG, 20)
    reference = Optimizer(theirs, OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e9), 20)
    start = [p.detach().clone() for p in ours.parameters()]
    for index in range(20):
        step(ours, optimizer, index)
        step(theirs, reference, index)
    for mine, other, before in zip(ours.parameters(), theirs.parameters(), start, strict=True):
        moved, expected = (mine - before).detach(), (other - before).detach()
        assert (moved - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(ours[0].weight, theirs[0].weight)
    assert optimizer.learning_rates()["learning_rate"] == pytest.approx(1e-2)
    assert all(p.grad is None for p in ours.parameters())


@needs_torchao
def test_the_first_step_is_exact_in_the_moments():
    """After one step a moment is (1 - beta) times the gradient, or its square, in codes."""
    module = model()
    optimizer = Optimizer(module, CONFIG, 1)
    torch.manual_seed(0)
    module(torch.randn(8, 512)).square().sum().backward()
    gradient = module[0].weight.grad.clone()
    optimizer.step(0, optimizer.grad_norm())
    tensors = optimizer.tensors()
    scale = tensors["optimizer.exp_avg_scale.0.weight"]
    largest = gradient.view(32, 2, 256).abs().amax(-1)
    torch.testing.assert_close(scale, (1 - 0.9) * largest, rtol=1e-5, atol=0)
    assert tensors["optimizer.exp_avg_codes.0.weight"].dtype == torch.uint8
    assert tensors["optimizer.exp_avg_codes.0.weight"].float().std() > 10
    assert tensors["optimizer.step.0.weight"] == 1
    assert tensors["optimizer.exp_avg.1.bias"].dtype == torch.float32


@needs_torchao
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_holds_them_exactly(base_folder, tmp_path, dtype):
    """Saved after two steps and loaded into a new student, the third step is the same, bit for bit."""
    students = [load_student(StudentConfig(base_folder, dtype=dtype)) for _ in range(2)]
    optimizers = []
    for loaded in students:
        shard(loaded.policy, "full", torch.device("cpu"))
        optimizers.append(Optimizer(loaded.model, CONFIG, 3))

    def update(which, index):
        torch.manual_seed(index)
        for parameter in optimizers[which].parameters:
            gradient = torch.randn_like(local(parameter.detach()))
            parameter.grad = torch.zeros_like(parameter)
            local(parameter.grad).copy_(gradient)
        optimizers[which].step(index, optimizers[which].grad_norm())

    update(0, 0)
    update(0, 1)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), optimizers[0].tensors)
    checkpoints.save(RunState(step=2))
    checkpoints.finish()
    saved = newest_whole(tmp_path, print)
    load_tensors(saved.path, optimizers[1].tensors())
    codes = [name for name in optimizers[0].tensors() if name.startswith("optimizer.exp_avg_codes.")]
    assert len(codes) > 10
    for which in (0, 1):
        update(which, 2)
    one, two = (optimizer.tensors() for optimizer in optimizers)
    assert one.keys() == two.keys()
    assert all(torch.equal(local(one[name]), local(two[name])) for name in one)


def test_without_torchao_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r"needs torchao: pip install 'vicur\[torchao\]'"):
        Optimizer(model(), CONFIG, 1)
    Optimizer(model(), OptimizerConfig(), 1)
