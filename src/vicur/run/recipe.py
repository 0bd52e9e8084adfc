"""A recipe: the settings of every component, read from YAML and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from vicur.data.sources import DataConfig
from vicur.data.views import View, in_hindsight, student_view
from vicur.evaluation.runner import EvaluationConfig
from vicur.models.load import StudentConfig
from vicur.objectives.mixture import ObjectiveConfig
from vicur.objectives.objective import OLD, REFERENCE, TEACHER, UNPRIVILEGED, Needs
from vicur.packaged import display_path, find_packaged, read_settings, resolve_packaged
from vicur.paths import expand
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.source import RolloutConfig
from vicur.scoring.scorer import ScoringConfig
from vicur.scoring.teacher import SELF, TeacherConfig
from vicur.scoring.term import STUDENT
from vicur.settings.schema import Layer, Schema, as_yaml, schema_of
from vicur.settings.section import SettingsError, Text, section, short
from vicur.training.loop import TrainingConfig
from vicur.training.optimizer import OptimizerConfig

_LONGEST_CHAIN = 20
"""Maximum number of files that have each other as their base."""
MOST_RESPONSES = 2**20
"""Maximum number of responses in a rollout step. The published runs have up to a few thousand."""


@section
class Recipe:
    """All settings of a training run."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """The model that learns."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher model and what it sees."""
    teachers: dict[Text, TeacherConfig] = field(default_factory=dict)
    """Further teachers by name, each with the settings of `teacher`, for objectives that name them: in
    objective.target.looks, and in gate.evidence.of. Teachers that differ only in what they are shown share
    their weights."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss to minimise."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Generation of the responses."""
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    """Layout and scoring of the responses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimisation of the student."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Length, batch sizes and output of the training."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", self.objective.written_out())
        student_view(self.student.view, "student.view")
        self._check_teachers()
        needs, names = self.needs, " + ".join(self.objective.parts)
        if self.rollout.source not in needs.sources:
            raise ValueError(
                f"The objective {names} cannot learn from rollout.source={self.rollout.source}; it takes "
                f"responses of {' or '.join(sorted(needs.sources))}."
            )
        if self.training.old_log_probs == "sampled" and OLD in needs.log_probs:
            self._check_sampled_log_probs()
        if self.has_nothing_to_learn:
            raise ValueError(
                "The teacher is the student before training and sees what the student sees: there is nothing "
                "to learn from it. Give it another teacher.model, a teacher.privilege, or another objective."
            )
        self._check_hindsight()
        self._check_best_checkpoints()
        self._check_served_teacher()
        if (responses := self.rollout.group_size * self.training.prompts_per_step) > MOST_RESPONSES:
            raise ValueError(
                f"rollout.group_size={self.rollout.group_size} and training.prompts_per_step="
                f"{self.training.prompts_per_step} make {responses:,} responses per step; the most is "
                f"{MOST_RESPONSES:,}."
            )
        if self.rollout.group_size < needs.group_size:
            raise ValueError(
                f"The objective {names} compares a problem's responses: set rollout.group_size to "
                f"{needs.group_size} or more, not {self.rollout.group_size}."
            )
        if needs.group_size > 1 and self.rollout.sampling.temperature == 0:
            raise ValueError(
                f"The objective {names} compares a problem's responses, and at "
                "rollout.sampling.temperature=0 they are all the same."
            )

    def _check_sampled_log_probs(self) -> None:
        """Check that the sampler's log-probs are those of the old student."""
        if not self.rollout.sampling.is_policy:
            raise ValueError(
                "training.old_log_probs=sampled needs temperature 1, top_p 1, top_k 0 and no presence "
                "penalty: otherwise the sampler's log-probs are not the student's."
            )
        if self.scoring.vocabulary == "shared":
            raise ValueError(
                "training.old_log_probs=sampled needs scoring.vocabulary=sampleable: the sampler's log-probs "
                "are over the tokens that a response can consist of. Set training.old_log_probs=scored."
            )
        if self.rollout.engine != "torch" and self.student.dtype != "float32":
            raise ValueError(
                f"training.old_log_probs=sampled with rollout.engine={self.rollout.engine} is exact only in "
                f"float32, not in {self.student.dtype}. Set training.old_log_probs=scored."
            )
        if self.rollout.source != "student":
            raise ValueError(
                "training.old_log_probs=sampled takes the sampler's log-probs for the student's, and with "
                f"rollout.source={self.rollout.source} the student is not the sampler. Set "
                "training.old_log_probs=scored."
            )

    def _check_teachers(self) -> None:
        """Check the names of the teachers, and that each one that is named exists and is used."""
        for name, config in self.teachers.items():
            taken = name in (OLD, REFERENCE, UNPRIVILEGED) or name.startswith((STUDENT, TEACHER))
            if taken or not name.isidentifier():
                raise ValueError(
                    f"teachers.{name} must have another name: a word that does not begin with student or "
                    f"teacher, and is none of {OLD}, {REFERENCE} and {UNPRIVILEGED}."
                )
            if config.servers:
                raise ValueError(f"teachers.{name}.servers: only `teacher` can run on servers.")
        named = self.needs.models - {STUDENT, TEACHER}
        for name in sorted(named - set(self.teachers)):
            known = f"teachers has {', '.join(self.teachers)}" if self.teachers else "teachers is empty"
            raise ValueError(f"The objective reads the teacher {name}, which is not in teachers: {known}.")
        for name in sorted(set(self.teachers) - named):
            raise ValueError(
                f"teachers.{name} is not used: name it in objective.target.looks or gate.evidence.of, or "
                "remove it."
            )

    def _check_hindsight(self) -> None:
        """Check that a teacher that is shown responses has some to be shown."""
        views = [view for view in self.teacher_views if in_hindsight(view)]
        for view in views:
            if self.rollout.source == "teacher":
                raise ValueError(
                    f"The view {view.name} shows a teacher the student's response: set "
                    "rollout.source=student."
                )
            alone = self.rollout.group_size == 1 or self.rollout.sampling.temperature == 0
            if "solution" in view.name.split(" + ") and alone:
                raise ValueError(
                    f"The view {view.name} shows a teacher another response to the problem: set "
                    "rollout.group_size to 2 or more, and rollout.sampling.temperature above 0."
                )
        if in_hindsight(self.teacher.view) and "gap_split" in self.training.observe.of:
            raise ValueError(
                f"training.observe.of=gap_split cannot show the teacher what teacher.privilege="
                f"{self.teacher.privilege} shows it in training. Leave out gap_split; training.split_gap "
                "records the same numbers in training."
            )

    def _check_best_checkpoints(self) -> None:
        """Check that every checkpoint has an accuracy, if the best are kept."""
        evaluate, every = self.training.evaluate, self.training.checkpoints.every
        if self.training.checkpoints.by != "accuracy" or every is None:
            return
        if evaluate.data is None or evaluate.every is None or every % evaluate.every:
            raise ValueError(
                "Keeping the best checkpoints needs the accuracy of each: set "
                "training.evaluate.data, and set training.evaluate.every to training.checkpoints.every "
                f"({every}) or a divisor of it."
            )

    def _check_served_teacher(self) -> None:
        """Check that a teacher on servers is asked only for what they can tell."""
        if not self.teacher.servers:
            return
        names = " + ".join(self.objective.parts)
        if any(look.who == "teacher" for look in self.needs.distributions.values()):
            raise ValueError(
                "teacher.servers return log-probs of sampled tokens, and the objective "
                f"{names} needs the teacher's whole distributions. Remove teacher.servers, or use "
                "objective.sampled_token."
            )
        if self.training.observe.needs_teacher:
            raise ValueError(
                "training.observe needs the teacher's whole distributions, and teacher.servers return "
                "log-probs of sampled tokens. Remove one of them, or set training.observe.scorer=student."
            )
        if self.rollout.source == "teacher":
            raise ValueError(
                "teacher.servers score responses and do not write them. Remove teacher.servers, or set "
                "rollout.source=student."
            )

    @property
    def needs(self) -> Needs:
        """The objective's requirements on the run."""
        return self.objective.build().needs(0)

    @property
    def has_nothing_to_learn(self) -> bool:
        """Whether the objective only imitates a teacher that is the student on its own prompt."""
        itself = self.teacher.model == SELF and self.teacher.update != "ema" and not self.teacher.keep_modules
        same = self.teacher.view == student_view(self.student.view)
        return itself and same and self.needs.only_imitates and not self.teachers

    @property
    def views(self) -> dict[str, View]:
        """What each model is shown: the student, its teacher, and further teachers by name."""
        teachers = {TEACHER: self.teacher, **self.teachers}
        return {STUDENT: student_view(self.student.view)} | {n: t.view for n, t in teachers.items()}

    @property
    def teacher_views(self) -> dict[View, str]:
        """All views of teachers that the run needs, each with what to do with a problem that lacks what it
        shows (`missing_privilege` of its teacher)."""
        configs = {TEACHER: self.teacher, **self.teachers}
        names = [name for name in configs if name != TEACHER or self.teaches]
        views: dict[View, str] = {self.views[name]: configs[name].missing_privilege for name in names}
        for look in self.needs.looks:
            if look.who != STUDENT:
                views.setdefault(look.resolved(self.views), configs[look.who].missing_privilege)
        return views

    @property
    def teaches(self) -> bool:
        """Whether the student learns from `teacher`."""
        return TEACHER in self.needs.models or self.rollout.source == "teacher"

    @property
    def has_teacher(self) -> bool:
        """Whether `teacher` is loaded: also one that only judges held-out responses."""
        return self.teaches or self.training.observe.needs_teacher

    @property
    def evaluation(self) -> EvaluationConfig:
        """Settings for sampling the responses to held-out problems.

        Raises:
            SettingsError: there is no preset of the name, or it does not fit.
        """
        return self.training.evaluate.config(self.rollout.sampling, self.training.seed)


