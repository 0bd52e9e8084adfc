"""Grades and scores rollouts before any gradient.

Once per rollout batch, with the weights that generated it: rewards, the old student's log-probs, and every
look of the teacher. At the start of each update, with the student's current weights: the student's reference
views, such as the blind or the masked one.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vicur import distributed
from vicur.data.views import Attempt, View, at_step, in_hindsight
from vicur.objectives.objective import OLD, TEACHER, UNPRIVILEGED, Look, Needs, ScoredTokens
from vicur.rewards.grader import Grade, Grader
from vicur.rollouts.grading import grade
from vicur.rollouts.rollout import Rollouts
from vicur.rollouts.segments import segment_masks
from vicur.scoring.chunks import Reading, divergence, sampled_log_probs
from vicur.scoring.scorer import Scorer
from vicur.scoring.served import ServedTeacher
from vicur.scoring.teacher import Teacher
from vicur.scoring.term import STUDENT, Scores
from vicur.training.clock import Clock


@dataclass(frozen=True)
class ScoredBatch:
    """Rollouts with their grades and what was scored on them so far.

    Attributes:
        rollouts: the responses.
        grades: grade of each response; None where there is nothing to grade against.
        log_probs: log-probs of the response tokens by look, in nats.
        distributions: next-token distributions at the response tokens by look.
        divergences: KL between such distributions by name, in nats.
        draws: a uniform number for each token.
        segments: whether each token is in a segment, by name.
        lacking: whether each response's problem lacks what a look shows, by the look.
        importance: factor of each token's weights; None for 1.
    """

    rollouts: Rollouts
    grades: tuple[Grade | None, ...]
    log_probs: Mapping[str, Tensor] = field(default_factory=dict)
    distributions: Mapping[str, Scores] = field(default_factory=dict)
    divergences: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Tensor | None = None
    segments: Mapping[str, Tensor] = field(default_factory=dict)
    lacking: Mapping[str, Tensor] = field(default_factory=dict)
    importance: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[ScoredBatch]) -> ScoredBatch:
        """Several batches as one, in order: their rollouts and grades, without scores."""
        rollouts = Rollouts.joined([part.rollouts for part in parts])
        return cls(rollouts, tuple(grade for part in parts for grade in part.grades))

    def part(self, prompts: slice) -> ScoredBatch:
        """The part of the batch that belongs to some of the prompts."""
        tokens = self.rollouts.tokens(prompts)
        index = self.rollouts.prompt_index
        first, last, _ = prompts.indices(len(self.rollouts.samples))
        within = (index >= first) & (index < last)
        kept = within.tolist()
        return ScoredBatch(
            rollouts=self.rollouts.part(prompts),
            grades=tuple(grade for grade, keep in zip(self.grades, kept, strict=True) if keep),
            log_probs={name: values[tokens] for name, values in self.log_probs.items()},
            distributions={name: scores.part(tokens) for name, scores in self.distributions.items()},
            divergences={name: values[tokens] for name, values in self.divergences.items()},
            draws=None if self.draws is None else self.draws[tokens],
            segments={name: values[tokens] for name, values in self.segments.items()},
            lacking={name: values[within.to(values.device)] for name, values in self.lacking.items()},
            importance=None if self.importance is None else self.importance[tokens],
        )

    @property
    def attempts(self) -> list[list[Attempt]]:
        """The responses to each problem with what became of them, for views in hindsight."""
        return attempts_of(self.rollouts, self.grades)

    def updates(self, prompts_per_update: int) -> Iterator[ScoredBatch]:
        """Split the batch into one batch per update; responses to one prompt stay together.

        Args:
            prompts_per_update: number of problems in an update, over all ranks.
        """
        shared = distributed.share(prompts_per_update)
        count = shared.stop - shared.start
        for start in range(0, len(self.rollouts.samples), count):
            yield self.part(slice(start, start + count))

    def scored_tokens(self, device: torch.device) -> ScoredTokens:
        """The numbers that an objective computes its weights from."""
        graded = [grade.reward for grade in self.grades if grade is not None]
        rewards = None
        if len(graded) == len(self.grades):
            rewards = torch.tensor(graded, dtype=torch.float64, device=device)
        return ScoredTokens(
            response_index=self.rollouts.response_index.to(device),
            prompt_index=self.rollouts.prompt_index.to(device),
            log_probs=self.log_probs,
            divergences=self.divergences,
            draws=self.draws,
            segments=self.segments,
            lacking=self.lacking,
            rewards=rewards,
        )


class BatchScorer:
    """Grades responses and runs student and teacher on them, under the views that an objective needs.

    Args:
        student: the model that learns.
        teacher: its teacher; None if no objective needs one, or if it is on servers.
        seed: seed of the run, for the uniform numbers.
        grader: grades the responses.
        served: the teacher on servers; None if there is none.
        others: further teachers by name.
    """

    def __init__(
        self,
        student: Scorer,
        teacher: Teacher | None,
        seed: int,
        grader: Grader | None = None,
        served: ServedTeacher | None = None,
        others: Mapping[str, Teacher] | None = None,
    ) -> None:
        self.student, self.teacher, self.seed, self.served = student, teacher, seed, served
        self.grader = grader or Grader()
        self._step: int | None = None
        main = {} if teacher is None else {TEACHER: teacher}
        self.teachers: dict[str, Teacher] = main | dict(others or {})

    @property
    def scorers(self) -> dict[str, Scorer]:
        """The models in this process by the names that looks have for them."""
        return {STUDENT: self.student} | {name: teacher.scorer for name, teacher in self.teachers.items()}

    @property
    def views(self) -> dict[str, View]:
        """What the recipe shows each model."""
        served = {} if self.served is None else {TEACHER: self.served.view}
        return served | {name: scorer.view for name, scorer in self.scorers.items()}

    def begin_step(self, step: int) -> None:
        """Start a step of training: random views are drawn anew; the encoded prompts of the step before are
        dropped, and so is the copy of a changing teacher's head."""
        self._step = step
        for scorer in self.scorers.values():
            scorer.begin_step(step)

    def with_gap_split(self, needs: Needs) -> Needs:
        """The needs with the teacher's look at the student's prompt, if the teacher is shown something else:
        it splits the gap into what the privilege adds and what the teacher's weights add."""
        views = self.views
        scored = [name for table in (needs.log_probs, needs.distributions) for name in table]
        if TEACHER not in scored or views[TEACHER] == views[STUDENT]:
            return needs
        return replace(needs, log_probs={**needs.log_probs, UNPRIVILEGED: Look(TEACHER, "student")})

    def weights_changed(self) -> None:
        """Follow the student's new weights after an update: EMA teachers move towards them."""
        self.student.weights_changed()
        for teacher in self.teachers.values():
            teacher.update()

    def score_rollouts(
        self,
        rollouts: Rollouts,
        needs: Needs,
        step: int,
        old_log_probs: Tensor | None,
        clock: Clock | None = None,
    ) -> ScoredBatch:
        """Grade a rollout batch, get the old student's log-probs, and run every look of the teacher.

        Args:
            rollouts: the responses.
            needs: what the objective needs.
            step: the rollout step.
            old_log_probs: the sampler's log-probs, to use as the old student's; None to score them.
            clock: measures the time of grading, of the teacher's passes and of the student's.

        Raises:
            ValueError: rewards are needed and a response cannot be graded.
        """
        clock = clock or Clock()
        batch = ScoredBatch(rollouts, grade(rollouts, self.grader))
        clock.lap("grading")
        if needs.rewards:
            _check_graded(batch)
        if needs.draws:
            batch = replace(batch, draws=rollouts.draws(self.seed, step).to(self.student.device))
        if needs.segments:
            tokenizer, device = self.student.loaded.processor.tokenizer, self.student.device
            segments = segment_masks(rollouts, needs.segments, tokenizer)
            batch = replace(batch, segments={name: mask.to(device) for name, mask in segments.items()})
        if OLD in needs.log_probs and old_log_probs is not None:
            batch = replace(batch, log_probs={OLD: old_log_probs.float().to(self.student.device)})
        batch = replace(batch, lacking=self._lacking(rollouts, needs))
        batch = self._add_looks(batch, needs, lambda name, look: look.who != STUDENT)
        clock.lap("teacher")
        batch = self._add_looks(batch, needs, lambda name, look: name == OLD)
        clock.lap("student")
        return batch

    def score_references(self, batch: ScoredBatch, needs: Needs) -> ScoredBatch:
        """Run the student's reference views with its current weights, and compute the divergences.

        Args:
            batch: the batch of an update, as `score_rollouts` scored it.
            needs: what the objective needs.
        """
        batch = self._add_looks(batch, needs, lambda name, look: True)
        reading = self._reading(batch.rollouts)
        divergences = {
            name: divergence(batch.distributions[first], batch.distributions[second], reading)
            for name, (first, second) in needs.divergences.items()
        }
        return replace(batch, divergences=divergences)

    def _add_looks(self, batch: ScoredBatch, needs: Needs, due: Callable[[str, Look], bool]) -> ScoredBatch:
        """Add the looks that are due and still missing; each view of a model is run once."""
        log_probs, distributions = dict(batch.log_probs), dict(batch.distributions)
        scores_by_view: dict[tuple[str, View], Scores] = {}
        reading = self._reading(batch.rollouts)
        for name, look in needs.distributions.items():
            if name not in distributions and due(name, look):
                distributions[name] = self._scores(batch, look, scores_by_view)
        for name, look in needs.log_probs.items():
            if name not in log_probs and due(name, look):
                log_probs[name] = self._log_probs(batch, look, reading, scores_by_view)
        return replace(batch, log_probs=log_probs, distributions=distributions)

    def _lacking(self, rollouts: Rollouts, needs: Needs) -> dict[str, Tensor]:
        """For each look with log-probs the responses to problems that lack what it shows."""
        index, device = rollouts.prompt_index, self.student.device
        lacking = {}
        for name, look in needs.log_probs.items():
            view = self._view(look)
            absent = torch.tensor([not view.applies(sample) for sample in rollouts.samples], dtype=torch.bool)
            lacking[name] = absent[index].to(device)
        return lacking

    def _view(self, look: Look) -> View:
        """What a look shows at this step; random views are drawn anew at every step."""
        assert look.who in self.views, f"an objective needs the model {look.who}, and the run has none"
        view = look.resolved(self.views)
        return view if self._step is None else at_step(view, self._step)

    def _log_probs(
        self,
        batch: ScoredBatch,
        look: Look,
        reading: Reading,
        scores_by_view: dict[tuple[str, View], Scores],
    ) -> Tensor:
        """Log-probs of the response tokens under a look, in nats."""
        if look.who != TEACHER or self.served is None:
            return sampled_log_probs(self._scores(batch, look, scores_by_view), reading)
        view, rollouts = self._view(look), batch.rollouts
        attempts = batch.attempts if in_hindsight(view) else None
        log_probs = self.served.log_probs(rollouts.samples, rollouts.response_ids, view, attempts)
        return log_probs.to(self.student.device)

    def _scores(
        self, batch: ScoredBatch, look: Look, scores_by_view: dict[tuple[str, View], Scores]
    ) -> Scores:
        key = (look.who, self._view(look))
        if key not in scores_by_view:
            rollouts = batch.rollouts
            attempts = batch.attempts if in_hindsight(key[1]) else None
            scorer = self.scorers[look.who]
            scores_by_view[key] = scorer.scores(rollouts.samples, rollouts.response_ids, key[1], attempts)
        return scores_by_view[key]

    def _reading(self, rollouts: Rollouts) -> Reading:
        return self.student.reading(torch.cat([r.ids for r in rollouts.flat_responses]))


def attempts_of(rollouts: Rollouts, grades: Sequence[Grade | None]) -> list[list[Attempt]]:
    """The responses to each problem, graded, each with the first other one that is right.

    Args:
        rollouts: the responses.
        grades: their grades in the flat order; None for those that cannot be graded.
    """
    verdicts = iter(None if grade is None else grade.correct for grade in grades)
    attempts = []
    for texts in rollouts.texts:
        graded = [(text, next(verdicts)) for text in texts]
        attempts.append(
            [
                Attempt(text, correct, _another_solution(graded, number))
                for number, (text, correct) in enumerate(graded)
            ]
        )
    return attempts


def _another_solution(graded: Sequence[tuple[str, bool | None]], number: int) -> str | None:
    return next((text for i, (text, correct) in enumerate(graded) if correct and i != number), None)


def _check_graded(batch: ScoredBatch) -> None:
    for prompt, response_grade in zip(batch.rollouts.prompt_index.tolist(), batch.grades, strict=True):
        if response_grade is None:
            name = batch.rollouts.samples[prompt].id
            raise ValueError(
                f"A response to problem {name} cannot be graded, but the objective needs rewards."
            )
