"""Sweeps: one recipe, trained once for each combination of values of some settings (VGS figures 5, 8 and 10).

Every run has its own folder, `OUTPUT/alpha=0.5/seed-0`, and is made as `vicur train` makes it, one after the
other in this process. A run that has finished is not repeated, and one that was interrupted is resumed, so
that the same command continues a sweep, and a command with more values or seeds extends it.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch

from vicur import distributed
from vicur.data.views import teacher_view
from vicur.evaluation.comparison import categories_of
from vicur.files import RECIPE_FILE
from vicur.packaged import find_packaged
from vicur.progress import Bars, Progress
from vicur.reporting.sweep import SWEEP, accuracy_before, measured, short_keys
from vicur.rewards.grader import Grader
from vicur.run.build import build, start_processes
from vicur.run.recipe import Recipe, load_recipe, recipe_name, recipe_schema
from vicur.run.resume import carry_on, find_run
from vicur.settings.reading import read_json
from vicur.settings.section import Count, PathText, SettingsError, Text, section
from vicur.training.folder import RUNS

BASELINE = "baseline"
"""Folder of the baseline's runs."""
RESERVED = {
    "training.name": "a run is named by its values",
    "training.output": "set --output for the whole sweep",
    "training.overwrite": "choose another --output instead",
}
"""Settings of the recipe that a sweep sets itself, and what to do instead."""
NOT_SWEPT = {
    "training.seed": "use --seeds, and the seeds are averaged",
    "training.evaluate": "the runs are compared by the same evaluation",
}
"""Settings, or sections of them, of which a sweep cannot have several values, and why."""
OTHER_SETTINGS = "A sweep with other settings needs another --output."
_VIEWS = ("teacher.privilege", "student.view")
"""Settings that take a view."""


@section
class SweepSettings:
    """The settings of `vicur sweep`, besides those of the recipe."""

    output: PathText | None = None
    """Folder of the runs and results; null for runs/sweeps/RECIPE."""
    seeds: Count | None = None
    """Number of seeds: each combination is trained with training.seed 0 to N-1, and accuracies are means over
    these runs. null for one run with the recipe's seed."""
    baseline: PathText | None = None
    """Recipe that is trained once (with each seed) and drawn as a horizontal line. The overrides that are not
    swept apply to it too, except those of objective.*."""
    by: Text | None = None
    """Column of the held-out data by whose values the accuracy is also shown, a panel for each."""
    grid: list[Text] = field(default_factory=list)
    """Settings with their values, KEY=A,B,C, for settings whose values are texts or lists: commas outside of
    brackets and quotes separate values. Numbers, choices and switches need no grid: KEY=A,B,C is enough."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        folder: its folder.
        recipe: its recipe, with its seed and folder.
    """

    folder: Path
    recipe: Recipe


@dataclass(frozen=True)
class PlannedPoint:
    """One combination of values.

    Attributes:
        settings: the value of each swept setting.
        runs: a run for each seed.
    """

    settings: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep, ready to be run.

    Attributes:
        recipe: name of the recipe.
        folder: folder of the runs and results.
        overrides: overrides of all runs.
        keys: the swept settings; the first is the x axis.
        points: the combinations.
        baseline: the baseline's runs; None without one.
        baseline_recipe: name of its recipe.
        by: column of categories; None for none.
    """

    recipe: str
    folder: Path
    overrides: tuple[str, ...]
    keys: tuple[str, ...]
    points: tuple[PlannedPoint, ...]
    baseline: PlannedPoint | None = None
    baseline_recipe: str | None = None
    by: str | None = None

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs in their order, those of the baseline first."""
        points = [*([] if self.baseline is None else [self.baseline]), *self.points]
        return [run for point in points for run in point.runs]


def plan_sweep(recipe: str, settings: SweepSettings, overrides: Sequence[str]) -> Sweep:
    """Work out the runs of a sweep, and check all their settings.

    Args:
        recipe: YAML file, or name of a packaged recipe.
        settings: the settings of the sweep.
        overrides: `key=value`; those of a setting with several values are swept.

    Raises:
        SettingsError: there is no such recipe, or a setting does not exist or does not fit.
        ValueError: nothing is swept, there is no held-out data, or the runs would be evaluated differently.
    """
    axes, fixed = swept_settings(overrides, settings.grid)
    if settings.seeds is not None and any(_key(pair) == "training.seed" for pair in fixed):
        raise ValueError("training.seed and --seeds contradict each other; remove one of them.")
    name = recipe_name(find_packaged(recipe, "recipes"))
    folder = Path(settings.output) if settings.output is not None else RUNS / "sweeps" / name
    short = short_keys(list(axes))
    points = []
    for values in itertools.product(*axes.values()):
        pairs = list(zip(axes, values, strict=True))
        place = ",".join(f"{short[key]}={_in_a_path(value)}" for key, value in pairs)
        combination = [f"{key}={value}" for key, value in pairs]
        runs = _runs(recipe, [*fixed, *combination], settings.seeds, folder / place)
        points.append(PlannedPoint({key: _parsed(key, value) for key, value in pairs}, runs))
    if len({point.runs[0].folder for point in points}) < len(points):
        raise ValueError("Two combinations have the same values; give each value once.")
    baseline, baseline_name = None, None
    if settings.baseline is not None:
        shared = [pair for pair in fixed if not _key(pair).startswith("objective.")]
        baseline = PlannedPoint({}, _runs(settings.baseline, shared, settings.seeds, folder / BASELINE))
        baseline_name = recipe_name(find_packaged(settings.baseline, "recipes"))
    sweep = Sweep(
        name, folder, tuple(fixed), tuple(axes), tuple(points), baseline, baseline_name, settings.by
    )
    check_evaluations([run.recipe for run in sweep.runs])
    return sweep


