"""Writes the model of a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from vicur.files import RECIPE_FILE
from vicur.models.load import LoadedModel, check_free, load_student
from vicur.run.recipe import load_recipe
from vicur.settings.section import PathText, section
from vicur.training.checkpoint import (
    FINAL,
    FOLDER,
    CheckpointError,
    Saved,
    best,
    load_tensors,
    newest_whole,
    read_checkpoint,
)


@section
class ExportConfig:
    """Which checkpoint to export, and where to."""

    run: PathText = ""
    """Folder of the run."""
    output: PathText = ""
    """Folder for the model, in transformers' layout."""
    checkpoint: Literal["last", "best"] | int = "last"
    """The newest checkpoint, the one with the highest held-out accuracy, or the number of its step."""


def export(config: ExportConfig, say: Callable[[str], None]) -> Saved:
    """Write the model of a checkpoint.

    Args:
        config: which checkpoint, and where to.
        say: called with a sentence about each damaged checkpoint that is passed over.

    Returns:
        the checkpoint.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
        OSError: the folder cannot be written, or is not empty.
    """
    run, output = Path(config.run), Path(config.output)
    if not (run / RECIPE_FILE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no recipe.yaml.")
    check_free(output)
    try:
        saved = _checkpoint(run, config.checkpoint, say)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_final(run)}") from error
    student = initial_student(run)
    load_weights(student, saved)
    student.save(output, recipe=(run / RECIPE_FILE).read_text("utf-8"))
    return saved


def initial_student(run: Path) -> LoadedModel:
    """The student of a run as it was before the first step, on the CPU.

    Raises:
        ValueError: the recipe or the student's checkpoint cannot be read.
    """
    recipe = load_recipe(str(run / RECIPE_FILE))
    torch.manual_seed(recipe.training.seed)  # decides the weights of a new module or adapter
    return load_student(recipe.student, torch.device("cpu"))


def load_weights(student: LoadedModel, saved: Saved) -> None:
    """Load the trained weights of a run's checkpoint into its student, in place.

    Args:
        student: the student of the same run, as `initial_student` returns it.
        saved: the checkpoint.

    Raises:
        CheckpointError: the checkpoint lacks a weight, or one has another shape.
    """
    trained = {
        f"student.{name}": parameter.detach()
        for name, parameter in student.model.named_parameters()
        if parameter.requires_grad
    }
    load_tensors(saved.path, trained)


def _checkpoint(run: Path, which: str | int, say: Callable[[str], None]) -> Saved:
    if isinstance(which, int):
        path = run / FOLDER / f"step-{which:06d}"
        if not path.is_dir():
            raise CheckpointError(f"{run} has no checkpoint of step {which}.")
        return read_checkpoint(path)
    saved = best(run) if which == "best" else newest_whole(run, say)
    if saved is None:
        what = "no checkpoint with a held-out accuracy" if which == "best" else "no checkpoint"
        raise CheckpointError(f"{run} has {what}.")
    return saved


def _final(run: Path) -> str:
    """A sentence about the model that the run saved at its end; empty if there is none."""
    final = run / FOLDER / FINAL
    return f" The model after the last step is in {final} and needs no export." if final.is_dir() else ""
