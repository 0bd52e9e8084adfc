"""A recipe: the settings of every component, read from YAML and the command line."""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from vicur.data.sources import DataConfig
from vicur.models.checkpoints import resolve_packaged
from vicur.models.load import StudentConfig
from vicur.objectives.mixture import ObjectiveConfig
from vicur.objectives.objective import OLD, Needs
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.source import RolloutConfig
from vicur.scoring.scorer import ScoringConfig
from vicur.scoring.teacher import SELF, TeacherConfig
from vicur.training.loop import TrainingConfig
from vicur.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """The model that learns."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Who teaches and what the teacher sees."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is minimised."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """How responses are graded."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How responses are made."""
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    """How they are laid out and scored."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the student changes."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How long, how much at once, and where to."""

    def __post_init__(self) -> None:
        sampling = self.rollout.sampling
        needs, names = self.needs, " + ".join(self.objective.parts)
        if self.training.old_log_probs == "sampled" and OLD in needs.log_probs and not sampling.is_policy:
            raise ValueError(
                "training.old_log_probs=sampled needs temperature 1, top_p 1, top_k 0 and no presence "
                "penalty: otherwise the sampler's log-probs are not the student's."
            )
        if self.rollout.source not in needs.sources:
            raise ValueError(
                f"The objective {names} cannot learn from rollout.source={self.rollout.source}; it takes "
                f"responses of {' or '.join(sorted(needs.sources))}."
            )
        if self.has_nothing_to_learn:
            raise ValueError(
                "The teacher is the student's own start and sees what the student sees: there is nothing to "
                "learn from it. Give it another teacher.model, a teacher.privilege, or another objective."
            )
        if self.rollout.siblings < needs.siblings:
            raise ValueError(
                f"The objective {names} compares siblings: set rollout.siblings to {needs.siblings} or "
                f"more, not {self.rollout.siblings}."
            )
        if needs.siblings > 1 and sampling.temperature == 0:
            raise ValueError(
                f"The objective {names} compares siblings, and at rollout.sampling.temperature=0 they are "
                "all the same."
            )

    @property
    def needs(self) -> Needs:
        """What the objective asks of the run."""
        return self.objective.build().needs(0)

    @property
    def has_nothing_to_learn(self) -> bool:
        """Whether all that the objective asks is to agree with oneself."""
        agreeing = {"sampled_token", "divergence", "visual_advantage"}
        itself = self.teacher.model == SELF and self.teacher.update != "ema" and not self.teacher.keep_modules
        return itself and self.teacher.privilege == "none" and set(self.objective.parts) <= agreeing

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is loaded."""
        return self.needs.teacher or self.rollout.source == "teacher"


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
    file = find_packaged(path, "recipes")
    flat = inherited_settings(file)
    for override in overrides or []:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals:
            raise RecipeError(f"Override {override!r} must have the form key=value.")
        _merge(flat, _flatten(_nest({key: _parse(override, key, value)})))
    return _resolve(flat, str(file))


def recipe_of(*settings: dict[str, Any], source: str) -> Recipe:
    """A recipe from settings by name, nested as in a file; later ones override earlier ones.

    Args:
        settings: e.g. those of a base, and of what differs.
        source: where they come from, for messages.

    Raises:
        RecipeError: no such setting (naming the nearest), or a value that does not fit.
    """
    merged: dict[str, Any] = {}
    for own in settings:
        _merge(merged, _flatten(own))
    return _resolve(merged, source)


def inherited_settings(file: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Settings by dotted name from a YAML file and from the files that it names under `base`.

    `base` is a file name, or a list of them in the order in which they are merged, relative to the file
    itself. The file's own settings win; a null removes what a base has under that name.

    Args:
        file: the YAML file.
        heirs: the files that led here.

    Raises:
        RecipeError: a file is missing or not settings, or files are each other's base.
    """
    if file in heirs:
        raise RecipeError(f"{file} is its own base, by way of {heirs[-1]}.")
    settings = read_settings(file)
    bases = settings.pop("base", None) or []
    merged: dict[str, Any] = {}
    for name in [bases] if isinstance(bases, str) else bases:
        base = (file.parent / str(name)).resolve()
        if not base.is_file():
            raise RecipeError(f"{file}: its base {name} does not exist.")
        _merge(merged, inherited_settings(base, (*heirs, file)))
    _merge(merged, _flatten(settings))
    return merged


def read_settings(file: Path) -> dict[str, Any]:
    """Settings by name from a YAML file.

    Raises:
        RecipeError: it is not YAML, names a key twice, or is something else than settings.
    """
    try:
        text = file.read_text()
        _check_unique(yaml.compose(text), file)
        settings = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{file} must hold settings by name, not a {type(settings).__name__}.")
    return settings


def _check_unique(root: yaml.Node | None, file: Path) -> None:
    """No section names a key twice: YAML itself would keep the last one without a word.

    Raises:
        RecipeError: one does.
    """
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    first = lines[key.value]
                    raise RecipeError(f"{file} sets {key.value} twice, in line {first} and in line {line}.")
                lines[key.value] = line
            waiting.append(value)


