"""What a run does with held-out problems: the accuracy of the student, and measures of its responses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from vicur.data.sources import DataConfig, FileSource
from vicur.data.sources import Observer as RowObserver
from vicur.evaluation.presets import differences
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.models.load import LoadedModel
from vicur.progress import Bars, silent
from vicur.rollouts.engines import Engine, make_engine
from vicur.run.recipe import Recipe
from vicur.training.observation import observe
from vicur.training.records import Records
from vicur.training.scoring import BatchScorer
from vicur.training.state import RunState

Result = TypeVar("Result")


@dataclass(frozen=True)
class HeldOut:
    """Held-out problems, and what they are used with before, during and after training.

    Attributes:
        recipe: the recipe.
        student: the model that is trained.
        scoring: the student and its teacher, as they score responses, and the grader.
        evaluated: problems for the accuracy; None for none.
        evaluation: sampling of the responses to them, read once: its preset may be a file that changes.
        reading: settings that they are read with.
        observed: problems on which responses are measured; None for none.
        engine: engine of the student's responses; None for PyTorch, with batches of their own.
    """

    recipe: Recipe
    student: LoadedModel
    scoring: BatchScorer
    evaluated: FileSource | None
    evaluation: EvaluationConfig
    reading: DataConfig
    observed: FileSource | None
    engine: Engine | None = None

    def run_if_due(self, state: RunState, records: Records, steps: int, bars: Bars | None) -> bool:
        """Evaluate and observe if that is due after the present step and was not done yet.

        Args:
            state: where the run is; what was done at which step is noted there.
            records: the run's files.
            steps: number of steps of the run.
            bars: progress bars; silent if not given.

        Returns:
            whether anything was done.
        """
        training, step = self.recipe.training, state.step
        before = (state.evaluated, state.observed)
        if self.evaluated is not None and _is_due(training.evaluate.every, state.evaluated, step, steps):
            started = time.perf_counter()
            self._evaluate(self.evaluated, state, records, bars)
            state.evaluated = step
            records.count_seconds("evaluation", time.perf_counter() - started)
        if self.observed is not None and _is_due(training.observe.every, state.observed, step, steps):
            started = time.perf_counter()
            self._observe(self.observed, state, records, bars)
            state.observed = step
            records.count_seconds("observation", time.perf_counter() - started)
        return before != (state.evaluated, state.observed)

    def notes(self) -> list[str]:
        """Sentences about evaluations that show other prompts than the training, and about observed problems
        without the teacher's privilege."""
        notes = []
        if self.evaluated is not None:
            changed = differences({"data": asdict(self.recipe.data)}, {"data": asdict(self.reading)})
            notes += [f"In evaluations {text}." for text in changed]
        if self.observed is None or not _splits_gap(self.recipe):
            return notes
        name = self.observed.name
        if self.observed.inapplicable:
            notes.append(
                f"Skipped {self.observed.inapplicable} observed problems of {name} without the teacher's "
                "privilege."
            )
        if lacking := _lacking(self.observed, self.recipe):
            notes.append(
                f"{lacking} of {len(self.observed)} observed problems of {name} lack the teacher's "
                "privilege; for these the teacher sees the plain problem, and privilege_gap is 0."
            )
        return notes

    def _evaluate(self, problems: FileSource, state: RunState, records: Records, bars: Bars | None) -> None:
        """Let the student answer the held-out problems."""
        evaluation = evaluate(
            self.student,
            problems,
            self.evaluation,
            None if bars is None else bars(f"evaluation after step {state.step}"),
            grader=self.scoring.grader,
            limits=self.reading.pixel_limits(),
            engine=self.engine,
            skip_bad_rows=self.recipe.data.bad_rows == "skip",
        )
        by_id = {sample.id: sample for sample in problems.outlines()}
        if evaluation.by_problem:
            state.scores[state.step] = evaluation.accuracy.value
        answered = [by_id[answer.id] for answer in evaluation.answers]
        records.write_evaluation(state.step, evaluation, answered, self.evaluation.sampling)

    def _observe(self, problems: FileSource, state: RunState, records: Records, bars: Bars | None) -> None:
        """Measure the student's responses to held-out problems."""
        config = self.recipe.training.observe
        observed = observe(
            config,
            problems,
            self.engine or make_engine(self.student, prompts_per_batch=config.prompts_per_batch),
            self.recipe.rollout.sampling,
            self.scoring.student,
            self.scoring.teacher,
            self.scoring.grader,
            seed=self.recipe.training.seed,
            progress=silent() if bars is None else bars(f"observation after step {state.step}"),
            skip_bad_rows=self.recipe.data.bad_rows == "skip",
        )
        records.write_observation(
            state.step, observed.summary, observed.rollouts, observed.tokens, observed.grades
        )


def observed_problems(recipe: Recipe, observe: RowObserver | None = None) -> FileSource | None:
    """The problems on which responses are measured; None for none.

    Args:
        recipe: the recipe.
        observe: called with every problem, as in `FileSource`.

    Raises:
        ValueError: they cannot be read, or the gap is split and no problem has the teacher's privilege, or
            one lacks it and `teacher.missing_privilege` is "error".
    """
    training, missing = recipe.training, recipe.teacher.missing_privilege
    splits = _splits_gap(recipe)
    only_for = [recipe.teacher.view] if splits and missing == "skip" else ()
    source = training.observe.open(recipe.data, training.evaluate.data, only_for, observe)
    lacking = _lacking(source, recipe) if source is not None and splits else 0
    if source is not None and lacking and (lacking == len(source) or missing == "error"):
        raise ValueError(
            f"training.observe.of=gap_split: {lacking} of {len(source)} problems of {source.name} lack the "
            f"privilege {recipe.teacher.privilege}. Choose other problems with training.observe.data, or "
            "leave out gap_split."
        )
    return source


def _splits_gap(recipe: Recipe) -> bool:
    """Whether the part of the gap that comes from the teacher's privilege is measured."""
    return "gap_split" in recipe.training.observe.of


def _lacking(problems: FileSource, recipe: Recipe) -> int:
    """Number of problems without what the teacher is shown."""
    return sum(not recipe.teacher.view.applies(outline) for outline in problems.outlines())


def _is_due(every: int | None, last: int, step: int, steps: int) -> bool:
    is_due = step in (0, steps) or (every is not None and step % every == 0)
    return is_due and last < step


def during(bars: Bars | None, title: str, work: Callable[[], Result]) -> Result:
    """Do something under a progress bar, if there are any."""
    return work() if bars is None else bars(title).during(work)
