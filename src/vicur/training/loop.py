"""The training loop.

Shape suffixes: N response tokens of the global batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vicur.data.rows import Rows
from vicur.data.sample import Sample
from vicur.diagnostics.gap import log_prob_gap
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.models.recovery import RecoveryObserver
from vicur.objectives.objective import Objective, ScoredTokens
from vicur.rewards.answers import is_correct
from vicur.rollouts.rollout import Rollouts, StudentSource
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher
from vicur.training.optimizer import Optimizer
from vicur.training.progress import Progress
from vicur.training.records import Records


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and where to."""

    steps: int = 275
    """Updates."""
    prompts_per_step: int = 128
    """Problems of one rollout batch."""
    seed: int = 0
    """Decides the order of the problems, the responses, and fresh weights."""
    output: str = "runs/run"
    """Folder of the run."""
    old_log_probs: Literal["scored", "sampled"] = "scored"
    """Log-probs of the policy that wrote the responses: scored once more by the student, or taken
    from the sampler, which is cheaper and only right at temperature 1 without any cut-off."""
    save_model: bool = True
    """Whether the trained model is written to the run's folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Trainer:
    """The parts of a run, put together.

    Attributes:
        samples: the training problems.
        source: where responses come from.
        student: scores the student with gradient.
        teacher: scores what the student wrote.
        objective: what is minimised.
        optimizer: changes the student.
        prompts_per_micro_batch: samples whose graph is in memory together.
        config: length and size.
    """

    samples: Sequence[Sample]
    source: StudentSource
    student: Scorer
    teacher: Teacher
    objective: Objective
    optimizer: Optimizer
    prompts_per_micro_batch: int
    config: TrainingConfig

    def train(self, records: Records, progress: Progress) -> HintLeakage:
        """Run all steps.

        Returns:
            hint leakage over all rollouts.
        """
        batches = self._batches()
        leakage = HintLeakage()
        for step in progress.steps(self.config.steps):
            started = time.perf_counter()
            samples = next(batches)
            rollouts = self.source.rollouts(samples, step)
            scored = self._score(rollouts)
            weights = self.objective.weigh(scored)
            metrics, log_probs = self._update(step, rollouts, scored, weights)
            leaked = hint_leakage(rollouts.flat_texts)
            leakage += leaked
            correct = _grade(rollouts)
            metrics |= _describe(rollouts, correct, leaked)
            metrics |= log_prob_gap(scored.teacher_log_probs, scored.old_log_probs, scored.response_index)
            metrics["seconds"] = time.perf_counter() - started
            tokens = {"teacher_log_prob": scored.teacher_log_probs, "student_log_prob": log_probs}
            records.write_rollouts(step, rollouts, tokens, correct)
            records.write(step, metrics)
            progress.show(metrics)
        return leakage

    def _batches(self) -> Iterator[list[Sample]]:
        """Batches of an epoch in an order that depends on seed and epoch alone.

        What does not fill a batch at the end of an epoch is left out of that epoch.
        """
        size = self.config.prompts_per_step
        epoch = 0
        while True:
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.samples))
            for start in range(0, len(order) - size + 1, size):
                yield [self.samples[int(i)] for i in order[start : start + size]]
            epoch += 1

    def _score(self, rollouts: Rollouts) -> ScoredTokens:
        """Everything that is measured before any gradient."""
        teacher = self.teacher.log_probs(rollouts)
        if self.config.old_log_probs == "sampled":
            old = rollouts.sampling_log_probs.to(teacher)
        else:
            old = self.student.log_probs(
                rollouts.samples,
                rollouts.response_ids,
                self.objective.student_view,
                samples_per_batch=self.prompts_per_micro_batch,
            )
        return ScoredTokens(rollouts.response_index.to(old.device), old, teacher)

    def _update(
        self, step: int, rollouts: Rollouts, scored: ScoredTokens, weights_N: Tensor
    ) -> tuple[dict[str, float], Tensor]:
        """One optimizer step, in micro-batches whose gradients add up."""
        policy = self.student.policy
        policy.train()
        sums: dict[str, float] = {"loss": 0.0}
        log_probs: list[Tensor] = []
        with RecoveryObserver(policy.recovery) as observer:
            for rows, tokens in self._micro_batches(rollouts):
                part = scored.part(tokens)
                current = policy(rows)
                loss = (weights_N[tokens] * self.objective.terms(current, part)).sum()
                loss.backward()
                sums["loss"] += loss.item()
                for name, values in self.objective.metrics(current, part).items():
                    sums[name] = sums.get(name, 0.0) + float(values.sum()) / len(scored)
                log_probs.append(current.detach())
        sums["grad_norm"] = float(self.optimizer.step(step - 1))
        sums |= self.optimizer.learning_rates()
        for layer, ratio in observer.mean_change_ratio().items():
            sums[f"recovery_change_{layer}"] = ratio
        return sums, torch.cat(log_probs)

    def _micro_batches(self, rollouts: Rollouts) -> Iterator[tuple[Rows, slice]]:
        """Rows of a few samples, and the slice of the flat order that their tokens are."""
        prompts = self.student.encode(rollouts.samples, self.objective.student_view)
        responses, first = rollouts.response_ids, 0
        for start in range(0, len(prompts), self.prompts_per_micro_batch):
            part = slice(start, start + self.prompts_per_micro_batch)
            rows = self.student.rows(prompts[part], responses[part])
            tokens = slice(first, first + len(rows.response_ids))
            first = tokens.stop
            yield rows, tokens


def _grade(rollouts: Rollouts) -> list[bool | None]:
    """Whether each response states the gold answer. For the records only: no reward is trained on."""
    answers = [s.answer for s, own in zip(rollouts.samples, rollouts.texts, strict=True) for _ in own]
    return [is_correct(t, a) for t, a in zip(rollouts.flat_texts, answers, strict=True)]


def _describe(rollouts: Rollouts, correct: list[bool | None], leaked: HintLeakage) -> dict[str, float]:
    """What the responses of a step look like."""
    responses = rollouts.flat_responses
    graded = [value for value in correct if value is not None]
    surprise = torch.cat([response.log_probs for response in responses])
    metrics = {
        "response_tokens": sum(len(response.ids) for response in responses) / len(responses),
        "truncated": sum(r.finish_reason == "length" for r in responses) / len(responses),
        "entropy_estimate": -float(surprise.mean()),
        "hint_samples": float(leaked.samples),
        "hint_occurrences": float(leaked.occurrences),
    }
    return metrics | ({"rollout_accuracy": 100 * sum(graded) / len(graded)} if graded else {})