def _resolve(flat: dict[str, Any], source: str) -> Recipe:
    _check_keys(flat, source)
    for key, value in flat.items():
        wanted = _unfit(_kinds().get(key), value)
        if wanted is not None:
            raise RecipeError(f"{source}: {key} must be {wanted}, not {value!r}.")
    parser = recipe_parser()
    try:
        values = parser.parse_object(_nest(flat))
        return Recipe(**parser.instantiate(values).as_dict())
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(f"{source}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """What is wrong, without the parser's account of the types that it tried for an optional component."""
    text = " ".join(str(error).split()).replace("Parser key", "setting")
    tried = re.search(r"Errors: - (.*?) - Expected a <class 'NoneType'>", text)
    if tried is None:
        return text
    inner = re.sub(r"Problem with given class_path '[^']*': ", "", tried[1])
    outer = re.match(r'setting "([\w.]+)"', text)
    return inner if outer is None else inner.replace('setting "', f'setting "{outer[1]}.', 1)


def _parse(override: str, key: str, value: str) -> Any:
    """A value as YAML would read it, but text where the setting is text: a path may hold anything."""
    kind = _kinds().get(key)
    if kind in (str, str | list[str]) or (kind == str | None and value not in ("null", "")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"Override {override!r}: {value!r} is not a value that YAML can read.") from error


def setting_types(component: type, prefix: str = "") -> dict[str, Any]:
    """The type of every setting by its dotted name; of optional components also their own name."""
    hints = get_type_hints(component)
    found: dict[str, Any] = {}
    for name in (own.name for own in fields(component)):
        kinds: list[Any] = [hints[name], *get_args(hints[name])]
        nested = next((kind for kind in kinds if is_dataclass(kind)), None)
        if nested is not hints[name]:
            found[f"{prefix}{name}"] = hints[name]
        if nested is not None:
            found |= setting_types(cast(type, nested), f"{prefix}{name}.")
    return found


def find_packaged(path: str, folder: Literal["recipes", "studies"]) -> Path:
    """A YAML file, or the packaged one of that name.

    Raises:
        RecipeError: there is neither.
    """
    file, root = Path(path), resolve_packaged(folder)
    if file.is_file():
        return file
    packaged = root / f"{path}.yaml"
    if packaged.is_file():
        return packaged
    found = (p.relative_to(root).with_suffix("") for p in root.rglob("*.yaml") if p.parent.name != "bases")
    known = sorted(map(str, found))
    if file.suffix in (".yaml", ".yml") and not path.startswith(tuple(known)):
        raise RecipeError(f"There is no file {path}.")
    kind = {"recipes": "recipe", "studies": "study"}[folder]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.0)
    raise RecipeError(f"There is no {kind} {path}; did you mean {' or '.join(near)}?")


@functools.cache
def _kinds() -> dict[str, Any]:
    return setting_types(Recipe)


def _is_table(key: str) -> bool:
    """Whether a setting is itself a table of the user's words, as data.columns."""
    return get_origin(_kinds().get(key)) is dict


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and not _is_table(f"{prefix}{key}"):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:  # an empty one names an optional component without changing its settings
            flat[f"{prefix}{key}"] = value
    return flat


def _merge(flat: dict[str, Any], later: dict[str, Any]) -> None:
    """Put later settings after earlier ones. A null removes what was set under its name; where the
    setting itself cannot be null, that leaves its default."""
    for key, value in later.items():
        before = flat.get(key)
        for old in list(flat):
            if old == key or (value is None and old.startswith(f"{key}.")):
                del flat[old]
        if _is_table(key) and isinstance(before, dict) and isinstance(value, dict):
            value = before | value
        if value is not None or not _has_default(key):
            flat[key] = value


def _has_default(key: str) -> bool:
    """Whether a null means "as if it were not there": for sections, and settings that cannot be null."""
    if key in _kinds():
        return NoneType not in get_args(_kinds()[key])
    return any(known.startswith(f"{key}.") for known in _kinds())


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            if not place.get(parent):
                place[parent] = {}
            place = place[parent]
        if not (value == {} and place.get(last)):
            place[last] = value
    return nested


def _check_keys(flat: dict[str, Any], source: str) -> None:
    known = list(_kinds())
    for key, value in flat.items():
        if key not in known and not (value == {} and any(k.startswith(f"{key}.") for k in known)):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise RecipeError(f"{source}: there is no setting {key!r}; did you mean {near!r}?")


def _unfit(kind: Any, value: Any) -> str | None:
    """What a setting takes, where the value is none of it; None where it fits, or the parser has to say."""
    kinds = [
        own for own in (get_args(kind) if NoneType in get_args(kind) else (kind,)) if own is not NoneType
    ]
    if len(kinds) != 1 or value is None:
        return None
    (own,) = kinds
    if get_origin(own) is Literal:
        near = difflib.get_close_matches(str(value), map(str, get_args(own)), n=1)
        wanted = f"one of {', '.join(map(str, get_args(own)))}" + (f" ({near[0]}?)" if near else "")
        return None if value in get_args(own) else wanted
    if is_dataclass(own):
        return None if isinstance(value, dict) else "a section: {} for its defaults, or settings by name"
    if own is bool:
        return None if isinstance(value, bool) else "true or false"
    if own is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if own is float:
        try:  # YAML reads 1e-4 as text
            return None if not isinstance(value, bool) and float(value) is not None else "a number"
        except (TypeError, ValueError):
            return "a number"
    return None


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every setting written out; `load_recipe` reads it back."""
    plain = json.loads(json.dumps(asdict(recipe)))  # tuples become lists, which YAML has too
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