def recipe_schema() -> Schema[Recipe]:
    """The settings of a recipe, with the fields' docstrings as help."""
    return schema_of(Recipe, "train")


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply dotted overrides, e.g. ["optimizer.learning_rate=1e-4"].

    Args:
        path: a YAML file, or the name of a packaged recipe, e.g. "cuebench/opsd_cue".
        overrides: `key=value` or `--key=value`.

    Raises:
        SettingsError: the file or a setting does not exist, or a value is invalid.
    """
    file = find_packaged(path, "recipes")
    schema = recipe_schema()
    name = Layer(display_path(file), {"training.name": recipe_name(file)})
    return schema.load([name, inherited_settings(file), *schema.overrides(overrides)])


def recipe_name(file: Path) -> str:
    """The name of a packaged recipe, e.g. cuebench/opsd_cue; of another file its stem."""
    packaged = resolve_packaged("recipes").resolve()
    resolved = file.resolve()
    return (
        resolved.relative_to(packaged).with_suffix("").as_posix()
        if packaged in resolved.parents
        else resolved.stem
    )


def recipe_of(*settings: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from settings by name, nested as in a file; later ones override earlier ones.

    Args:
        settings: e.g. those of a base recipe and those of a variant.
        source: origin of the settings, for messages.
        overrides: as in `load_recipe`.

    Raises:
        SettingsError: a setting does not exist, or a value is invalid.
    """
    schema = recipe_schema()
    layers = [Layer(source, schema.flatten(layer)) for layer in settings]
    return schema.load([*layers, *schema.overrides(overrides)])


