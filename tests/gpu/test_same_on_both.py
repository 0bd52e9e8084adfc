"""What a GPU computes equals what the CPU computes, to rounding: runs, analyses, evaluation."""

from __future__ import annotations

import json
from numbers import Real

import pytest
import torch
from launching import (
    METHODS,
    assert_same_numbers,
    evaluations,
    job,
    launch,
    metrics,
    rollouts,
)

from vicur.cli.main import main

VARIANTS = {
    "plain": (),
    "offloaded": ("training.offload=true", "teacher.offload=true"),
    "in chunks": ("scoring.chunk_tokens=3",),
}
SAMPLED = ("--problems", "4", "sampling.max_new_tokens=12")
MODELS = ("--student", "vicur:tiny-student", "--teacher", "vicur:tiny-teacher")
COMMANDS = {
    "eval": ("eval", "--model", "vicur:tiny-student", "--samples", "2", *SAMPLED, "sampling.temperature=1"),
    "advantage": ("diagnose", "advantage", *MODELS, "--group-size", "2", *SAMPLED),
    "tokens": ("diagnose", "tokens", *MODELS, "--problem", "1", "sampling.max_new_tokens=12"),
    "gradients": ("diagnose", "gradients", *MODELS, *SAMPLED),
    "stability": (
        *("diagnose", "stability", "--model", "vicur:tiny-student", "--problem", "1", "--samples", "3"),
        "sampling.max_new_tokens=12",
    ),
}
UNLIKE = ("seconds", "device", "command", "date", "memory", "hardware", "environment")
"""Names of values that differ between devices by nature."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_runs(tmp_path, data, train, method, variant):
    """The same responses, losses, gradients and evaluations."""
    held_out = data.with_name("validation.parquet")
    settings = (
        *(f"training.evaluate.data={held_out}", "training.evaluate.every=3"),
        "training.observe.of=[visual_advantage,vds,language_kl,visual_kl,gap_split]",
        *VARIANTS[variant],
    )
    if method == "grpo":
        settings = (*settings[:2], *VARIANTS[variant])  # without a teacher nothing is observed
    for device in ("cuda", "cpu"):  # in this order: its process group serves both
        train(method, tmp_path / device, data, f"training.device={device}", *settings)
    cpu, cuda = tmp_path / "cpu", tmp_path / "cuda"
    # GRPO's loss is zero up to rounding while there is one update per rollout.
    names = ("grad_norm", "response_tokens", *(() if method == "grpo" else ("loss",)))
    assert_same_numbers(cuda, cpu, tolerance=1e-3, names=names)
    assert len(metrics(cuda)) == 3
    texts = [[row["response"] for row in rollouts(folder)] for folder in (cuda, cpu)]
    assert texts[0] == texts[1]
    assert_alike(evaluations(cuda), evaluations(cpu))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(tmp_path, data, monkeypatch, name):
    assert_commands_alike(tmp_path, monkeypatch, *COMMANDS[name], "--data", str(data))


def test_attention(tmp_path, data, train, monkeypatch):
    launch(
        1, [job("vicur", tmp_path / "run", data, "training.save_model=true", "student.lora=null")], tmp_path
    )
    model = tmp_path / "run" / "checkpoints" / "final"
    assert_commands_alike(
        tmp_path, monkeypatch, "diagnose", "attention", "--model", str(model), "--data", str(data)
    )


def assert_commands_alike(folder, monkeypatch, *command):
    """Run a command on the GPU and on the CPU, and compare all JSON files that it writes."""
    written = {}
    for device in ("cuda", "cpu"):
        with monkeypatch.context() as patch:
            if device == "cpu":
                patch.setattr(torch.cuda, "is_available", lambda: False)
            assert main([*command, "--output", str(folder / device)]) == 0
        files = sorted((folder / device).rglob("*.json"))
        written[device] = {str(f.relative_to(folder / device)): json.loads(f.read_text()) for f in files}
    assert written["cuda"]
    assert_alike(written["cuda"], written["cpu"])


def assert_alike(ours, theirs, where=""):
    """The same structure, the same texts, and numbers that are equal to rounding."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            if not set(UNLIKE) & set(key.split("_")):
                assert_alike(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(one, other, f"{where}/{index}")
    elif isinstance(ours, Real) and not isinstance(ours, bool):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-4), where
    elif "cuda" not in str(ours):
        assert str(ours).replace("cuda", "cpu") == str(theirs), where
