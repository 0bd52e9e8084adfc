"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vicur.data.sample import Sample
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.objectives.objective import OLD, Objective
from vicur.rollouts.source import RolloutSource
from vicur.training.measurement import Measurement
from vicur.training.metrics import describe_responses, describe_tokens, describe_updates, join_tokens
from vicur.training.progress import Progress
from vicur.training.records import Records
from vicur.training.update import Updater


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and where to."""

    steps: int = 275
    """Rollout batches; each is followed by one update or several."""
    prompts_per_step: int = 128
    """Problems of one rollout batch."""
    prompts_per_update: int | None = None
    """Problems of one update; by default all of the rollout batch."""
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
        for name in ("steps", "prompts_per_step", "prompts_per_update"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} must be at least 1, not {value}.")
        if self.prompts_per_step % self.update_size:
            raise ValueError(
                f"training.prompts_per_update={self.prompts_per_update} does not divide "
                f"training.prompts_per_step={self.prompts_per_step}."
            )

    @property
    def update_size(self) -> int:
        """Problems of one update."""
        return self.prompts_per_update or self.prompts_per_step

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.steps * (self.prompts_per_step // self.update_size)


@dataclass(frozen=True)
class Trainer:
    """The parts of a run, put together.

    Attributes:
        samples: the training problems.
        source: where responses come from.
        measurement: what is measured on them before any gradient.
        objective: what is minimised.
        updater: changes the student by it.
        config: length and size.
    """

    samples: Sequence[Sample]
    source: RolloutSource
    measurement: Measurement
    objective: Objective
    updater: Updater
    config: TrainingConfig

    def train(self, records: Records, progress: Progress) -> HintLeakage:
        """Run all steps.

        Returns:
            hint leakage over all rollouts.
        """
        batches = self._batches()
        leakage = HintLeakage()
        index = 0
        for step in progress.steps(self.config.steps):
            started = time.perf_counter()
            self.measurement.forget()
            needs = self.objective.needs(step)
            rollouts = self.source.rollouts(next(batches), step)
            sampled = self.config.old_log_probs == "sampled" and OLD in needs.log_probs
            old = rollouts.sampling_log_probs if sampled else None
            measured = self.measurement.of_rollouts(rollouts, needs, step, old)
            updates = []
            for batch in measured.updates(self.config.update_size):
                complete = self.measurement.of_update(batch, needs)
                updates.append(self.updater.update(complete, needs, index))
                index += 1
            tokens = join_tokens(updates)
            leaked = hint_leakage(rollouts.flat_texts)
            leakage += leaked
            metrics = describe_updates(updates)
            metrics |= describe_tokens(tokens, rollouts.response_index.to(self.measurement.student.device))
            metrics |= describe_responses(measured, leaked)
            metrics["seconds"] = time.perf_counter() - started
            records.write_rollouts(step, rollouts, tokens, measured.correct)
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
