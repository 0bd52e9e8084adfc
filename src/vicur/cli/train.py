"""The command `vicur train`."""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vicur import distributed
from vicur.cli.command import Arguments
from vicur.cli.terminal import print_memory, print_preflight, print_text, say
from vicur.progress import Progress, silent
from vicur.reporting.run_summary import print_run_summary, summarise_run
from vicur.run.build import build, start_processes
from vicur.run.execute import InterruptedRunError, Plan, Run
from vicur.run.recipe import Recipe, load_recipe, to_yaml
from vicur.run.resume import Resumption, find_run
from vicur.training.folder import check_run_folder, run_folder
from vicur.training.loop import TrainingConfig
from vicur.wording import counted


@dataclass(frozen=True)
class Terminal:
    """What one process of a run prints: everything, or nothing if it is not the main one.

    Attributes:
        console: console for results.
    """

    console: Console

    def print(self, text: object) -> None:
        """Print a text as it is."""
        print_text(text, self.console)

    def say(self, sentence: str) -> None:
        """Print a sentence on standard error."""
        if not self.console.quiet:
            say(sentence)

    def bar(self, title: str, *, transient: bool = True) -> Progress:
        """A progress bar on standard error."""
        return silent(title) if self.console.quiet else Progress(title, transient=transient)


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
    if not distributed.launched_first():  # of several processes one prints
        console = Console(quiet=True)
    with distributed.shared_failures():
        _train(recipe, arguments, Terminal(console))
    distributed.stop()


def _train(recipe: Recipe, arguments: Arguments, terminal: Terminal) -> None:
    if "--dry-run" in arguments.switches:
        _dry_run(recipe, terminal)
        return
    previous = None
    if "--resume" in arguments.switches:
        start_processes(recipe)
        previous = distributed.main_value(lambda: find_run(recipe, terminal.say))
    if previous is not None and previous.finished:
        print_run_summary(summarise_run(previous.folder), terminal.console)
        terminal.print(f"The run in {previous.folder} has finished; there is nothing to resume.")
        return
    folder = _folder(recipe, previous)
    with closing(build(recipe, terminal.bar)) as run:
        plan = run.plan()
        _announce(run, plan, folder, previous, terminal)
        if previous is None:  # another run of the same name may have begun in the meantime
            folder = distributed.main_value(lambda: _folder(recipe, None))
        saved = None if previous is None else previous.saved
        progress = terminal.bar("training", transient=False)
        try:
            run.execute(folder, plan, progress, terminal.bar, saved, again=previous is not None)
        except InterruptedRunError as stopped:
            terminal.say(f"Stopped after step {stopped.step}. {_how_to_resume(arguments)}")
            raise
    print_run_summary(summarise_run(folder), terminal.console)
    terminal.print(f"Done. All results are in {folder}.")


def _folder(recipe: Recipe, previous: Resumption | None) -> Path:
    """The run's folder; a new one is checked."""
    if previous is not None:
        return previous.folder
    training = recipe.training
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    check_run_folder(folder, overwrite=training.overwrite)
    return folder


def _announce(run: Run, plan: Plan, folder: Path, previous: Resumption | None, terminal: Terminal) -> None:
    terminal.print(f"Output folder: {folder}")
    if previous is not None and previous.saved is not None:
        terminal.print(f"Resuming after step {previous.saved.state.step}, from {previous.saved.path}.")
    elif previous is not None:
        terminal.print("The run has no checkpoint yet, so it starts again.")
    for sentence in [*run.notices, *plan.warnings]:
        terminal.say(sentence)


def _dry_run(recipe: Recipe, terminal: Terminal) -> None:
    start_processes(recipe)  # an error about the device comes before the page of settings
    if distributed.launched_first():
        sys.stdout.write(to_yaml(recipe))
        sys.stdout.flush()
    training = recipe.training
    folder = run_folder(training.name, training.output, overwrite=training.overwrite)
    try:
        check_run_folder(folder, overwrite=training.overwrite)
    except ValueError as error:
        terminal.say(str(error))
    with closing(build(recipe, terminal.bar)) as run:
        plan = run.plan()
        _announce(run, plan, folder, None, terminal)
        _print_plan(run, plan, terminal)


def _how_to_resume(arguments: Arguments) -> str:
    """The command that resumes this run; the options of a launcher are not known here."""
    words = shlex.join(["vicur", "train", str(arguments.word), *arguments.overrides, "--resume"])
    if not distributed.launched():
        return f"Resume with: {words}"
    again = "" if "--resume" in arguments.switches else " and --resume"
    return f"Resume with the same torchrun command{again}; its end is then: -m {words}"


def _processes_line(training: TrainingConfig, processes: int) -> str:
    """What each of several processes has of the model and of an update."""
    most = -(-training.update_size // processes)
    up_to = "up to " if training.update_size % processes else ""
    return (
        f"{processes} processes, training.sharding={training.sharding}, {up_to}{counted(most, 'problem')} "
        "per process and update; the estimate and the device's memory are per process."
    )


def _print_plan(run: Run, plan: Plan, terminal: Terminal) -> None:
    console = terminal.console
    needs, problems = run.trainer.objective.needs(1), len(run.data.problems)
    console.print(
        f"{counted(problems, 'problem')}, {counted(run.recipe.training.rollout_batches(problems), 'step')}. "
        f"A step generates up to {plan.work.generated:,} response tokens and scores up to "
        f"{plan.work.scored(needs):,} tokens.",
        highlight=False,
    )
    if (processes := distributed.size()) > 1:
        terminal.print(_processes_line(run.recipe.training, processes))
    print_memory(plan.memory, plan.available, console)
    preflight = run.preflight(plan, terminal.bar)
    print_preflight(preflight, console)
    preflight.raise_if_failed()
