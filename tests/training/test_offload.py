"""Weights in CPU memory: offloaded students and teachers take the same steps, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import call, finish, start_python, write_problems
from rich.console import Console
from torch.distributed.fsdp import FSDPModule

from vicur.models.sharding import local
from vicur.progress import Progress
from vicur.run.build import build
from vicur.run.recipe import load_recipe, to_yaml
from vicur.training.checkpoint import CheckpointConfig, Checkpoints
from vicur.training.records import Records
from vicur.training.state import RunState

OFFLOADED = ("training.offload=true", "teacher.offload=true")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 16)


def overrides(folder, model, data, *more):
    return [
        f"student.model={model}",
        f"data.train={data}",
        f"training.output={folder}",
        "training.prompts_per_step=4",
        "training.steps=3",
        "training.save_model=false",
        "optimizer.learning_rate=1e-3",
        "rollout.sampling.max_new_tokens=6",
        *more,
    ]


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def run(folder, model, data, *more):
    recipe = load_recipe("cuebench/opsd_cue_recovery", overrides(folder, model, data, *more))
    assembled = build(recipe)
    with Records(Path(folder), to_yaml(recipe)) as records:
        assembled.trainer.train(records, Progress("", Console(quiet=True)))
    return assembled


def run_on_two(folder, model, data, *more):
    """The same run as the command line starts it on two processes."""
    settings = overrides(folder, model, data, *more)
    finish(start_python(2, "-m", "vicur", "train", "cuebench/opsd_cue_recovery", *settings))


def assert_same(found, expected, tolerance):
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "gap_whole"):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=1e-7), name


@pytest.mark.parametrize("update", ["frozen", "ema"])
def test_offloading_changes_nothing(tmp_path, base_folder, data, update):
    """And all of it is FSDP2's: offloaded weights are sharded ones, also in a single process."""
    average = (f"teacher.update={update}", "teacher.ema_decay=0.5")
    run(tmp_path / "plain", base_folder, data, *average)
    assembled = run(tmp_path / "offloaded", base_folder, data, *average, *OFFLOADED)
    assert_same(metrics(tmp_path / "offloaded"), metrics(tmp_path / "plain"), 1e-5)
    scoring = assembled.trainer.scoring
    for policy in (scoring.student.policy, scoring.teacher.loaded.policy):
        assert isinstance(policy, FSDPModule)
        assert all(local(parameter).device.type == "cpu" for parameter in policy.parameters())
        offload = policy._get_fsdp_state()._fsdp_param_group.offload_policy
        assert type(offload).__name__ == "CPUOffloadPolicy"


def test_two_processes_offload_too(tmp_path, data):
    student = "vicur:tiny-student"  # a trained one, as the preflight requires
    run(tmp_path / "one", student, data)
    run_on_two(tmp_path / "two", student, data, *OFFLOADED)
    assert_same(metrics(tmp_path / "two"), metrics(tmp_path / "one"), 1e-5)


def save_after_two_steps(base_folder, folder):
    optimizer = optimizer_after_steps(base_folder, range(2))
    checkpoints = Checkpoints(Path(folder), CheckpointConfig(), optimizer.tensors)
    checkpoints.save(RunState(step=2))
    checkpoints.finish()


def optimizer_after_steps(folder, steps, checkpoint=None):
    """A sharded student's optimizer with 8-bit states, after steps with known gradients."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    from vicur.models.load import StudentConfig, load_student
    from vicur.models.sharding import shard
    from vicur.training.checkpoint import load_tensors
    from vicur.training.optimizer import Optimizer, OptimizerConfig

    loaded = load_student(StudentConfig(folder, dtype="bfloat16"))
    shard(loaded.policy, "full", torch.device("cpu"))
    config = OptimizerConfig(learning_rate=1e-2, states="8bit", max_grad_norm=1e9)
    optimizer = Optimizer(loaded.model, config, 3)
    if checkpoint is not None:
        load_tensors(checkpoint, optimizer.tensors())
    for index in steps:
        torch.manual_seed(index)
        for parameter in optimizer.parameters:
            assert isinstance(parameter, DTensor)
            gradient = torch.randn(parameter.shape)
            parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        optimizer.step(index, optimizer.grad_norm())
    return optimizer


def test_eight_bit_states_of_two_ranks_are_resumed_on_one(tmp_path, base_folder):
    """Blocks do not depend on the shards: those saved on two ranks are those of one, bit for bit."""
    pytest.importorskip("torchao")
    call(2, save_after_two_steps, base_folder, tmp_path)
    resumed = optimizer_after_steps(base_folder, [2], tmp_path / "checkpoints" / "step-000002").tensors()
    expected = optimizer_after_steps(base_folder, range(3)).tensors()
    assert any("_codes." in name for name in expected) and resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(local(resumed[name]), local(tensor)), name
