"""Several processes over gloo give the numbers of one, for every published method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vicur.cuebench.generate import write_parquet

RANKS = Path(__file__).with_name("ranks.py")
STEPS = int(os.environ.get("VICUR_SOAK_STEPS", "3"))
METHODS = {
    "vicur": ("cuebench/opsd_cue_recovery", []),
    "va_opd": ("cuebench/va_opd", []),
    "vgs": ("cuebench/vgs", []),
    "grpo": (
        "cuebench/opsd_cue",
        [
            "objective.sampled_token=null",
            "objective.grpo.clip.low=0.2",
            f"rewards.function={__file__}:reward",
            "training.prompts_per_update=4",
        ],
    ),
}


def reward(response, gold, meta):
    """Differs within a group, so that there is an advantage."""
    return sum(map(ord, response)) % 3 / 2


def launch(processes, jobs, folder, *, check=True, timeout=600):
    """Run jobs in this many processes."""
    file = folder / f"jobs-{processes}.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(RANKS), str(file)],
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_parquet("segments", "train", 24, path)
    return path


def job(method, folder, data, *overrides, resume=False):
    recipe, special = METHODS[method]
    common = [
        f"training.output={folder}",
        f"data.train={data}",
        "training.prompts_per_step=8",
        f"training.steps={STEPS}",
        "training.save_model=false",
        "training.device=cpu",
        "training.checkpoints.every=null",
        "rollout.group_size=4",
        "rollout.sampling.max_new_tokens=6",
        "optimizer.learning_rate=1e-6",
    ]
    return {
        "recipe": recipe,
        "overrides": [*common, *special, *overrides],
        "resume": resume,
        "exact": True,
    }


def metrics(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def assert_same_numbers(folder, reference, tolerance=1e-5):
    pairs = list(zip(metrics(folder), metrics(reference), strict=True))
    assert len(pairs) == STEPS
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name in ("loss", "grad_norm", "response_tokens", "rollout_accuracy"):
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=1e-9), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Every method in one process and in two, sharded and replicated."""
    folder = tmp_path_factory.mktemp("runs")
    launch(1, [job(m, folder / f"{m}-1", data) for m in METHODS], folder)
    two = [
        job(m, folder / f"{m}-2-{sharding}", data, f"training.sharding={sharding}")
        for m in METHODS
        for sharding in ("full", "replicated")
    ]
    launch(2, two, folder)
    return folder


@pytest.mark.parametrize("sharding", ["full", "replicated"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_numbers_of_one(runs, method, sharding):
    assert_same_numbers(runs / f"{method}-2-{sharding}", runs / f"{method}-1")
