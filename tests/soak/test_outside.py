"""A disk that fills in the middle of a save, and a rank that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from launching import assert_same_run, job, launch, start, write_problems
from report import add_row

from vicur.training.checkpoint import newest_whole

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 20)


def run_of(folder, data, *overrides, **special):
    settings = ("training.save_model=true", "training.checkpoints.every=1", *overrides)
    return job("vicur", folder, data, *settings, steps=STEPS, **special)


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for two checkpoints and half of a third."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_during_a_save(tmp_path, small_disk, data, processes):
    launch(processes, [run_of(tmp_path / "whole", data)], tmp_path)
    run, keep = small_disk / "run", "training.checkpoints.keep=null"
    output = launch(processes, [run_of(run, data, keep)], tmp_path, succeeds=False)
    saved = newest_whole(run, print)
    assert "No space left on device" in output and str(run) in output and saved is not None
    add_row("full disk", processes, saved.state.step)
    subprocess.run(["mount", "-o", "remount,size=500m", str(small_disk)], check=True)
    launch(processes, [run_of(run, data, keep, resume=True)], tmp_path)
    assert_same_run(run, tmp_path / "whole", 0.0 if processes == 1 else 1e-6)


def test_a_rank_that_is_killed_ends_the_job(tmp_path, data):
    launch(2, [run_of(tmp_path / "whole", data)], tmp_path)
    run = tmp_path / "run"
    process = start(2, [run_of(run, data)], tmp_path)
    while process.poll() is None and not (run / "checkpoints" / "step-000001").is_dir():
        pass
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    process.communicate(timeout=120)  # and not an hour, the timeout of a collective
    assert process.returncode != 0
    launch(2, [run_of(run, data, resume=True)], tmp_path)
    assert_same_run(run, tmp_path / "whole", 1e-6)