def _runs(recipe: str, overrides: Sequence[str], seeds: int | None, folder: Path) -> tuple[PlannedRun, ...]:
    """A run for each seed."""
    numbers = [load_recipe(recipe, overrides).training.seed] if seeds is None else list(range(seeds))
    return tuple(
        PlannedRun(
            place := folder / f"seed-{seed}",
            load_recipe(recipe, [*overrides, f"training.seed={seed}", f"training.output={place}"]),
        )
        for seed in numbers
    )


# --------------------------------------------------------------------------- several values of a setting


def swept_settings(
    overrides: Sequence[str], grid: Sequence[str] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each swept setting, in their order, and the overrides of all runs.

    An override is swept if it has commas and each part between them is a value of the setting by itself: a
    number, one of its choices, true, false or null. A text or a list is not divided; `grid` is for those.

    Raises:
        ValueError: nothing is swept, a setting is given twice, or it cannot be swept.
    """
    axes: dict[str, list[str]] = {}
    fixed: list[str] = []
    for pair in overrides:
        values = divided(pair.partition("=")[2])
        if len(values) > 1 and all(_is_value(_key(pair), value) for value in values):
            _add_axis(axes, _key(pair), values)
        else:
            fixed.append(pair)
    for pair in grid:
        if "=" not in pair:
            raise SettingsError(f"--grid {pair}: it must have the form KEY=A,B,C.")
        _add_axis(axes, _key(pair), divided(pair.partition("=")[2]))
    for key in [*axes, *map(_key, fixed)]:
        if key in RESERVED:
            raise ValueError(f"A sweep sets {key} itself: {RESERVED[key]}.")
    if twice := set(axes) & set(map(_key, fixed)):
        raise ValueError(f"{min(twice)} is both swept and set; give it once.")
    if not axes:
        raise ValueError(
            "Nothing to sweep: give a setting several values, e.g. objective.visual_steering.alpha=0.5,1,2."
            + "".join(map(_why_whole, fixed))
        )
    return axes, fixed


def _why_whole(pair: str) -> str:
    """Why an override is not divided, as a sentence; "" if it has no commas."""
    values = divided(pair.partition("=")[2])
    text = next((value for value in values if not _is_value(_key(pair), value)), None)
    return f" {pair} is one value: {text!r} is a text." if len(values) > 1 and text is not None else ""


def _add_axis(axes: dict[str, list[str]], key: str, values: list[str]) -> None:
    for name, reason in NOT_SWEPT.items():
        if key == name or key.startswith(f"{name}."):
            raise ValueError(f"{key} cannot be swept: {reason}.")
    if key in axes:
        raise ValueError(f"{key} is swept twice; give all its values at once.")
    axes[key] = values


def divided(text: str) -> list[str]:
    """The parts of a text between its commas, except commas inside brackets of any kind or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{" and not quote) - (letter in ")]}" and not quote)
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _key(pair: str) -> str:
    """The setting of an override."""
    return pair.partition("=")[0].removeprefix("--").replace("-", "_")


def _is_value(key: str, text: str) -> bool:
    """Whether a text is a number, a choice, a view, true, false or null, and the setting takes that."""
    if key in _VIEWS:
        return _is_view(text)
    kind = recipe_schema().kinds.get(key)
    kinds = set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}
    if any(get_origin(option) is Literal and text in get_args(option) for option in kinds):
        return True
    if not kinds & {int, float, bool}:
        return False
    return text in ("true", "false", "null") or isinstance(_parsed(key, text), int | float)


def _is_view(text: str) -> bool:
    try:
        teacher_view(text)
    except ValueError:
        return False
    return True


