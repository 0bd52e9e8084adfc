"""Selects the problems of a run, and reports which are left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vicur.bad_rows import reasons_in_words
from vicur.data.sample import COLUMN, Sample
from vicur.data.sources import DataConfig, FileSource
from vicur.data.tables import MissingDataError
from vicur.data.views import PRIVILEGED, view_of
from vicur.encoding.lengths import Overlong, PromptMeter, Reader, Role, fit_prompts
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.progress import Bars
from vicur.rewards.grader import Grader
from vicur.run.recipe import Recipe


@dataclass(frozen=True)
class TrainingProblems:
    """The training problems, and what was left out of them.

    Attributes:
        problems: the problems to train on.
        without_privilege: number of problems without the teacher's privilege.
        overlong: problems whose prompts are too long.
        ungradable: ids of problems whose gold answer cannot be graded against, with the reason, where
            rewards are needed.
        sizes: sizes of the prompts, by the role of their reader.
        with_media: indices of the problems that have an image or a video.
    """

    problems: FileSource
    without_privilege: int = 0
    overlong: tuple[Overlong, ...] = ()
    ungradable: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[Role, PromptSizes] = field(default_factory=dict)
    with_media: tuple[int, ...] = ()

    def notes(self) -> list[str]:
        """A sentence for each kind of problem that was skipped, with the first of them."""
        name, notes = self.problems.name, []
        if self.problems.bad_rows:
            count, why = len(self.problems.bad_rows), reasons_in_words(self.problems.bad_rows)
            notes.append(f"Skipped {count} bad rows of {name}: {why}.")
        if self.overlong:
            notes.append(
                f"Skipped {len(self.overlong)} problems of {name} with prompts that are too long, the first: "
                f"{self.overlong[0]}."
            )
        if self.ungradable:
            reasons = ", ".join(f"{n} {why}" for why, n in Counter(self.ungradable.values()).most_common())
            notes.append(
                f"Skipped {len(self.ungradable)} problems of {name} with answers that cannot be graded: "
                f"{reasons}; the first: {next(iter(self.ungradable))}."
            )
        if self.problems.inapplicable:
            notes.append(
                f"Skipped {self.problems.inapplicable} problems of {name} without the teacher's privilege."
            )
        if self.without_privilege:
            notes.append(
                f"{self.without_privilege} of {len(self.problems)} problems lack a teacher's privilege; "
                "for these the teacher sees the plain problem."
            )
        return notes


class _RowObserver:
    """Collects what a run needs to know about each problem while the rows are checked.

    Args:
        recipe: the recipe.
        readers: the models that read the prompts.

    Attributes:
        meter: sizes of the prompts.
        facts: facts about each problem, by row number.
    """

    def __init__(self, recipe: Recipe, readers: Sequence[Reader]) -> None:
        self._views = recipe.teacher_views
        self.meter = PromptMeter(readers)
        self.facts: dict[int, _Facts] = {}

    def __call__(self, row: int, outline: Sample) -> None:
        self.meter(row, outline)
        self.facts[row] = _Facts(
            id=outline.id,
            has_media=bool(outline.images or outline.videos),
            lacks={view.name: missing for view, missing in self._views.items() if not view.applies(outline)},
            answer=outline.answer,
            has_response=bool(outline.target_response and outline.target_response.strip()),
        )

    def of(self, problems: FileSource) -> list[_Facts]:
        """The facts about the problems of a source, in order."""
        return [self.facts[problems.row_number(index)] for index in range(len(problems))]


@dataclass(frozen=True)
class _Facts:
    """Facts about a problem that decide whether a run can train on it; `lacks` names the views of teachers
    for which it has nothing to show, with what is then to be done."""

    id: str
    has_media: bool
    lacks: Mapping[str, str]
    answer: str | None
    has_response: bool


def training_problems(
    recipe: Recipe, readers: Sequence[Reader], grader: Grader, bars: Bars | None = None
) -> TrainingProblems:
    """Read every row of the data once, and select the problems to train on.

    Args:
        recipe: the recipe.
        readers: the models that read the prompts.
        grader: grader of the responses.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: the data cannot be read or lacks what the recipe needs, or fewer problems are left than
            one step takes.
    """
    observer = _RowObserver(recipe, readers)
    try:
        problems = recipe.data.open(
            only_for=[view for view, missing in recipe.teacher_views.items() if missing == "skip"],
            progress=None if bars is None else bars("checking the data").over,
            observe=observer,
        )
    except MissingDataError as error:
        raise ValueError(f"{error} {_remedy(recipe)}") from error
    _check_privileges(problems, observer, recipe)
    _check_columns(problems, observer, recipe)
    _check_enough(TrainingProblems(problems), recipe)
    fitting, overlong = fit_prompts(problems, observer.meter, recipe.data.overlong)
    lacking = sum(bool(problem.lacks) for problem in observer.of(fitting))
    data = TrainingProblems(fitting, lacking, tuple(overlong))
    if recipe.needs.rewards and recipe.rewards.function is None:
        data = _gradable(data, observer, grader, bars)
    _check_enough(data, recipe)
    measured = observer.meter.measured_of(data.problems)
    return replace(
        data,
        sizes={reader.role: PromptSizes.of(measured, reader.role) for reader in readers},
        with_media=tuple(
            index for index, problem in enumerate(observer.of(data.problems)) if problem.has_media
        ),
    )


def _remedy(recipe: Recipe) -> str:
    """How to get the data of a recipe, if there is none."""
    name = "Name the file, folder or data set with the problems: data.train=FILE."
    if recipe.data.train != DataConfig().train:
        return name
    made = "vicur cuebench make --family segments --split train --n 3840 --output data/train.parquet"
    return f"{name} To make problems to try it with: {made}"


def _check_privileges(problems: FileSource, observer: _RowObserver, recipe: Recipe) -> None:
    """Check that problems have the teacher's privilege.

    Raises:
        ValueError: no problem has it, or a problem lacks it and `teacher.missing_privilege` is "error".
    """
    facts = observer.of(problems)
    lacking: Counter[str] = Counter(name for problem in facts for name in problem.lacks)
    for name, count in lacking.items():
        if count == len(problems):
            raise ValueError(_no_privilege(problems, name, recipe))
        if any(problem.lacks.get(name) == "error" for problem in facts):
            raise ValueError(
                f"{count} of {len(problems)} problems of {problems.name} lack the privilege {name}, and "
                "missing_privilege=error."
            )


def _check_columns(problems: FileSource, observer: _RowObserver, recipe: Recipe) -> None:
    """Check that every problem has the answer and the response that the recipe needs.

    Raises:
        ValueError: a problem lacks one of them.
    """
    facts = observer.of(problems)
    if recipe.needs.rewards and recipe.rewards.function is None:
        without = sum(problem.answer is None or not problem.answer.strip() for problem in facts)
        needed_by = f"the objective {' + '.join(recipe.objective.parts)}"
        _check_none_lacks(problems, without, "answer", needed_by)
    if recipe.rollout.source == "dataset":
        without = sum(not problem.has_response for problem in facts)
        _check_none_lacks(problems, without, "target_response", "rollout.source=dataset")


def _check_none_lacks(problems: FileSource, without: int, column: str, needed_by: str) -> None:
    if without:
        raise ValueError(
            f"{without} of {len(problems)} problems of {problems.name} have no {column}, which {needed_by} "
            "needs."
        )


def _no_privilege(problems: FileSource, privilege: str, recipe: Recipe) -> str:
    """Says that no problem has a privilege, which they have, and which columns hold something else."""
    has: list[str] = [name for name in PRIVILEGED if any(problems.applies(view_of(name)))]
    why = "the teacher would see what the student sees"
    if privilege.startswith(COLUMN) and " + " not in privilege:
        column = privilege.removeprefix(COLUMN)
        has += [f"{COLUMN}{name}" for name in problems.unused]
        field = next((name for name, source in problems.schema.items() if source == column), None)
        why = why if field is None else f"the column {column} is read as the {field}"
    where = "teacher.privilege" if privilege == recipe.teacher.view.name else "The view of a look or gate"
    return (
        f"No problem of {problems.name} has the privilege {privilege}: {why}. "
        f"{where} can be {' or '.join(has or ['none'])} here."
        f"{''.join(f' {note}' for note in problems.unread_notes())}"
    )


def _check_enough(data: TrainingProblems, recipe: Recipe) -> None:
    name, count, per_step = data.problems.name, len(data.problems), recipe.training.prompts_per_step
    if count < per_step:
        sentence = (
            f"{name} has {count} problems, fewer than one step takes (training.prompts_per_step={per_step})."
        )
        raise ValueError(" ".join([sentence, *data.notes()]))


def _gradable(
    data: TrainingProblems, observer: _RowObserver, grader: Grader, bars: Bars | None
) -> TrainingProblems:
    """Leave out problems whose gold answer no response can match: their reward would be noise."""
    facts: Iterable[_Facts] = observer.of(data.problems)
    if bars is not None:
        facts = bars("reading answers").over(facts, len(data.problems))
    reasons = [(problem.id, grader.exclusion(problem.answer)) for problem in facts]
    dropped = {key: why for key, why in reasons if why is not None}
    if not dropped:
        return data
    keep = [index for index, (_, why) in enumerate(reasons) if why is None]
    return replace(data, problems=data.problems.select(keep), ungradable=dropped)
