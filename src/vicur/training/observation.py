"""Observation: measures of the student's responses to held-out problems during training, without gradient.

Only some objectives measure visual advantage or VDS. Here every run can, by the same code and on the same
problems, so that runs with different objectives have the same curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vicur import distributed
from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.data.sources import DataConfig, FileSource
from vicur.data.sources import Observer as RowObserver
from vicur.data.views import Plain, View
from vicur.diagnostics.measures import Measure, Observer, summarise_measures
from vicur.evaluation.during import check_media, first_problems
from vicur.progress import Progress
from vicur.rewards.grader import Grade, Grader
from vicur.rollouts.engines import Engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.grading import grade
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Rollouts
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher
from vicur.settings.section import Count, PathText, PositiveShare, section


@section
class ObserveConfig:
    """Measures of the student's responses to held-out problems, before the first step, every few steps, and
    after the last."""

    of: list[Measure] = field(default_factory=list)
    """What to measure: visual_advantage (VA-OPD eq. 2), vds (VGS eq. 12), language_kl and visual_kl (VGS eqs.
    7 and 11), gap_split (the gap as the sum of what the teacher's privilege and its capability add). Empty
    for nothing."""
    data: PathText | None = None
    """Problems, in any form that data.train takes; null for training.evaluate.data."""
    every: Count | None = None
    """Number of rollout steps between observations; null for only before the first step and after the
    last."""
    problems: Count = 64
    """Number of problems; the student writes one response to each, sampled as in training."""
    prompts_per_batch: Count = 16
    """Number of problems scored together; memory grows with it."""
    scorer: Literal["teacher", "student"] = "teacher"
    """Model that judges the responses as q: the teacher of the run (which is loaded for this even if the
    objective needs none), or the student itself, for its own use of the image."""
    degraded_ratio: PositiveShare = 0.1
    """Side lengths of the degraded image relative to the original, for visual_advantage."""

    def __post_init__(self) -> None:
        if self.scorer == "student" and "gap_split" in self.of:
            raise ValueError(
                "training.observe.of=gap_split compares the student with its teacher: leave it out, or set "
                "training.observe.scorer=teacher."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher of the run judges."""
        return bool(self.of) and self.scorer == "teacher"

    def open(
        self,
        data: DataConfig,
        held_out: PathText | None,
        only_for: Sequence[View] = (),
        observe: RowObserver | None = None,
    ) -> FileSource | None:
        """The problems; None if nothing is measured.

        Args:
            data: settings for reading the training problems.
            held_out: the held-out problems of the evaluations.
            only_for: leave out problems that lack what these views show.
            observe: called with every problem, as in `FileSource`.

        Raises:
            ValueError: they cannot be read, or there are none.
        """
        if not self.of:
            return None
        path = self.data or held_out
        if path is None:
            raise ValueError(
                "training.observe needs problems: set training.observe.data or training.evaluate.data."
            )
        source = data.open(path, only_for, observe=observe)
        check_media(source, data, "training.observe.data")
        return first_problems(source, self.problems)


@dataclass(frozen=True)
class Observed:
    """What was measured, over all ranks.

    Attributes:
        rollouts: the responses, with outlines of their problems.
        grades: their grades.
        tokens: the measures of every token in the flat order, in nats.
        summary: means and the like, by name.
    """

    rollouts: Rollouts
    grades: tuple[Grade | None, ...]
    tokens: dict[str, Tensor]
    summary: dict[str, float]


def observe(
    config: ObserveConfig,
    samples: Sequence[Sample],
    engine: Engine,
    sampling: SamplingConfig,
    student: Scorer,
    teacher: Teacher | None,
    grader: Grader,
    *,
    seed: int,
    progress: Progress,
    skip_bad_rows: bool = False,
) -> Observed:
    """Let the student answer the problems, and measure its responses. Ranks share the problems.

    Args:
        config: what to measure.
        samples: the problems.
        engine: engine of the student's responses.
        sampling: sampling of the training rollouts.
        student: scores the student.
        teacher: the teacher of the run; None if it has none.
        grader: grades the responses.
        seed: seed of the responses; the same at every step, so that only the student changes.
        progress: progress bar.
        skip_bad_rows: whether a problem that turns out unreadable is left out.

    Raises:
        BadRowError: a problem cannot be read, and such rows are not skipped.
    """
    judge: Scorer = student
    view: View = Plain()
    if config.scorer == "teacher":
        assert teacher is not None, "a recipe that observes by its teacher has one"
        judge, view = teacher.scorer, teacher.view
    observer = Observer(student, judge, view, config.degraded_ratio)
    for scorer in (student, judge):  # a changing teacher keeps the head of the step before
        scorer.clear_cache()
    ours = [
        sample
        for index in range(len(samples))[distributed.share(len(samples))]
        if (sample := _readable(samples, index, skip=skip_bad_rows)) is not None
    ]
    starts = range(0, len(ours), config.prompts_per_batch)
    batches = [ours[start : start + config.prompts_per_batch] for start in starts]
    generator = ModelGenerator(engine, sampling, encode=student.encode)
    with engine.awake():  # ranks have different numbers of batches
        parts = [_without_media(generator.generate(batch, Plain(), seed=seed)) for batch in batches]
    measured: list[dict[str, Tensor]] = []
    count = distributed.largest(len(batches))
    for number in progress.over(range(count), count):
        batch = batches[number] if number < len(batches) else []
        responses = parts[number].response_ids if number < len(batches) else []
        measured.append(observer.measure(batch, responses, config.of))
    for scorer in (student, judge):
        scorer.clear_cache()
    tokens = {
        name: distributed.gather_tensor(torch.cat([part[name] for part in measured])) for name in measured[0]
    }
    graded = [(part, grade(part, grader)) for part in parts]
    both = [pair for rank in distributed.gather(graded) for pair in rank]
    whole = Rollouts.joined([part for part, _ in both])
    return Observed(whole, tuple(g for _, each in both for g in each), tokens, summarise_measures(tokens))


def _readable(samples: Sequence[Sample], index: int, *, skip: bool) -> Sample | None:
    try:
        return samples[index]
    except BadRowError:
        if not skip:
            raise
        return None


def _without_media(rollouts: Rollouts) -> Rollouts:
    samples = tuple(sample.without_media() for sample in rollouts.samples)
    return Rollouts(samples, rollouts.responses, rollouts.texts)