def _parsed(key: str, text: str) -> Any:
    """A value for tables and axes: a number if it is one, as 1e-5 is, which YAML reads as a text."""
    value = recipe_schema().override(f"{key}={text}").flat.get(key, text)
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def _in_a_path(text: str) -> str:
    """A value as part of a folder's name."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in text)


# ------------------------------------------------------------------------------------ the same evaluation


def check_evaluations(recipes: Sequence[Recipe]) -> None:
    """Check that all runs are evaluated on the same problems and with the same sampling.

    Raises:
        ValueError: they are not, or there is no held-out data.
    """
    first = evaluation_of(recipes[0])
    for recipe in recipes:
        if recipe.training.evaluate.data is None:
            raise ValueError(
                "A sweep compares accuracies on held-out problems: set training.evaluate.data, also for the "
                "baseline."
            )
        now = evaluation_of(recipe)
        if changed := [name for name in first if first[name] != now[name]]:
            name = changed[0]
            raise ValueError(
                f"The runs would be evaluated differently: {name} is {first[name]} in one and {now[name]} in "
                "another. Set it to the same for all."
            )


def evaluation_of(recipe: Recipe) -> dict[str, Any]:
    """The problems, the sampling and the grading of an evaluation. What a model is shown is not among them:
    each is evaluated with the system prompt and the image limits of its own training."""
    evaluate, config = recipe.training.evaluate, recipe.evaluation
    sampling = asdict(config.sampling)
    return {
        "training.evaluate.data": evaluate.data,
        "training.evaluate.problems": evaluate.problems,
        "training.evaluate.samples": config.samples,
        "training.evaluate.temperature": sampling.pop("temperature"),
        "training.evaluate.max_new_tokens": sampling.pop("max_new_tokens"),
        **{f"training.evaluate.preset, {name}": value for name, value in sampling.items()},
        **{f"rewards.{name}": value for name, value in asdict(recipe.rewards).items()},
    }


# --------------------------------------------------------------------------------------------- carrying out


def carry_out(
    run: PlannedRun, say: Callable[[str], None], bars: Bars | None = None, progress: Progress | None = None
) -> bool:
    """Train a run, or resume it; nothing happens if it has finished.

    Args:
        run: the run.
        say: called with sentences about it.
        bars: progress bars for lengthy work; silent if not given.
        progress: progress bar of the training steps; silent if not given.

    Returns:
        whether it was trained now.

    Raises:
        ValueError: the folder holds another run, or the data or a model does not fit.
        InterruptedRunError: a signal stopped the run; its checkpoint is on disk.
    """
    start_processes(run.recipe)
    previous = distributed.main_value(lambda: find_run(run.recipe, say, otherwise=OTHER_SETTINGS))
    if previous is not None and previous.finished:
        check_evaluations([load_recipe(str(run.folder / RECIPE_FILE)), run.recipe])
        return False
    if previous is not None and previous.saved is not None:
        say(f"Resuming {run.folder} after step {previous.saved.state.step}.")
    with closing(build(run.recipe, bars)) as built:
        plan = built.plan()
        for sentence in [*built.notices, *plan.warnings]:
            say(sentence)
        carry_on(built, run.folder, previous, say, plan, progress, bars)
    return True


def free_memory() -> None:
    """Give back the memory of a run that is over, before the next one loads its models."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def results_of(sweep: Sweep) -> dict[str, Any]:
    """The content of sweep.json, from the folders of the finished runs.

    Raises:
        ValueError: a run has no accuracy after its last step.
    """
    categories = categories_in(sweep)
    points = [
        {"settings": dict(point.settings), **measured([run.folder for run in point.runs], categories)}
        for point in sweep.points
    ]
    baseline = None
    if sweep.baseline is not None:
        folders = [run.folder for run in sweep.baseline.runs]
        baseline = {"recipe": sweep.baseline_recipe, **measured(folders, categories)}
    return {
        "units": {"accuracy": "percent", "seconds": "seconds"},
        "recipe": sweep.recipe,
        "overrides": list(sweep.overrides),
        "keys": list(sweep.keys),
        "seeds": [run.recipe.training.seed for run in sweep.points[0].runs],
        "evaluation": evaluation_of(sweep.points[0].runs[0].recipe),
        "by": sweep.by,
        "before": accuracy_before(points),
        "points": points,
        "baseline": baseline,
    }


def categories_in(sweep: Sweep) -> dict[str, str] | None:
    """The category of each held-out problem by its id; None without a column of categories.

    Raises:
        ValueError: the held-out data has no such column.
    """
    if sweep.by is None:
        return None
    recipe = sweep.runs[0].recipe
    source = recipe.training.evaluate.open(recipe.data, Grader(recipe.rewards))
    assert source is not None, "check_evaluations came first"
    return categories_of(source, [sweep.by])[sweep.by]


def check_results(folder: Path) -> None:
    """Make sure that the results of a sweep may be written to a folder.

    Raises:
        ValueError: its sweep.json is something else.
    """
    path = folder / f"{SWEEP}.json"
    if path.is_file() and read_json(path).get("analysis") != SWEEP:
        raise ValueError(f"{path} is not of a sweep; choose another --output.")
