"""Finds the run that a command continues, checks that its recipe is the same, and continues it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vicur.diagnostics.leakage import HintLeakage
from vicur.files import RECIPE_FILE
from vicur.progress import Bars, Progress
from vicur.run.execute import InterruptedRunError, Plan, Run
from vicur.run.recipe import Recipe, load_recipe, recipe_schema, to_yaml
from vicur.training.checkpoint import Saved, newest_whole
from vicur.training.folder import is_finished, locked, newest_run

MAY_CHANGE = (
    *("training.name", "training.output", "training.overwrite", "training.device", "training.save_model"),
    *("training.sharding", "training.offload", "training.checkpoints", "training.max_skipped_updates"),
    *(
        "training.evaluate",
        "training.observe",
        "training.report",
        "training.report_to",
        "training.project",
        "training.show_responses",
        "training.split_gap",
        "teacher.offload",
        "optimizer.prompts_per_micro_batch",
        "rollout.prompts_per_batch",
    ),
    *("scoring.prompts_per_batch", "scoring.share_prompts", "scoring.chunk_tokens"),
    *("scoring.gradient_checkpointing", "student.recovery.max_start_kl"),
)
"""Settings, or sections of settings, that change no result beyond rounding, and the dropout of adapters; a
resumed run may change them."""
LENGTH = ("training.steps", "training.epochs")
"""Settings that may change too if the learning rate does not depend on the length of the run."""


@dataclass(frozen=True)
class Resumption:
    """A run to resume.

    Attributes:
        folder: its folder.
        saved: the checkpoint to resume from; None to start again from the beginning.
        finished: whether the run has finished already.
    """

    folder: Path
    saved: Saved | None
    finished: bool


def find_run(
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    otherwise: str = "Use the same settings, or start a new run without --resume.",
    may_change: Sequence[str] = (),
    same_length: bool = False,
) -> Resumption | None:
    """The run of a recipe and its newest checkpoint; None if there is no such run yet.

    Args:
        recipe: the recipe.
        say: called with a sentence about each damaged checkpoint.
        otherwise: what to do if the run has another recipe, for the message.
        may_change: settings that may differ besides `MAY_CHANGE`.
        same_length: whether the run must have the same length, even where a longer one would continue it.

    Raises:
        ValueError: the run's recipe differs in a setting that changes results, another process writes to its
            folder, or no checkpoint of it can be used.
    """
    training = recipe.training
    folder = newest_run(training.name, training.output, overwrite=training.overwrite)
    if not (folder / RECIPE_FILE).is_file():
        return None
    with locked(folder):
        allowed = (*MAY_CHANGE, *may_change, *(() if same_length else _lengths(recipe)))
        changed = _check_same(recipe, folder, allowed, otherwise)
        finished = is_finished(folder)
        if finished and not changed & set(LENGTH):
            return Resumption(folder, None, finished=True)
        saved = newest_whole(folder, say)
    if finished and saved is None:
        raise ValueError(
            f"The run in {folder} has finished and has no checkpoint (training.checkpoints.every=null), so "
            "its length cannot be changed."
        )
    return Resumption(folder, saved, finished=False)


def carry_on(
    run: Run,
    folder: Path,
    previous: Resumption | None,
    say: Callable[[str], None],
    plan: Plan | None = None,
    progress: Progress | None = None,
    bars: Bars | None = None,
) -> HintLeakage:
    """Execute one of several runs of a command, from its newest checkpoint if it was interrupted.

    Args:
        run, folder, plan, progress, bars: as in `Run.execute`.
        previous: the run in the folder, as far as it has come.
        say: called with a sentence if a signal stops the run.

    Returns:
        hint leakage over all rollouts.

    Raises:
        InterruptedRunError: a signal stopped the run; its checkpoint is on disk.
        ValueError, PreflightError: as in `Run.execute`.
    """
    saved = None if previous is None else previous.saved
    try:
        return run.execute(folder, plan, progress, bars, saved, again=previous is not None)
    except InterruptedRunError as stopped:
        say(f"Stopped {folder} after step {stopped.step}. Rerun the same command to continue.")
        raise


def _lengths(recipe: Recipe) -> tuple[str, ...]:
    """The settings that change nothing but the length of a run."""
    constant = recipe.optimizer.schedule == "constant" and recipe.optimizer.warmup == 0
    return LENGTH if constant else ()


def _check_same(recipe: Recipe, folder: Path, allowed: Sequence[str], otherwise: str) -> set[str]:
    """Check that a recipe is that of a run, but for settings that may differ.

    Returns:
        the settings that differ.

    Raises:
        ValueError: another setting differs; the message lists all that do, with both values.
    """
    before, now = _settings(load_recipe(str(folder / RECIPE_FILE))), _settings(recipe)
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    refused = [
        name
        for name in sorted(changed)
        if not any(name == setting or name.startswith(f"{setting}.") for setting in allowed)
    ]
    if refused:
        lines = "".join(f"\n  {name}: {before.get(name)} in the run, {now.get(name)} now" for name in refused)
        raise ValueError(
            f"The run in {folder} has another recipe, so it cannot be resumed with this one. {otherwise}"
            f"{lines}"
        )
    return changed


def _settings(recipe: Recipe) -> dict[str, object]:
    """The settings of a recipe by dotted name, every one written out."""
    return recipe_schema().flatten(yaml.safe_load(to_yaml(recipe)))
