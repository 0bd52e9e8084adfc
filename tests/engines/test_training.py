"""Whole commands with engine=vllm against engine=torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from comparing import BOUND

from vicur.cuebench.generate import write_parquet

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_parquet("segments", "train", 1280, folder / "train.parquet")
    write_parquet("segments", "test", 200, folder / "test.parquet")
    return folder


def run(*words, processes=1):
    """A command of vicur, and what it prints."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "vicur", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def train(folder, data, *overrides, processes=1):
    """A run of OPSD with a cue and recovery; its metrics and its accuracy at the end."""
    run(
        *("train", "cuebench/opsd_cue_recovery", f"data.train={data / 'train.parquet'}"),
        *(f"training.output={folder}", f"training.evaluate.data={data / 'test.parquet'}", *overrides),
        processes=processes,
    )
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = max(line["step"] for line in metrics)
    table = pq.read_table(folder / "evaluation" / f"step-{steps:06d}.parquet").to_pylist()
    return metrics, [row["correct"] for row in table]


def test_twenty_steps_on_either_engine(tmp_path, data, report):
    steps = "training.steps=20"
    torch_metrics, torch_correct = train(tmp_path / "torch", data, steps)
    vllm_metrics, vllm_correct = train(tmp_path / "vllm", data, steps, "rollout.engine=vllm")
    assert len(vllm_metrics) == 20
    mean = max(line["engine_difference"] for line in vllm_metrics)
    assert report("20 steps of training, largest mean of a step", mean) <= BOUND
    # Trained logits are large: the trainer itself is 1.4e-5 from float64 then (docs/engines.md).
    largest = max(line["engine_difference_max"] for line in vllm_metrics)
    assert report("20 steps of training, largest of all tokens", largest) <= 5 * BOUND
    assert "engine_difference" not in torch_metrics[0]
    # The problems are the same and the samples are not: the difference of the accuracies is noise, of which
    # 95 % is within two standard errors of paired answers.
    differences = [int(a) - int(b) for a, b in zip(torch_correct, vllm_correct, strict=True)]
    count, mean = len(differences), sum(differences) / len(differences)
    error = (sum((d - mean) ** 2 for d in differences) / (count - 1) / count) ** 0.5
    assert abs(mean) <= 2 * error + 1e-9, f"{100 * mean:+.1f} points, standard error {100 * error:.1f}"


def test_two_ranks_with_sharded_weights(tmp_path, data):
    overrides = ("rollout.engine=vllm", "training.steps=2", "training.evaluate.problems=20")
    one, _ = train(tmp_path / "one", data, *overrides)
    two, _ = train(tmp_path / "two", data, *overrides, processes=2)
    for first, second in zip(one, two, strict=True):
        assert second["engine_difference"] <= BOUND
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-4)


def test_a_study_starts_an_engine_for_each_run(tmp_path):
    run(
        *("study", "quickstart", f"output={tmp_path / 'study'}", "steps=2", "test_problems=20"),
        *("only=[opsd_cue,opsd_cue_recovery]", "rollout.engine=vllm", "training.checkpoints.every=1"),
    )
    for name in ("opsd_cue", "opsd_cue_recovery"):
        (folder,) = (tmp_path / "study").rglob(f"{name}/metrics.jsonl")
        metrics = [json.loads(line) for line in folder.read_text().splitlines()]
        assert [line["step"] for line in metrics] == [1, 2]
        assert all(line["engine_difference"] <= BOUND for line in metrics)


def test_eval_answers_the_same(tmp_path, data):
    tables = []
    for engine in ("torch", "vllm"):
        output = tmp_path / f"{engine}.parquet"
        run(
            *("eval", "--model", "vicur:tiny-student", "--data", data / "test.parquet", "problems=60"),
            *("sampling.max_new_tokens=48", "--output", output, f"engine={engine}"),
        )
        tables.append(pq.read_table(output).to_pylist())
    assert [row["response"] for row in tables[0]] == [row["response"] for row in tables[1]]


def test_cues_are_built_with_it(tmp_path, data):
    output = tmp_path / "cues.parquet"
    run(
        *("cues", "build", "--data", data / "test.parquet", "--output", output, "backend=local"),
        *("model=vicur:tiny-teacher", "engine=vllm", "problems=6", "asking.max_tokens=16", "replace=true"),
        *("new_column=hint", "write_partial=true", "stop_after_failures=100", "tries=1"),
    )
    assert pq.read_table(output).num_rows == 6
