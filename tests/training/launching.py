"""Launches runs in one process or several, and compares what they have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from vicur.cuebench.generate import write_parquet

RANKS = Path(__file__).with_name("ranks.py")
CALLING = Path(__file__).with_name("calling.py")
METHODS = {
    "vicur": ("cuebench/opsd_cue_recovery", ()),
    "va_opd": ("cuebench/va_opd", ()),
    "vgs": ("cuebench/vgs", ()),
    "grpo": (
        "cuebench/opsd_cue",
        (
            "objective.sampled_token=null",
            "objective.grpo.clip.low=0.2",
            f"rewards.function={__file__}:reward",
            "training.prompts_per_update=4",
        ),
    ),
}


def reward(response, gold, meta):
    """Differs within a group, so that there is an advantage."""
    return sum(map(ord, response)) % 3 / 2


def write_problems(folder, count, validation=0):
    """Write CueBench problems to train.parquet, and held-out ones to validation.parquet beside it."""
    path = folder / "train.parquet"
    write_parquet("segments", "train", count, path)
    if validation:
        write_parquet("segments", "validation", validation, path.with_name("validation.parquet"))
    return path


def job(method, folder, data, *overrides, steps=3, **special):
    """A job for `ranks.py`: a few steps of a method with four responses to each problem."""
    recipe, own_settings = METHODS[method]
    common = (
        f"training.output={folder}",
        f"data.train={data}",
        "training.prompts_per_step=8",
        f"training.steps={steps}",
        "training.save_model=false",
        "training.device=cpu",
        "training.checkpoints.every=null",
        "rollout.group_size=4",
        "rollout.sampling.max_new_tokens=6",
        "optimizer.learning_rate=1e-6",
    )
    return {"recipe": recipe, "overrides": [*common, *own_settings, *overrides], **special}


def start(processes, jobs, folder):
    """Start jobs in this many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"jobs-{len(list(folder.glob('jobs-*')))}.json"
    file.write_text(json.dumps(jobs))
    return start_python(processes, RANKS, file)


def start_python(processes, *arguments):
    """Start Python in this many processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process):
    """Kill a process and all that it has started: torchrun's death alone leaves its ranks running."""
    tree = [process.pid]
    for pid in tree:
        with suppress(OSError):
            tree += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in tree:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def launch(processes, jobs, folder, *, succeeds=True):
    """Run jobs to their end; what they printed."""
    return finish(start(processes, jobs, folder), succeeds=succeeds)


def call(processes, function, *texts):
    """Call a test module's function in each of this many ranks; what they printed."""
    return finish(start_python(processes, CALLING, function.__module__, function.__name__, *texts))


def finish(process, *, succeeds=True):
    """Wait for the end of the processes; what they printed."""
    output, _ = process.communicate(timeout=1800)
    assert (process.returncode == 0) == succeeds, output[-4000:]
    return output


def metrics(folder):
    """The lines of metrics, without times."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def rollouts(folder):
    """All recorded responses."""
    files = sorted((Path(folder) / "rollouts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def weights(folder):
    """The weights of the final model."""
    return load_file(Path(folder) / "checkpoints" / "final" / "model.safetensors")


def assert_same_numbers(folder, reference, tolerance=1e-5, names=("loss", "grad_norm", "response_tokens")):
    """Every step has the same numbers; the largest relative difference of loss and gradient norm."""
    worst = 0.0
    for one, other in zip(metrics(folder), metrics(reference), strict=True):
        assert one.keys() == other.keys()
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=1e-9), (one["step"], name)
            worst = max(worst, abs(one[name] - other[name]) / max(abs(other[name]), 1e-9))
    return worst


def assert_same_run(folder, reference, tolerance=0.0):
    """Same metrics, rollouts, validation and final weights; bit by bit without a tolerance."""
    ours, theirs = weights(folder), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        distance = float((weight - theirs[name]).abs().max())
        assert distance <= tolerance * float(theirs[name].abs().max()), name
    texts = [[row["response"] for row in rollouts(each)] for each in (folder, reference)]
    assert texts[0] == texts[1]
    validation = [(Path(each) / "evaluation.jsonl").read_text() for each in (folder, reference)]
    if tolerance:
        assert_same_numbers(folder, reference, tolerance)
    else:
        assert metrics(folder) == metrics(reference) and rollouts(folder) == rollouts(reference)
        assert validation[0] == validation[1]
