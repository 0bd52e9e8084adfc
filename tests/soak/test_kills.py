"""Runs killed at random moments, during a save too, are resumed until they end: the same run."""

from __future__ import annotations

import os
import random
import subprocess
import time

import pytest
from launching import assert_same_run, job, kill, launch, start, write_problems
from report import add_row

STEPS = 12
KILLS = int(os.environ.get("VICUR_SOAK_KILLS", "20"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 20, validation=7)


def run_of(folder, data, *overrides, **special):
    return job(
        *("vicur", folder, data, "training.save_model=true", "training.checkpoints.every=1"),
        *(f"training.evaluate.data={data.with_name('validation.parquet')}", "training.evaluate.every=5"),
        *("teacher.update=ema", *overrides),
        steps=STEPS,
        **special,
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(tmp_path, data, processes):
    launch(processes, [run_of(tmp_path / "whole", data)], tmp_path)
    began = time.perf_counter()
    launch(processes, [run_of(tmp_path / "timed", data)], tmp_path)
    length = time.perf_counter() - began
    moments = random.Random(processes)
    kills = finished = 0
    while kills < KILLS:
        folder = tmp_path / f"run-{finished}"
        process = start(processes, [run_of(folder, data, resume=True)], tmp_path)
        try:
            process.communicate(timeout=moments.uniform(0.3, 1.0) * length)
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            continue
        assert process.returncode == 0
        assert_same_run(folder, tmp_path / "whole", 0.0 if processes == 1 else 1e-6)
        finished += 1
    launch(processes, [run_of(tmp_path / f"run-{finished}", data, resume=True)], tmp_path)
    assert_same_run(tmp_path / f"run-{finished}", tmp_path / "whole", 0.0 if processes == 1 else 1e-6)
    add_row("kills", processes, kills, finished + 1)
