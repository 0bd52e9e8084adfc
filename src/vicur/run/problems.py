"""Selects the problems of a run, and reports which are left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vicur.bad_rows import reasons_in_words
from vicur.data.sample import COLUMN, PRIVILEGES
from vicur.data.sources import FileSource
from vicur.data.views import Hinted, Plain, View
from vicur.encoding.lengths import Overlong, fit_prompts
from vicur.progress import Bars
from vicur.rewards.grader import Grader
from vicur.run.recipe import Recipe
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher


@dataclass(frozen=True)
class TrainingProblems:
    """The training problems, and what was left out of them.

    Attributes:
        problems: the problems to train on.
        without_privilege: number of problems without the teacher's privilege.
        overlong: problems whose prompts are too long.
        ungradable: ids of problems whose gold answer cannot be graded against, with the reason, where
            rewards are needed.
    """

    problems: FileSource
    without_privilege: int = 0
    overlong: tuple[Overlong, ...] = ()
    ungradable: Mapping[str, str] = field(default_factory=dict)

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
                f"{self.without_privilege} of {len(self.problems)} problems lack the teacher's privilege; "
                "for these the teacher sees the student's prompt."
            )
        return notes


def open_problems(recipe: Recipe, bars: Bars | None) -> FileSource:
    """The training problems, before any model is there to ask how long they are.

    Raises:
        ValueError: they lack what the recipe needs.
    """
    view = recipe.teacher.view
    only_for = view if recipe.has_teacher and recipe.teacher.missing_privilege == "skip" else None
    problems = recipe.data.open(
        only_for=only_for, progress=None if bars is None else bars("checking the data").over
    )
    having = len(problems) - _lacking(problems, view if recipe.has_teacher else Plain())
    if having < len(problems) and recipe.teacher.missing_privilege == "error":
        raise ValueError(
            f"{len(problems) - having} of {len(problems)} problems of {problems.name} lack the privilege "
            f"{recipe.teacher.privilege}, and teacher.missing_privilege=error."
        )
    if having == 0:
        raise ValueError(_no_privilege(problems, recipe.teacher.privilege))
    needs_answer = recipe.needs.rewards and recipe.rewards.function is None
    required = {"answer": needs_answer, "target_response": recipe.rollout.source == "dataset"}
    for column in (name for name, is_required in required.items() if is_required):
        bare = sum(value is None or not value.strip() for value in problems.column(column))
        if bare:
            names = " + ".join(recipe.objective.parts)
            why = f"the objective {names}" if column == "answer" else "rollout.source=dataset"
            raise ValueError(
                f"{bare} of {len(problems)} problems of {problems.name} have no {column}, which {why} needs."
            )
    _check_enough(TrainingProblems(problems), recipe)
    return problems


def _no_privilege(problems: FileSource, privilege: str) -> str:
    """Says that no problem has a privilege, and which they have."""
    has: list[str] = [kind for kind in PRIVILEGES if any(problems.applies(Hinted(kind)))]
    why = "the teacher would see what the student sees"
    if privilege.startswith(COLUMN):
        column = privilege.removeprefix(COLUMN)
        has += [f"{COLUMN}{name}" for name in problems.unused]
        field = next((name for name, source in problems.schema.items() if source == column), None)
        why = why if field is None else f"the column {column} is read as the {field}"
    return (
        f"No problem of {problems.name} has the privilege {privilege}: {why}. "
        f"teacher.privilege can be {' or '.join(has or ['none'])} here."
    )


def _lacking(problems: FileSource, view: View) -> int:
    """Number of problems that lack what a view shows; a plain view is not worth a pass over the data."""
    return 0 if view == Plain() else problems.applies(view).count(False)


def _check_enough(data: TrainingProblems, recipe: Recipe) -> None:
    name, count, per_step = data.problems.name, len(data.problems), recipe.training.prompts_per_step
    if count < per_step:
        sentence = (
            f"{name} has {count} problems, fewer than one step takes (training.prompts_per_step={per_step})."
        )
        raise ValueError(" ".join([sentence, *data.notes()]))


def fitting_problems(
    recipe: Recipe,
    problems: FileSource,
    student: Scorer,
    teacher: Teacher | None,
    grader: Grader,
    bars: Bars | None,
) -> TrainingProblems:
    """The problems whose prompts are short enough, and whose answers can be graded where they must be.

    Raises:
        ValueError: fewer are left than one step takes.
    """
    fitting, overlong = fit_prompts(
        problems,
        student.encoder,
        recipe.data,
        None if teacher is None else teacher.view,
        teacher_encoder=None if teacher is None else teacher.scorer.encoder,
        progress=None if bars is None else bars("measuring prompts").over,
    )
    lacking = _lacking(fitting, Plain() if teacher is None else teacher.view)
    data = TrainingProblems(fitting, lacking, tuple(overlong))
    if recipe.needs.rewards and recipe.rewards.function is None:
        data = _gradable(data, grader, bars)
    _check_enough(data, recipe)
    return data


def _gradable(data: TrainingProblems, grader: Grader, bars: Bars | None) -> TrainingProblems:
    """Leave out problems whose gold answer no response can match: their reward would be noise."""
    answers = data.problems.column("answer")
    rows: Iterable[tuple[int, str | None]] = enumerate(answers)
    if bars is not None:
        rows = bars("reading answers").over(rows, len(answers))
    reasons = [grader.exclusion(answer) for _, answer in rows]
    ids = data.problems.column("id")
    dropped = {str(key): why for key, why in zip(ids, reasons, strict=True) if why is not None}
    if not dropped:
        return data
    keep = [index for index, why in enumerate(reasons) if why is None]
    return replace(data, problems=data.problems.select(keep), ungradable=dropped)
