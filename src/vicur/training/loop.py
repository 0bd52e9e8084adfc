"""The training loop: sample responses, score them, weight their tokens, update the student."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from torch import Tensor

from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.models.devices import check_name
from vicur.objectives.objective import OLD, Needs, Objective
from vicur.progress import Progress
from vicur.rollouts.rollout import Rollouts
from vicur.rollouts.source import RolloutSource
from vicur.settings.section import Count, PathText, section
from vicur.training.clock import Clock
from vicur.training.metrics import describe_step, join_tokens
from vicur.training.records import Records
from vicur.training.scoring import BatchScorer
from vicur.training.update import Updater


@section
class TrainingConfig:
    """Length, batch sizes, device and output of a training run."""

    steps: Count | None = None
    """Number of rollout steps. A rollout step samples one batch of responses and makes one or more updates on
    it. null for as many as the epochs have."""
    epochs: Count = 5
    """Number of passes over the problems, used if steps is null. The last problems of an epoch that do not
    fill a rollout step are skipped in that epoch."""
    prompts_per_step: Count = 128
    """Number of problems per rollout step."""
    prompts_per_update: Count | None = None
    """Number of problems per update; null for all problems of the rollout step."""
    seed: int = 0
    """Seed for the order of the problems, sampling, and fresh weights."""
    device: str = "auto"
    """Device of student and teacher: cpu, cuda or cuda:N; auto for a GPU if torch finds one, else the CPU."""
    name: str = "run"
    """Name of the run; `vicur train` sets it to the recipe's name unless it is given. Its folder is
    runs/NAME, or runs/NAME-2 and so on if that exists."""
    output: PathText | None = None
    """Folder of the run; null for runs/NAME. A folder that already holds a run is refused unless
    overwrite=true."""
    overwrite: bool = False
    """Delete the run that the folder already holds. If the folder holds other files, nothing is deleted."""
    old_log_probs: Literal["scored", "sampled"] = "scored"
    """Old log-probs, those of the policy that sampled the responses: "scored" by one more forward pass of the
    student, or "sampled", taken from the sampler, which is cheaper and exact only at temperature 1 without
    top-p, top-k or penalties."""
    save_model: bool = True
    """Whether to save the trained model in the run's folder."""

    def __post_init__(self) -> None:
        if self.prompts_per_step % self.update_size:
            raise ValueError(
                f"training.prompts_per_update={self.prompts_per_update} does not divide "
                f"training.prompts_per_step={self.prompts_per_step}."
            )
        check_name(self.device)
        parts = PurePosixPath(self.name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(
                f"training.name must be the name of a folder inside runs, not {self.name!r}. To write "
                "anywhere else, set training.output."
            )

    @property
    def update_size(self) -> int:
        """Number of problems in an update."""
        return self.prompts_per_update or self.prompts_per_step

    def rollout_batches(self, problems: int) -> int:
        """Number of rollout steps in the run.

        Args:
            problems: number of training problems.
        """
        return self.steps or self.epochs * (problems // self.prompts_per_step)

    def updates(self, problems: int) -> int:
        """Number of updates in the run."""
        return self.rollout_batches(problems) * (self.prompts_per_step // self.update_size)


@dataclass(frozen=True)
class Trainer:
    """Runs the steps of a training run.

    Attributes:
        samples: the training problems.
        source: source of the responses: student, teacher or data set.
        scoring: grades responses and runs student and teacher on them, without gradient.
        objective: turns the scores into weighted loss terms.
        updater: computes their gradient and takes the optimizer step.
        config: length and size of the run.
        skip_bad_rows: whether a problem that turns out to be unreadable is skipped and counted; otherwise
            it ends the run.
    """

    samples: Sequence[Sample]
    source: RolloutSource
    scoring: BatchScorer
    objective: Objective
    updater: Updater
    config: TrainingConfig
    skip_bad_rows: bool = False

    def train(self, records: Records, progress: Progress) -> HintLeakage:
        """Run all steps.

        Returns:
            hint leakage over all rollouts.

        Raises:
            BadRowError: a problem cannot be read and `skip_bad_rows` is false.
        """
        skipped: list[BadRowError] = []
        batches = self._batches(skipped, progress)
        leakage = HintLeakage()
        num_updates = 0
        for step in progress.steps(self.config.rollout_batches(len(self.samples))):
            clock = Clock()
            self.scoring.clear_caches()
            needs = self.objective.needs(step)

            # The student responds to each problem; or the teacher or the data set does, see rollout.source.
            rollouts = self.source.rollouts(next(batches), step)
            clock.lap("sampling")

            # The teacher scores the same tokens under its own view, with the hint if it has a privilege, and
            # under any other view that the objective needs. Responses are graded here, too.
            old = self._sampled_log_probs(rollouts, needs)
            batch = self.scoring.score_rollouts(rollouts, needs, step, old)

            updates = []
            for part in batch.updates(self.config.update_size):
                # The student scores them under its reference views, with its weights from before this update.
                scored = self.scoring.score_references(part, needs)
                # All token weights, 1/N included, are fixed before any gradient is computed.
                weighed = self.objective.weigh(scored.scored_tokens(self.scoring.student.device))
                clock.lap("scoring")

                # One optimizer step; an EMA teacher and the generator then follow the new weights.
                updates.append(self.updater.update(scored, weighed, needs, num_updates))
                self.scoring.update_teacher()
                self.source.sync()
                num_updates += 1
                clock.lap("update")

            tokens, leaked = join_tokens(updates), hint_leakage(rollouts.flat_texts)
            leakage += leaked
            metrics = describe_step(batch, updates, tokens, leaked) | clock.metrics()
            if skipped:
                metrics["bad_rows"] = float(len(skipped))
            records.write_rollouts(step, rollouts, tokens, batch.grades)
            records.write(step, metrics)
            progress.show(metrics)
        return leakage

    def _sampled_log_probs(self, rollouts: Rollouts, needs: Needs) -> Tensor | None:
        """The sampler's log-probs, used as the old student's; None if the student has to score them."""
        if self.config.old_log_probs == "sampled" and OLD in needs.log_probs:
            return rollouts.sampling_log_probs
        return None

    def _batches(self, skipped: list[BadRowError], progress: Progress) -> Iterator[list[Sample]]:
        """Endless batches, epoch by epoch, in an order that depends on seed and epoch alone.

        Problems that do not fill a batch at the end of an epoch are left out of that epoch. A problem that
        cannot be read is reported, added to `skipped`, and replaced by the next one.
        """
        size = self.config.prompts_per_step
        for epoch in itertools.count():
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.samples))
            batch: list[Sample] = []
            read = 0
            for index in order.tolist():
                try:
                    batch.append(self.samples[index])
                except BadRowError as error:
                    if not self.skip_bad_rows:
                        raise
                    if epoch == 0:
                        progress.say(f"Skipped: {error}")
                        skipped.append(error)
                    continue
                read += 1
                if len(batch) == size:
                    yield batch
                    batch = []
            if read < size:
                raise ValueError(f"Only {read} problems can be read, fewer than one step takes ({size}).")
