"""Runs recipes in this process, which may be one of several ranks: `python ranks.py JOBS`.

JOBS is a JSON file with a list of jobs. They share the process, because importing takes longer than a job:

recipe, overrides   as for `load_recipe`
resume              whether to continue the run that is there
exact               compute in float64, which no setting does. In float32 the rounding grows with every step:
                    the first steps of AdamW have the same size for a gradient of any size.
kill                "write 5": the process kills itself where it would record step 5; "save 4": when the
                    checkpoint of step 4 is on disk but does not have its name yet
fail                "1 3": rank 1 fails at step 3 with a sentence
per_node            2: act as if two processes were on each node, for training.sharding=hybrid
short               2: the last rank runs out of memory when it decodes more than two prompts together
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from vicur import distributed
from vicur.run.build import build, start_processes
from vicur.run.execute import Run
from vicur.run.recipe import Recipe, load_recipe
from vicur.run.resume import find_run
from vicur.training.checkpoint import Checkpoints
from vicur.training.records import Records


def main(path: str) -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(path).read_text()):
        recipe = load_recipe(job["recipe"], job["overrides"])
        if job.get("exact"):
            for component in (recipe.student, recipe.teacher):
                object.__setattr__(component, "dtype", "float64")
        with distributed.shared_failures():
            run_job(job, recipe)


def run_job(job: dict[str, Any], recipe: Recipe) -> None:
    previous = None
    if job.get("resume"):
        start_processes(recipe)
        previous = distributed.main_value(lambda: find_run(recipe, print))
    if previous is not None and previous.finished:
        return
    if "per_node" in job:
        os.environ["LOCAL_WORLD_SIZE"] = str(job["per_node"])
    run = build(recipe)
    if "kill" in job:
        kill(*job["kill"].split())
    if "fail" in job:
        fail(run, *map(int, job["fail"].split()))
    if "short" in job:
        run_short_of_memory(run, job["short"])
    folder = Path(recipe.training.output)
    saved = None if previous is None else previous.saved
    run.execute(folder, resume_from=saved, again=previous is not None)


def kill(when: str, step: str) -> None:
    owner, method = (Records, "write") if when == "write" else (Checkpoints, "_publish")
    original = getattr(owner, method)

    def deadly(self: Any, first: Any, *rest: Any) -> Any:
        present = first if when == "write" else first.state["step"]
        if present == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, first, *rest)

    setattr(owner, method, deadly)


def fail(run: Run, rank: int, step: int) -> None:
    source, rollouts = run.trainer.source, run.trainer.source.rollouts

    def failing(samples: Any, present: int) -> Any:
        if distributed.rank() == rank and present == step:
            raise ValueError("the disk of this rank is on fire.")
        return rollouts(samples, present)

    source.rollouts = failing  # type: ignore[method-assign]


def run_short_of_memory(run: Run, most: int) -> None:
    policy = run.student.policy

    def layer(module: Any, inputs: Any) -> None:
        sequences, length = inputs[0].shape[:2]
        is_last = distributed.rank() == distributed.size() - 1
        if is_last and policy._is_gathered and length > 1 and sequences > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    policy.model.model.language_model.layers[1].register_forward_pre_hook(layer)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        sys.exit(f"rank {distributed.rank()} says: {error}")
    distributed.exit_if_joined(0)
