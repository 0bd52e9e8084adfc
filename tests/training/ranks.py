"""Runs recipes in this process, which may be one of several ranks: `python ranks.py JOBS`.

JOBS is a JSON file with a list of jobs: {"recipe": ..., "overrides": [...]}, and optionally "resume" and
"exact", which computes in float64. They share the process, because importing takes longer than the jobs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from vicur.run.build import build
from vicur.run.recipe import load_recipe
from vicur.run.resume import find_run


def main(path: str) -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(path).read_text()):
        recipe = load_recipe(job["recipe"], job["overrides"])
        if job.get("exact"):
            # Not a setting. In float32 the rounding grows with every step: the first steps of AdamW have the
            # same size for a gradient of any size.
            for component in (recipe.student, recipe.teacher):
                object.__setattr__(component, "dtype", "float64")
        previous = find_run(recipe, print) if job.get("resume") else None
        run = build(recipe)
        folder = Path(recipe.training.output)
        if previous is None:
            run.execute(folder)
        else:
            run.execute(folder, resume_from=previous.saved, again=True)


if __name__ == "__main__":
    main(sys.argv[1])
