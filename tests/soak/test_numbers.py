"""Twenty steps in one, two and four processes, and in four micro-batch splits: the same numbers."""

from __future__ import annotations

import pytest
from launching import METHODS, assert_same_numbers, job, launch, write_problems
from report import add_row

STEPS = 20
SPLITS = (1, 3, 4, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs")

    def jobs(suffix, *settings, exact=True, methods=METHODS):
        return [job(m, folder / f"{m}-{suffix}", data, *settings, steps=STEPS, exact=exact) for m in methods]

    one = [*jobs("1"), *jobs("1-single", exact=False)]
    for count in SPLITS:
        one += jobs(f"split-{count}", f"optimizer.prompts_per_micro_batch={count}")
    launch(1, one, folder)
    for sharding in ("full", "replicated"):
        sharded = f"training.sharding={sharding}"
        launch(
            2, [*jobs(f"2-{sharding}", sharded), *jobs(f"2-{sharding}-single", sharded, exact=False)], folder
        )
    hybrid = jobs("4-hybrid", "training.sharding=hybrid", methods=["vicur"])
    launch(4, [*jobs("4-full", methods=["vicur"]), *({**each, "per_node": 2} for each in hybrid)], folder)
    return folder


VARIANTS = ("2-full", "2-replicated", *(f"split-{n}" for n in SPLITS))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_in_float64(runs, method, variant):
    worst = assert_same_numbers(runs / f"{method}-{variant}", runs / f"{method}-1", 1e-5)
    add_row("numbers", f"{method}, {variant}, float64", worst)


@pytest.mark.parametrize("variant", ["2-full", "2-replicated"])
@pytest.mark.parametrize("method", METHODS)
def test_in_float32(runs, method, variant):
    """Rounding grows from step to step; it is reported, and bounded by a looser tolerance."""
    names = ("grad_norm",) if method == "grpo" else ("loss", "grad_norm")  # the terms of GRPO's loss cancel
    pair = runs / f"{method}-{variant}-single", runs / f"{method}-1-single"
    worst = assert_same_numbers(*pair, 1e-2, names)
    add_row("numbers", f"{method}, {variant}, float32", worst)


@pytest.mark.parametrize("sharding", ["full", "hybrid"])
def test_four_processes(runs, sharding):
    """Hybrid: as on two nodes of two processes each."""
    worst = assert_same_numbers(runs / f"vicur-4-{sharding}", runs / "vicur-1", 1e-5)
    add_row("numbers", f"vicur, 4-{sharding}, float64", worst)
