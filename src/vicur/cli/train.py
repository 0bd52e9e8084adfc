"""The command `vicur train`."""

from __future__ import annotations

import sys

from rich.console import Console

from vicur.cli.command import Arguments
from vicur.cli.terminal import passing_bar, print_memory, print_preflight, print_text, say
from vicur.progress import Progress
from vicur.reporting.run_summary import print_run_summary, summarise_run
from vicur.run.build import Plan, Run, build
from vicur.run.recipe import Recipe, load_recipe, to_yaml
from vicur.training.folder import check_run_folder, run_folder
from vicur.wording import counted


def read_recipe(arguments: Arguments) -> Recipe:
    """The recipe that the command line names, with its overrides.

    Raises:
        SettingsError: there is no such recipe, or a setting does not fit.
    """
    assert arguments.word is not None, "the command requires it"
    return load_recipe(arguments.word, arguments.overrides)


def train(recipe: Recipe, arguments: Arguments, console: Console) -> None:
    """Train a student by a recipe, or print what a run would do.

    Raises:
        ValueError: the data or the output folder does not fit the recipe.
    """
    dry_run = "--dry-run" in arguments.switches
    if dry_run:
        sys.stdout.write(to_yaml(recipe))
        sys.stdout.flush()
    training = recipe.training
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    try:
        check_run_folder(folder, overwrite=training.overwrite)
    except ValueError as error:
        if not dry_run:
            raise
        say(str(error))
    run = build(recipe, passing_bar)
    plan = run.plan()
    print_text(f"Output folder: {folder}", console)
    for sentence in [*run.notices, *([] if plan.warning is None else [plan.warning])]:
        say(sentence)
    if dry_run:
        _print_plan(run, plan, console)
        return
    # Another run of the same name may have begun in the meantime.
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    run.execute(folder, plan, Progress("training"), passing_bar)
    print_run_summary(summarise_run(folder), console)
    print_text(f"Done. All results are in {folder}.", console)


def _print_plan(run: Run, plan: Plan, console: Console) -> None:
    needs, problems = run.trainer.objective.needs(1), len(run.data.problems)
    console.print(
        f"{counted(problems, 'problem')}, {counted(run.recipe.training.rollout_batches(problems), 'step')}. "
        f"A step generates up to {plan.work.generated:,} response tokens and scores up to "
        f"{plan.work.scored(needs):,} tokens.",
        highlight=False,
    )
    print_memory(plan.memory.parts, plan.available, console)
    preflight = run.preflight(plan, passing_bar)
    print_preflight(preflight, console)
    preflight.raise_if_failed()
