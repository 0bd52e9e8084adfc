"""Trains with faults injected at random: `python endurance.py FOLDER STEPS` prints what it measured as JSON.

In a process of its own: the type checks of the test process keep memory of their own.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from vicur.cuebench.generate import write_parquet
from vicur.run.build import build
from vicur.run.recipe import load_recipe


class Faults:
    """Breaks a step now and then: a loss of NaN, a shortage of memory, an unreadable image."""

    def __init__(self, run):
        self.random = random.Random(0)
        self.counts = {"nan": 0, "memory": 0}
        self.updater = run.trainer.updater
        self.objective, self.gradient = run.trainer.objective, self.updater.gradient
        self.updater.gradient = self.short_of_memory

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
        self.updater.micro_batch.size = 8  # otherwise it would come to 1 before the run ends
        return result


def main(folder, steps):
    write_parquet("segments", "train", 64, folder / "train.parquet")
    recipe = load_recipe(
        "cuebench/opsd_cue_recovery",
        [
            f"data.train={folder / 'train.parquet'}",
            f"training.output={folder / 'run'}",
            *("training.prompts_per_step=8", f"training.steps={steps}", "training.device=cpu"),
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

    type(run.trainer).train = watched
    run.execute(folder / "run")
    tenth = steps // 10
    times = [later[0] - earlier[0] for earlier, later in itertools.pairwise(seen)]
    early, late = slice(tenth, 2 * tenth), slice(-tenth, None)
    measured = {
        "faults": faults.counts,
        "mebibytes": [statistics.median(row[1] for row in seen[part]) / 2**20 for part in (early, late)],
        "handles": [statistics.median(row[2] for row in seen[part]) for part in (early, late)],
        "seconds": [statistics.median(times[part]) for part in (early, late)],
    }
    print(json.dumps(measured))


def resident():
    """Bytes of this process in memory now, without what the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
