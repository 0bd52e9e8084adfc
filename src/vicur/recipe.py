"""A recipe: the settings of every component, and the run that they make."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import jsonargparse
import torch
import yaml

from vicur.data.sources import DataConfig, FileSource
from vicur.models.load import LoadedModel, StudentConfig, load_student, resolve_packaged
from vicur.objectives.sampled import SampledTokenOPD
from vicur.rollouts.rollout import RolloutConfig, StudentSource
from vicur.rollouts.sampler import Sampler
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig
from vicur.training.loop import Trainer, TrainingConfig
from vicur.training.optimizer import Optimizer, OptimizerConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """The model that learns."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Who teaches and what the teacher sees."""
    objective: SampledTokenOPD = field(default_factory=SampledTokenOPD)
    """What is minimised."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How responses are made."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the student changes."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, how much at once, and where to."""

    def __post_init__(self) -> None:
        if self.training.old_log_probs == "sampled" and not self.rollout.sampling.is_policy:
            raise ValueError(
                "training.old_log_probs=sampled needs temperature 1, top_p 1, top_k 0 and no presence "
                "penalty: otherwise the sampler's log-probs are not the student's."
            )


class RecipeError(ValueError):
    """A recipe that cannot be read or makes no sense; the message is one sentence for the user."""


def recipe_parser() -> jsonargparse.ArgumentParser:
    """Parses every setting of a recipe, with the fields' docstrings as help."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog="vicur train RECIPE", exit_on_error=False)
    parser.add_class_arguments(Recipe)
    return parser


def load_recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply dotted overrides, e.g. ["optimizer.learning_rate=1e-4"].

    Args:
        path: a YAML file, or the name of a packaged recipe, e.g. "cuebench/opsd_cue".
        overrides: `key=value` or `--key=value`.

    Raises:
        RecipeError: no such file, no such setting (naming the nearest), or a value that does not fit.
    """
    file = _find(path)
    try:
        settings = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{file} must hold settings by name, not a {type(settings).__name__}.")
    parser = recipe_parser()
    flat = _flatten(settings)
    for override in overrides or []:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals:
            raise RecipeError(f"Override {override!r} must have the form key=value.")
        flat[key] = _parse(override, key, value)
    _check_keys(flat, parser, file)
    try:
        values = parser.parse_object(_nest(flat))
        return Recipe(**parser.instantiate(values).as_dict())
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        text = " ".join(str(error).split()).replace("Parser key", "setting")
        raise RecipeError(f"{file}: {text}") from error


def _parse(override: str, key: str, value: str) -> Any:
    """A value as YAML would read it, but text where the setting is text: a path may hold anything."""
    kind = _leaf_types(Recipe).get(key)
    if kind is str or (kind == str | None and value not in ("null", "")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"Override {override!r}: {value!r} is not a value that YAML can read.") from error


def _leaf_types(component: type, prefix: str = "") -> dict[str, Any]:
    """The type of every setting by its dotted name."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(component).items():
        if is_dataclass(kind):
            found |= _leaf_types(cast(type, kind), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = kind
    return found


def _find(path: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = resolve_packaged("recipes") / f"{path}.yaml"
    if packaged.is_file():
        return packaged
    known = sorted(
        str(p.relative_to(resolve_packaged("recipes")).with_suffix(""))
        for p in resolve_packaged("recipes").rglob("*.yaml")
    )
    raise RecipeError(f"There is no recipe {path}; packaged ones are {', '.join(known)}.")


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def _check_keys(flat: dict[str, Any], parser: jsonargparse.ArgumentParser, file: Path) -> None:
    known = list(_flatten(parser.get_defaults().as_dict()))
    for key in flat:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{file}: there is no setting {key!r}; did you mean {near!r}?")


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every setting written out; `load_recipe` reads it back."""
    parser = recipe_parser()
    return str(parser.dump(parser.parse_object(asdict(recipe))))


def build(recipe: Recipe) -> tuple[Trainer, LoadedModel]:
    """Make the components of a run.

    Returns:
        the trainer, and the student that it changes.

    Raises:
        ValueError: a model or data file is missing or does not fit.
    """
    torch.manual_seed(recipe.training.seed)
    only_for = recipe.teacher.view if recipe.teacher.missing_privilege == "skip" else None
    samples = FileSource(recipe.data.train, recipe.data.system_prompt, only_for)
    if len(samples) < recipe.training.prompts_per_step:
        raise ValueError(
            f"{recipe.data.train} has {len(samples)} problems, fewer than one step takes "
            f"(training.prompts_per_step={recipe.training.prompts_per_step})."
        )
    if not any(recipe.teacher.view.applies(sample) for sample in samples):
        raise ValueError(
            f"No problem of {recipe.data.train} has the privilege {recipe.teacher.privilege}: the "
            "teacher would see what the student sees. Set teacher.privilege=none if that is meant."
        )
    loaded = load_student(recipe.student)
    teacher = Teacher.of(recipe.teacher, loaded)
    student = Scorer(loaded)
    sampler = Sampler(
        loaded.model, loaded.vocabulary, recipe.rollout.sampling, recipe.rollout.prompts_per_batch
    )
    source = StudentSource(
        sampler,
        student.encoder,
        recipe.objective.student_view,
        recipe.rollout,
        recipe.training.seed,
    )
    optimizer = Optimizer(
        loaded.model,
        recipe.optimizer,
        recipe.training.steps,
        recipe.student.recovery.learning_rate,
    )
    trainer = Trainer(
        samples=samples,
        source=source,
        student=student,
        teacher=teacher,
        objective=recipe.objective,
        optimizer=optimizer,
        prompts_per_micro_batch=recipe.optimizer.prompts_per_micro_batch,
        config=recipe.training,
    )
    return trainer, loaded
