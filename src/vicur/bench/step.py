"""`vicur bench step`: how long a training step of several recipes takes (VGS figure 9, VA-OPD section 4.5).

Each recipe is built and trained for a few steps on the same problems, without evaluation, checkpoints and
report. The recipes take turns for several rounds, and only one is in memory at a time. A step samples, scores
and updates as in `vicur train`; times are those of its phases.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from rich.table import Table

from vicur import distributed
from vicur.bench.timing import Spread, hardware, in_turns
from vicur.paths import names_of
from vicur.progress import Bars, silent
from vicur.reporting.curves import finish
from vicur.reporting.figures import SERIES, legend, new_figure, plain_text
from vicur.reporting.finding import Finding, FindingOutput
from vicur.reporting.phases import PREFIX
from vicur.reporting.runs import RecordedRun
from vicur.run.build import build, start_processes
from vicur.run.recipe import Recipe, load_recipe, to_yaml
from vicur.settings.section import Count, PathText, Text, section
from vicur.tables import plain_table
from vicur.training.records import Records

ALONE = (
    *("training.evaluate.every=null", "training.evaluate.data=null"),
    *("training.observe.of=[]", "training.observe.every=null", "training.observe.data=null"),
    *("training.report.enabled=false", "training.report_to=[]"),
    *("training.checkpoints.every=null", "training.save_model=false", "training.show_responses=null"),
)
"""Settings of every recipe: only the steps are of interest."""


@section
class StepSettings(FindingOutput):
    """The settings of `vicur bench step`, besides those of the recipes."""

    recipes: list[PathText] = field(default_factory=list)
    """Recipes: YAML files, or names of packaged ones. The others are compared with the first."""
    names: list[Text] = field(default_factory=list)
    """A name for each recipe in tables and figures; by default the end of its path."""
    steps: Count = 3
    """Number of steps of each round that are counted."""
    warm_up: Annotated[int, Field(ge=0, le=4096)] = 1
    """Number of steps at the beginning of each round that are not counted."""
    rounds: Count = 2
    """Number of rounds. In each, every recipe has its turn, and the order is reversed from round to round."""


def step_times(settings: StepSettings, overrides: Sequence[str] = (), bars: Bars = silent) -> Finding:
    """Seconds of a step by recipe and phase.

    Args:
        settings: recipes and numbers of steps.
        overrides: `key=value`, for all recipes.
        bars: progress bars; silent if not given.

    Raises:
        SettingsError: there is no such recipe, or a setting does not fit.
        ValueError: no recipe is given, the recipes have other data, or a model or the data cannot be read.
    """
    if distributed.launched():
        raise ValueError("vicur bench step runs in one process; start it without torchrun.")
    recipes = load_recipes(settings, overrides)
    names = list(recipes)
    rounds: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for turn in bars("measuring").over(range(settings.rounds), settings.rounds):
        for index in in_turns(len(names), turn):
            name = names[index]
            rounds[name].append(train_a_few(recipes[name], bars)[settings.warm_up :])
    results = described(recipes, rounds)
    device = start_processes(next(iter(recipes.values())))
    values: dict[str, Any] = {
        "units": {"step": "seconds", "phases": "seconds", "response_tokens": "tokens per response"},
        "reference": names[0],
        "overrides": list(overrides),
        "steps": settings.steps,
        "warm_up": settings.warm_up,
        "rounds": settings.rounds,
        "hardware": hardware(device),
        "recipes": results,
    }
    tables = (step_table(results),)
    return Finding("step", values, lambda: draw_steps(results), tables, tuple(_notes(recipes)))


def load_recipes(settings: StepSettings, overrides: Sequence[str]) -> dict[str, Recipe]:
    """The recipes by name, with only the steps of a round.

    Raises:
        SettingsError: there is no such recipe, or a setting does not fit.
        ValueError: there is none, or they have other data.
    """
    if not settings.recipes:
        raise ValueError("Give at least one recipe.")
    length = f"training.steps={settings.warm_up + settings.steps}"
    names = names_of(settings.recipes, settings.names)
    recipes = {
        name: load_recipe(path, [*overrides, *ALONE, length])
        for name, path in zip(names, settings.recipes, strict=True)
    }
    if len(sources := {recipe.data.train for recipe in recipes.values()}) > 1:
        raise ValueError(
            f"The recipes have other data: {' and '.join(sorted(map(str, sources)))}. Set data.train for all."
        )
    return recipes


def train_a_few(recipe: Recipe, bars: Bars = silent) -> list[dict[str, Any]]:
    """Build a recipe, take its steps, and return the metrics of each.

    Raises:
        ValueError: a model or the data cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        with closing(build(recipe, bars)) as run:
            device = run.trainer.scoring.student.device
            with Records(place, to_yaml(recipe), device) as records:
                run.trainer.train(records, bars("training"))
        metrics = RecordedRun(place, "").metrics
    del run
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return metrics