def inherited_settings(file: Path) -> Layer:
    """Settings by dotted name from a YAML file and from the files that it names under `base`.

    `base` is a file name, or a list of them in the order in which they are merged, relative to the file
    itself. The file's own settings win; a null removes what a base has under that name.

    Raises:
        SettingsError: a file is missing or does not hold settings, or is its own base.
    """
    return _inherited(file, (), {})


def _inherited(file: Path, inheriting: tuple[Path, ...], read: dict[Path, Layer]) -> Layer:
    """The layer of a file and its bases.

    Args:
        file: the YAML file.
        inheriting: the files that have this one as their base, directly or not.
        read: the layers of the bases that were read before, to which those read now are added.
    """
    if file in inheriting:
        raise SettingsError(f"{display_path(file)} is its own base, through {display_path(inheriting[-1])}.")
    if len(inheriting) >= _LONGEST_CHAIN:
        raise SettingsError(f"{display_path(inheriting[0])} has bases of bases, {_LONGEST_CHAIN} deep.")
    settings = read_settings(file, may_be_empty=True)
    layers: list[Layer] = []
    for name in _base_names(file, settings.pop("base", None)):
        base = Path(os.path.abspath(file.parent / expand(name)))
        if not base.is_file():
            raise SettingsError(f"{display_path(file)}: its base {name} does not exist or is not a file.")
        base = base.resolve()
        if base not in read:
            read[base] = _inherited(base, (*inheriting, file), read)
        layers.append(read[base])
    layers.append(Layer(display_path(file), recipe_schema().flatten(settings)))
    return recipe_schema().merged(display_path(file), layers)


def _base_names(file: Path, bases: object) -> list[str]:
    names: list[str] = []
    for name in [] if bases is None else bases if isinstance(bases, list) else [bases]:
        if not isinstance(name, str) or not name or "\0" in name:
            raise SettingsError(
                f"{display_path(file)}: base must be the name of a file or a list of them, not {short(name)}."
            )
        names.append(name)
    return names


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every setting written out; `load_recipe` reads it back."""
    return as_yaml(recipe)
