"""Tests that need a GPU: `make test-gpu`. They share the launcher of tests/training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))

from launching import job, write_problems
from ranks import run_job

from vicur.run.recipe import load_recipe


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("there is no GPU, or VICUR_TEST_GPU is not set; `make test-gpu` sets it")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 24, validation=4)


@pytest.fixture(scope="session")
def train():
    """Runs a job of the launcher in this process, which spares it the imports."""

    def run(*arguments, **settings):
        described = job(*arguments, **settings)
        run_job(described, load_recipe(described["recipe"], described["overrides"]))

    return run
