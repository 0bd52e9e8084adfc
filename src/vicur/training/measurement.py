"""What is measured before any gradient, and when.

Once per rollout batch, from its starting policy: rewards, the old student's log-probs, and all that
a frozen teacher says. At the start of each update, from the policy as it is then: the student's own
reference views.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vicur.data.views import View
from vicur.objectives.objective import OLD, Look, Needs, ScoredTokens
from vicur.rewards.grader import Grade, Grader
from vicur.rollouts.rollout import Rollouts
from vicur.scoring.engine import Reading, divergence, sampled_log_probs
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher
from vicur.scoring.term import Scores


@dataclass(frozen=True)
class Measured:
    """Rollouts and what was measured on them so far.

    Attributes:
        rollouts: the responses.
        grades: of the responses; None where there is nothing to grade against.
        log_probs: of the response tokens, under each look.
        distributions: at the response tokens, under each look.
        divergences: between such distributions.
        draws: a uniform number for each token.
    """

    rollouts: Rollouts
    grades: tuple[Grade | None, ...]
    log_probs: Mapping[str, Tensor] = field(default_factory=dict)
    distributions: Mapping[str, Scores] = field(default_factory=dict)
    divergences: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Tensor | None = None

    def part(self, prompts: slice) -> Measured:
        """What was measured on some of the samples."""
        tokens = self.rollouts.tokens(prompts)
        index = self.rollouts.prompt_index
        first, last, _ = prompts.indices(len(self.rollouts.samples))
        chosen = ((index >= first) & (index < last)).tolist()
        return Measured(
            rollouts=self.rollouts.part(prompts),
            grades=tuple(grade for grade, keep in zip(self.grades, chosen, strict=True) if keep),
            log_probs={name: values[tokens] for name, values in self.log_probs.items()},
            distributions={name: scores.part(tokens) for name, scores in self.distributions.items()},
            divergences={name: values[tokens] for name, values in self.divergences.items()},
            draws=None if self.draws is None else self.draws[tokens],
        )

    def updates(self, prompts_per_update: int) -> Iterator[Measured]:
        """Cut into the batches of one update each; siblings stay together."""
        for start in range(0, len(self.rollouts.samples), prompts_per_update):
            yield self.part(slice(start, start + prompts_per_update))

    def scored(self, device: torch.device) -> ScoredTokens:
        """What an objective makes its weights of."""
        given = [grade.reward for grade in self.grades if grade is not None]
        rewards = None
        if len(given) == len(self.grades):
            rewards = torch.tensor(given, dtype=torch.float64, device=device)
        return ScoredTokens(
            response_index=self.rollouts.response_index.to(device),
            prompt_index=self.rollouts.prompt_index.to(device),
            log_probs=self.log_probs,
            divergences=self.divergences,
            draws=self.draws,
            rewards=rewards,
        )


class Measurement:
    """Takes the measurements that an objective needs.

    Args:
        student: the model that learns.
        teacher: None where no objective needs one.
        seed: of the run, for the uniform numbers.
        grader: of responses.
    """

    def __init__(
        self, student: Scorer, teacher: Teacher | None, seed: int, grader: Grader | None = None
    ) -> None:
        self.student, self.teacher, self.seed = student, teacher, seed
        self.grader = grader or Grader()

    def forget(self) -> None:
        """At the start of a step: drop the prompts of the last one."""
        self.student.forget()
        if self.teacher is not None:
            self.teacher.scorer.forget()

    def follow(self) -> None:
        """After an update: let a teacher that follows the student do so."""
        if self.teacher is not None:
            self.teacher.follow()

    def of_rollouts(
        self, rollouts: Rollouts, needs: Needs, step: int, old_log_probs: Tensor | None
    ) -> Measured:
        """Once per rollout batch.

        Args:
            rollouts: the responses.
            needs: what to measure.
            step: of training.
            old_log_probs: of the response tokens, where the sampler knows them already.

        Raises:
            ValueError: rewards are needed and a response cannot be graded.
        """
        found = Measured(rollouts, grade(rollouts, self.grader))
        if needs.rewards:
            _check_graded(found)
        if needs.draws:
            found = replace(found, draws=rollouts.draws(self.seed, step).to(self.student.device))
        if OLD in needs.log_probs and old_log_probs is not None:
            found = replace(found, log_probs={OLD: old_log_probs.float().to(self.student.device)})
        return self._look(found, needs, lambda name, look: look.who == "teacher" or name == OLD)

    def of_update(self, measured: Measured, needs: Needs) -> Measured:
        """At the start of an update: what is still missing."""
        found = self._look(measured, needs, lambda name, look: True)
        reading = self._reading(found.rollouts)
        divergences = {
            name: divergence(found.distributions[first], found.distributions[second], reading)
            for name, (first, second) in needs.divergences.items()
        }
        return replace(found, divergences=divergences)

    def _look(self, measured: Measured, needs: Needs, wanted: Callable[[str, Look], bool]) -> Measured:
        """Add the looks that are wanted and missing; each view of a model is run once."""
        log_probs, distributions = dict(measured.log_probs), dict(measured.distributions)
        seen: dict[tuple[str, View], Scores] = {}
        reading = self._reading(measured.rollouts)
        for name, look in needs.distributions.items():
            if name not in distributions and wanted(name, look):
                distributions[name] = self._scores(measured.rollouts, look, seen)
        for name, look in needs.log_probs.items():
            if name not in log_probs and wanted(name, look):
                scores = self._scores(measured.rollouts, look, seen)
                log_probs[name] = sampled_log_probs(scores, reading)
        return replace(measured, log_probs=log_probs, distributions=distributions)

    def _scores(self, rollouts: Rollouts, look: Look, seen: dict[tuple[str, View], Scores]) -> Scores:
        scorer, view = self.student, look.view
        if look.who == "teacher":
            assert self.teacher is not None, "an objective needs a teacher, and there is none"
            scorer, view = self.teacher.scorer, look.view or self.teacher.view
        assert view is not None, "only the teacher has a view of its own"
        if (look.who, view) not in seen:
            seen[look.who, view] = scorer.scores(rollouts.samples, rollouts.response_ids, view)
        return seen[look.who, view]

    def _reading(self, rollouts: Rollouts) -> Reading:
        return self.student.reading(torch.cat([r.ids for r in rollouts.flat_responses]))


def grade(rollouts: Rollouts, grader: Grader) -> tuple[Grade | None, ...]:
    """What each response is worth."""
    pairs = zip(rollouts.samples, rollouts.texts, strict=True)
    return tuple(
        grader.grade(text, sample.answer, choices=sample.meta.get("choices"), meta=sample.meta)
        for sample, own in pairs
        for text in own
    )


def _check_graded(measured: Measured) -> None:
    for prompt, own in zip(measured.rollouts.prompt_index.tolist(), measured.grades, strict=True):
        if own is None:
            name = measured.rollouts.samples[prompt].id
            raise ValueError(
                f"A response to sample {name} cannot be graded, but the objective needs rewards."
            )
