"""The benchmark of a GPU: its code at small size, the shapes of its models, and its count of FLOPs."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import flops
import gpu
import random_models
from vicur.models.augment import addition_to
from vicur.models.load import RecoveryConfig
from vicur.training.state import RunState


def test_the_small_size_runs_the_whole_benchmark(tmp_path, capsys):
    path = tmp_path / "result.json"
    gpu.main(["--small", "--steps", "3", "--sampled-steps", "2", "--output", str(path)])
    result = json.loads(path.read_text())
    assert result["steps"] == {"planned": 3, "run": 3, "sampled": [1, 2], "updates": 3}
    assert result["tokens"]["prompt"] == gpu.SMALL.prompt < result["tokens"]["teacher_prompt"]
    assert 0 < result["tokens"]["longest_response"] <= gpu.SMALL.response
    assert result["settings"]["dtype"] == "bfloat16" and result["settings"]["gradient_checkpointing"]
    seconds = result["seconds"]
    assert [seconds[phase]["steps"] for phase in gpu.PHASES] == [1, 2, 2]
    assert all(seconds[phase]["median"] > 0 for phase in gpu.PHASES)
    memory = result["memory"]
    estimate, measured = memory["estimate_bytes"], memory["allocated_bytes"]
    assert memory["estimate_error_percent"] == pytest.approx(100 * (estimate - measured) / measured)
    assert result["utilisation"] == {"update": None, "gradient": None}  # a CPU has no peak in the table
    printed = capsys.readouterr().out
    assert "| error of the estimate | " in printed and str(path) in printed


def test_the_time_limit_ends_the_run_before_a_step_that_exceeds_it(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(gpu, "STARTED", now)
    meter = gpu.Meter(torch.device("cpu"))
    limit = gpu.Limit(minutes=2, sampled_steps=3, meter=meter)  # 90 seconds of it for the steps
    assert limit.may_sample(1)
    now += 30
    meter._current = {"sampling": 12.0}
    assert limit.continues(RunState())  # 30 seconds used, another 30 fit
    assert limit.may_sample(2)  # 42 seconds are less than half of 90
    now += 31
    meter._current = {"sampling": 12.0}
    assert not limit.may_sample(3)
    assert limit.continues(RunState())  # 61 seconds used; the next step takes 31 - 12 without sampling
    now += 19
    assert not limit.continues(RunState())  # 80 seconds used, and the last step took 19


def test_random_responses_and_a_profile(tmp_path):
    """Without sampling, scoring and update are measured; the profile's step is not in the medians."""
    path, profile = tmp_path / "result.json", tmp_path / "profile.txt"
    gpu.main(
        ["--small", "--steps", "2", "--sampled-steps", "0", "--profile", str(profile), "--output", str(path)]
    )
    result = json.loads(path.read_text())
    assert result["steps"] == {"planned": 2, "run": 2, "sampled": [], "updates": 2}
    assert result["seconds"]["update"]["steps"] == 1
    assert result["seconds"]["sampling"] is None and result["sampled_tokens_per_second"] is None
    assert result["tokens"]["longest_response"] == gpu.SMALL.response
    assert "aten::" in profile.read_text()


def test_the_shapes_are_those_of_qwen3_vl():
    processor = random_models.wide_processor(600)
    counts = {}
    for name, shape in random_models.SHAPES.items():
        config = shape.config(processor)
        counts[name] = addition_to(config, RecoveryConfig())
        assert config.text_config.rope_parameters["mrope_section"] == [24, 20, 20]
    # docs/checkpoints.md, from the configurations of the published checkpoints
    assert counts["2B"].added == 100_663_296 + 4_096 and round(100 * counts["2B"].share, 2) == 4.52
    assert counts["8B"].added == 536_870_912 + 8_192 and round(100 * counts["8B"].share, 2) == 5.77
    assert round(counts["4B"].base / 1e9, 1) == 4.4 and round(counts["32B"].base / 1e9, 1) == 33.4


def test_flops_are_those_that_torch_counts(samples):
    """Matrix products outside attention, of a model without cue recovery."""
    processor = random_models.wide_processor(600)
    shape = random_models.Shape(64, 3, 4, 2, 96, 32, 2, 80, 2, (0,), True, head_dim=16, vocabulary=640)
    config = shape.config(processor)
    model = random_models.random_model(config, torch.float32, torch.device("cpu"))
    inputs = processor(images=[samples[0].images[0].resize((128, 96))], text=["<|image_pad|>"])
    inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
    visual = int((inputs["input_ids"] == config.image_token_id).sum())
    assert visual == 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    products = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution}
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op in products)
    # All tokens go through the head here: one that is not a response would not be counted as such.
    tokens = inputs["input_ids"].shape[1]
    ours = flops.forward_flops(config, flops.Reading(tokens, visual, 0))
    ours["head"] = 2 * tokens * 64 * 640
    assert counted == sum(n for part, n in ours.items() if not part.startswith("attention"))


def test_attention_counts_the_pairs_of_tokens_that_a_causal_mask_leaves():
    processor = random_models.wide_processor(600)
    config = random_models.SHAPES["2B"].config(processor)
    parts = flops.forward_flops(config, flops.Reading(prompt=2048, visual=1800, response=1024))
    # 28 layers; scores and values of 16 heads of 128, two FLOPs each; 3,072 squared over two pairs
    assert parts["attention of the decoder"] == 28 * 2 * 2 * (16 * 128) * 3072**2 / 2
    # 24 blocks; 7,200 patches that all see each other
    assert parts["attention of the vision tower"] == 24 * 2 * 2 * 1024 * 7200**2


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_an_unknown_gpu_has_no_peak(name, peak):
    assert flops.peak_of(name) == peak


def test_results_go_to_the_current_folder_and_not_over_published_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = gpu.result_file({"small": True, "hardware": {"device": "cpu"}})
    assert file.resolve() == tmp_path / "gpu-small-cpu.json"
