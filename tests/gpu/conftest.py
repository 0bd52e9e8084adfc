"""Tests that need a GPU: `make test-gpu`. They share the launcher of tests/training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("there is no GPU, or VICUR_TEST_GPU is not set; `make test-gpu` sets it")
    torch.set_float32_matmul_precision("highest")