def described(
    recipes: Mapping[str, Recipe], rounds: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> dict[str, Any]:
    """Median times of each recipe, and their ratios to those of the first.

    Args:
        recipes: the recipes by name.
        rounds: for each recipe and round, the metrics of its steps.
    """
    reference = [_median(steps) for steps in next(iter(rounds.values()))]
    results: dict[str, Any] = {}
    for name, of_recipe in rounds.items():
        steps = [step for each in of_recipe for step in each]
        phases = list(dict.fromkeys(key for step in steps for key in step if key.startswith(PREFIX)))
        training, rollout = recipes[name].training, recipes[name].rollout
        spread = Spread.of([step["seconds"] for step in steps])
        ratios = [_median(each) / other for each, other in zip(of_recipe, reference, strict=True)]
        results[name] = {
            "step": spread.as_dict(),
            "ratio": spread.median / statistics.median(_seconds(next(iter(rounds.values())))),
            "ratio_by_round": ratios,
            "phases": {
                phase.removeprefix(PREFIX): statistics.median(step.get(phase, 0.0) for step in steps)
                for phase in phases
            },
            "responses": training.prompts_per_step * rollout.group_size,
            "response_tokens": statistics.mean(step["response_tokens"] for step in steps),
            "seconds_by_round": [[step["seconds"] for step in each] for each in of_recipe],
        }
    return results


def _seconds(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    return [step["seconds"] for steps in rounds for step in steps]


def _median(steps: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(step["seconds"] for step in steps)


def _notes(recipes: Mapping[str, Recipe]) -> list[str]:
    """What differs between the steps besides the methods."""
    sizes = {
        name: (
            recipe.training.prompts_per_step,
            recipe.rollout.group_size,
            recipe.rollout.sampling.max_new_tokens,
        )
        for name, recipe in recipes.items()
    }
    if len(set(sizes.values())) == 1:
        return []
    texts = [f"{name} {prompts} x {group}, {most} tokens" for name, (prompts, group, most) in sizes.items()]
    return [
        "The steps differ in size (problems x responses, length limit): "
        f"{'; '.join(texts)}. Set training.prompts_per_step, rollout.group_size and "
        "rollout.sampling.max_new_tokens for all to compare the methods alone."
    ]


def step_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Median seconds of a step and its phases, a column for each recipe."""
    phases = list(dict.fromkeys(phase for numbers in results.values() for phase in numbers["phases"]))
    spreads = [Spread(**numbers["step"]) for numbers in results.values()]
    first = next(iter(results))
    rows = [
        ["step, s", *map(str, spreads)],
        *(
            [f"  {phase}", *(numbers["phases"].get(phase) for numbers in results.values())]
            for phase in phases
        ),
        [f"step over that of {first}", *(numbers["ratio"] for numbers in results.values())],
        ["responses per step", *(numbers["responses"] for numbers in results.values())],
        ["tokens per response", *(f"{numbers['response_tokens']:.1f}" for numbers in results.values())],
    ]
    return plain_table("Time of a training step, medians", ["", *results], rows)


def draw_steps(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A bar for each recipe, divided by phase, with its ratio to the first."""
    figure, (panel,) = new_figure(1, 1, width=7.2, height=1.7 + 0.45 * len(results))
    phases = list(dict.fromkeys(phase for numbers in results.values() for phase in numbers["phases"]))
    places, left = range(len(results)), np.zeros(len(results))
    for index, phase in enumerate(phases):
        seconds = np.array([numbers["phases"].get(phase, 0.0) for numbers in results.values()])
        hatch = "" if index < len(SERIES) else "//"
        panel.barh(
            places,
            seconds,
            0.6,
            left,
            color=SERIES[index % len(SERIES)],
            hatch=hatch,
            label=plain_text(phase),
        )
        left += seconds
    for place, numbers in zip(places, results.values(), strict=True):
        panel.text(left[place] + 0.01 * left.max(), place, f"{numbers['ratio']:.2f} x", va="center")
    panel.set_yticks(places, [plain_text(name) for name in results])
    finish(panel, "Time of a training step by phase", "", x="seconds, medians")
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlim(0, 1.1 * left.max())
    panel.grid(axis="y", visible=False)
    legend(figure, panel)
    return figure
