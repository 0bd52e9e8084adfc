"""Five hundred steps with faults injected at random: flat memory, file handles and time per step."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import metrics
from report import add_row

from vicur.cuebench.generate import write_parquet
from vicur.run.build import build
from vicur.run.recipe import load_recipe

STEPS = int(os.environ.get("VICUR_SOAK_STEPS", "500"))


class Faults:
    """Breaks a step now and then: a loss of NaN, a shortage of memory, an unreadable image."""

    def __init__(self, run):
        self.random = random.Random(0)
        self.counts = {"nan": 0, "memory": 0}
        self.objective, self.gradient = run.trainer.objective, run.trainer.updater.gradient
        run.trainer.updater.gradient = self.short_of_memory

    def needs(self, step):
        return self.objective.needs(step)

    def weigh(self, scored):
        weighed = self.objective.weigh(scored)
        if self.random.random() > 0.05:
            return weighed
        self.counts["nan"] += 1
        terms = [
            term if term.weights is None else replace(term, weights=term.weights * torch.nan)
            for term in weighed.terms
        ]
        return replace(weighed, terms=terms)

    def short_of_memory(self, *arguments):
        result = self.gradient(*arguments)
        if self.random.random() < 0.005:
            self.counts["memory"] += 1
            raise torch.OutOfMemoryError("injected")
        return result


def test_five_hundred_steps_with_faults(tmp_path):
    write_parquet("segments", "train", 64, tmp_path / "train.parquet")
    recipe = load_recipe(
        "cuebench/opsd_cue_recovery",
        [
            f"data.train={tmp_path / 'train.parquet'}",
            f"training.output={tmp_path / 'run'}",
            *("training.prompts_per_step=8", f"training.steps={STEPS}", "training.device=cpu"),
            *("rollout.sampling.max_new_tokens=8", "training.checkpoints.every=10"),
            *("training.max_skipped_updates=20", "optimizer.prompts_per_micro_batch=64"),
        ],
    )
    run = build(recipe)
    faults = Faults(run)
    object.__setattr__(run.trainer, "objective", faults)
    seen = []
    train = type(run.trainer).train

    def watched(trainer, records, progress, state, after_step, on_skip):
        def observe(state):
            seen.append((time.perf_counter(), resident(), len(os.listdir("/proc/self/fd"))))
            return after_step(state)

        return train(trainer, records, progress, state, observe, on_skip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.trainer), "train", watched)
        run.execute(tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert len(lines) == STEPS
    assert sum(line.get("skipped_updates", 0) for line in lines) == faults.counts["nan"] > 0
    times = [later[0] - earlier[0] for earlier, later in itertools.pairwise(seen)]
    tenth = STEPS // 10
    first, last = seen[tenth : 2 * tenth], seen[-tenth:]
    memory = [statistics.median(row[1] for row in part) / 2**20 for part in (first, last)]
    handles = [statistics.median(row[2] for row in part) for part in (first, last)]
    seconds = [statistics.median(part) for part in (times[tenth : 2 * tenth], times[-tenth:])]
    add_row("endurance", STEPS, faults.counts, memory, handles, seconds)
    assert memory[1] < 1.1 * memory[0] and handles[1] <= handles[0] + 2


def resident():
    """Bytes of this process in memory now, without what the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
