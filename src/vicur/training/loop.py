"""The training loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from vicur.bad_rows import BadRowError
from vicur.data.sample import Sample
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.models.devices import check_name
from vicur.objectives.objective import OLD, Objective
from vicur.paths import PathText
from vicur.progress import Progress
from vicur.rollouts.source import RolloutSource
from vicur.training.clock import Clock
from vicur.training.measurement import Measurement
from vicur.training.metrics import describe_responses, describe_tokens, describe_updates, join_tokens
from vicur.training.records import Records
from vicur.training.update import Updater


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, and where to."""

    steps: int | None = None
    """Rollout batches; each is followed by one update or several. Without it, as many as the epochs have."""
    epochs: int = 5
    """How often every problem is seen, where no number of steps is given. What does not fill a rollout
    batch at the end of an epoch is left out of it."""
    prompts_per_step: int = 128
    """Problems of one rollout batch."""
    prompts_per_update: int | None = None
    """Problems of one update; by default all of the rollout batch."""
    seed: int = 0
    """Decides the order of the problems, the responses, and fresh weights."""
    device: str = "auto"
    """Device of student and teacher: cpu, cuda or cuda:N; auto for a GPU if torch finds one, else the CPU."""
    name: str = "run"
    """Name of the run, by default that of its recipe. Its folder is runs/NAME, or runs/NAME-2 and so on if
    that exists."""
    output: PathText | None = None
    """Folder of the run, instead of one made of its name. One that already holds a run is refused."""
    overwrite: bool = False
    """Delete the run that the folder already holds. Nothing but a run is ever deleted."""
    old_log_probs: Literal["scored", "sampled"] = "scored"
    """Log-probs of the policy that wrote the responses: scored once more by the student, or taken
    from the sampler, which is cheaper and only right at temperature 1 without any cut-off."""
    save_model: bool = True
    """Whether the trained model is written to the run's folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "prompts_per_step", "prompts_per_update"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} must be at least 1, not {value}.")
        if self.prompts_per_step % self.update_size:
            raise ValueError(
                f"training.prompts_per_update={self.prompts_per_update} does not divide "
                f"training.prompts_per_step={self.prompts_per_step}."
            )
        check_name(self.device)
        parts = PurePosixPath(self.name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ValueError(
                f"training.name must be the name of a folder below runs, not {self.name!r}; training.output "
                "takes any folder."
            )

    @property
    def update_size(self) -> int:
        """Problems of one update."""
        return self.prompts_per_update or self.prompts_per_step

    def rollout_batches(self, problems: int) -> int:
        """Steps of the whole run.

        Args:
            problems: how many there are to train on.
        """
        return self.steps or self.epochs * (problems // self.prompts_per_step)

    def updates(self, problems: int) -> int:
        """Updates of the whole run."""
        return self.rollout_batches(problems) * (self.prompts_per_step // self.update_size)


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
        skip_bad_rows: whether a problem that turns out unreadable is left out and counted, or ends the
            run.
    """

    samples: Sequence[Sample]
    source: RolloutSource
    measurement: Measurement
    objective: Objective
    updater: Updater
    config: TrainingConfig
    skip_bad_rows: bool = False

    def train(self, records: Records, progress: Progress) -> HintLeakage:
        """Run all steps.

        Returns:
            hint leakage over all rollouts.

        Raises:
            BadRowError: a problem cannot be read, and is not to be left out.
        """
        skipped: list[BadRowError] = []
        batches = self._batches(skipped, progress)
        leakage = HintLeakage()
        index = 0
        for step in progress.steps(self.config.rollout_batches(len(self.samples))):
            clock = Clock()
            self.measurement.forget()
            needs = self.objective.needs(step)
            rollouts = self.source.rollouts(next(batches), step)
            clock.lap("sampling")
            sampled = self.config.old_log_probs == "sampled" and OLD in needs.log_probs
            old = rollouts.sampling_log_probs if sampled else None
            measured = self.measurement.of_rollouts(rollouts, needs, step, old)
            updates = []
            for batch in measured.updates(self.config.update_size):
                complete = self.measurement.of_update(batch, needs)
                clock.lap("scoring")
                updates.append(self.updater.update(complete, needs, index))
                self.measurement.follow()
                clock.lap("update")
                index += 1
            tokens = join_tokens(updates)
            leaked = hint_leakage(rollouts.flat_texts)
            leakage += leaked
            metrics = describe_updates(updates)
            index_N = rollouts.response_index.to(self.measurement.student.device)
            metrics |= describe_tokens(tokens, index_N, updates[0].summaries)
            metrics |= describe_responses(measured, leaked)
            metrics |= clock.metrics()
            if skipped:
                metrics["bad_rows"] = float(len(skipped))
            records.write_rollouts(step, rollouts, tokens, measured.grades)
            records.write(step, metrics)
            progress.show(metrics)
        return leakage

    def _batches(self, skipped: list[BadRowError], progress: Progress) -> Iterator[list[Sample]]:
        """Batches of an epoch in an order that depends on seed and epoch alone.

        What does not fill a batch at the end of an epoch is left out of that epoch. A problem that cannot
        be read is reported, added to `skipped`, and the next takes its place.
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
                        progress.say(f"Left out: {error}")
                        skipped.append(error)
                    continue
                read += 1
                if len(batch) == size:
                    yield batch
                    batch = []
            if read < size:
                raise ValueError(f"Only {read} problems can be read, fewer than one step takes ({size}).")
