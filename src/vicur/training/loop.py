"""The training loop: sample responses, score them, weight their tokens, update the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

from torch import Tensor

from vicur.data.sample import Sample
from vicur.diagnostics.leakage import hint_leakage
from vicur.distributed import Sharding
from vicur.evaluation.during import EvaluateConfig
from vicur.models.devices import check_name
from vicur.objectives.objective import OLD, Needs, Objective
from vicur.progress import Progress
from vicur.reporting.config import ReportConfig
from vicur.rollouts.randomness import seed_step
from vicur.rollouts.rollout import Rollouts
from vicur.rollouts.source import RolloutSource
from vicur.scoring.parity import ParityCheck
from vicur.settings.section import Count, PathText, Seed, Text, section
from vicur.training.batches import Batches
from vicur.training.checkpoint import CheckpointConfig
from vicur.training.clock import Clock
from vicur.training.metrics import Update, describe_step, join_tokens
from vicur.training.nonfinite import Skipped
from vicur.training.observation import ObserveConfig
from vicur.training.records import Records
from vicur.training.scoring import BatchScorer, ScoredBatch
from vicur.training.state import RunState
from vicur.training.trackers import TrackerName
from vicur.training.update import Updater
from vicur.training.whole import part_of, whole_batch, whole_tokens


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
    seed: Seed = 0
    """Seed for the order of the problems, sampling, and fresh weights."""
    device: Text = "auto"
    """Device of student and teacher: cpu, cuda or cuda:N; auto for a GPU if torch finds one, else the CPU."""
    name: Text = "run"
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
    sharding: Sharding = "full"
    """Sharding of the weights over the processes that torchrun starts. "full": over all of them, which needs
    the least memory. "hybrid": over those of a node, with a copy on every node. "replicated": every process
    has a copy."""
    offload: bool = False
    """Keep the student's float32 weights, gradients and optimizer states in CPU memory; each layer is copied
    to the GPU when it runs."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints to resume the run from."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Held-out problems that the student answers, for the accuracy."""
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    """Held-out problems on which the student's responses are measured, whatever the objective."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """The report of the run, an HTML page in its folder."""
    report_to: list[TrackerName] = field(default_factory=list)
    """Experiment trackers that get the numbers of the run: trackio, tensorboard, wandb, mlflow. Each needs
    its extra, e.g. `pip install 'vicur[trackio]'`; their own environment variables name server and key."""
    project: Text = "vicur"
    """Project, or experiment, that the trackers file the run under."""
    show_responses: Count | None = None
    """Number of rollout steps between tables of a few responses on the terminal; null for none."""
    split_gap: bool = True
    """Whether to record, for a teacher that is shown more than the student, how much of the gap between their
    log-probs its privilege adds and how much its weights add (privilege_gap and capability_gap). It takes one
    more pass of the teacher per step."""
    max_skipped_updates: Count = 3
    """Stop the run after this many updates in a row were skipped because the loss or the gradient was not
    finite."""
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
        parity: compares the engine of the responses with the student; None if the student itself samples.
        importance_cap: cap of the importance ratios between student and engine; None for no correction.
    """

    samples: Sequence[Sample]
    source: RolloutSource
    scoring: BatchScorer
    objective: Objective
    updater: Updater
    config: TrainingConfig
    skip_bad_rows: bool = False
    parity: ParityCheck | None = None
    importance_cap: float | None = None

    def train(
        self,
        records: Records,
        progress: Progress,
        state: RunState | None = None,
        after_step: Callable[[RunState], bool] = lambda state: True,
        on_skip: Callable[[Skipped], None] = lambda skipped: None,
    ) -> RunState:
        """Run all steps that are left.

        Args:
            records: the run's files.
            progress: progress bar of the steps.
            state: where the run is; at the start if not given. It is changed.
            after_step: called after each step, to evaluate and to save; whether to continue.
            on_skip: called with each update that was skipped because it was not finite.

        Returns:
            the state after the last step.

        Raises:
            BadRowError: a problem cannot be read and `skip_bad_rows` is false.
            EngineError: the engine of the responses failed, or does not agree with the student.
            FloatingPointError: `config.max_skipped_updates` updates in a row were not finite.
        """
        state = RunState() if state is None else state
        batches = self._batches(state, progress)
        for step in progress.steps(self.config.rollout_batches(len(self.samples)), done=state.step):
            clock = Clock(self.scoring.student.device)
            batch, updates, measured = self._step(step, batches.next(), state, clock, on_skip)
            tokens = join_tokens(updates)
            leaked = hint_leakage(batch.rollouts.flat_texts)
            metrics = describe_step(batch, updates, tokens, leaked) | measured | clock.metrics()
            if state.position.unreadable:
                metrics["bad_rows"] = float(len(state.position.unreadable))
            records.write_rollouts(step, batch.rollouts, tokens, batch.grades)
            records.write(step, metrics)
            progress.show(metrics)
            state.step, state.leakage = step, state.leakage + leaked
            if self._has_skipped_too_many(state):
                raise FloatingPointError(
                    f"The loss or the gradient of the last {state.skipped_in_a_row} updates was not finite "
                    "(training.max_skipped_updates). `vicur replay` on a folder in nonfinite/ shows where it "
                    "came from."
                )
            if not after_step(state):
                break
        return state

    def _step(
        self,
        step: int,
        samples: Sequence[Sample],
        state: RunState,
        clock: Clock,
        on_skip: Callable[[Skipped], None],
    ) -> tuple[ScoredBatch, list[Update], dict[str, float]]:
        """One rollout step: the scored responses of all ranks, the updates that were made on them, and how
        far the engine is from the student."""
        seed_step(self.config.seed, step)
        self.scoring.begin_step(step)
        needs = self.objective.needs(step)
        if self.config.split_gap:
            needs = self.scoring.with_gap_split(needs)

        # The student responds to each problem; or the teacher or the data set does, see rollout.source.
        rollouts = self.source.rollouts(samples, step)
        clock.lap("rollout")
        measured: dict[str, float] = {}
        if self.parity is not None:
            measured = self.parity.check(rollouts, step).metrics()
            clock.lap("parity")

        # The teacher scores the same tokens under its own view, with the hint if it has a privilege, and
        # under any other view that the objective needs. Responses are graded here, too.
        old = self._sampled_log_probs(rollouts, needs)
        batch = self.scoring.score_rollouts(rollouts, needs, step, old, clock)
        if self.importance_cap is not None:
            assert self.parity is not None, "without an engine there is nothing to correct"
            ratios = self.parity.ratios(rollouts, self.importance_cap)
            batch = replace(batch, importance=ratios.to(self.scoring.student.device))

        updates, parts = [], []
        for part in batch.updates(self.config.update_size):
            # The student scores them under its reference views, with its weights from before this update.
            scored = self.scoring.score_references(part, needs)
            # All token weights, 1/N included, are fixed before any gradient is computed. They depend on
            # the whole batch, so every rank gathers the scores of all.
            whole, ours = whole_tokens(scored.scored_tokens(self.scoring.student.device))
            weighed = part_of(self.objective.weigh(whole), ours).times(scored.importance, "importance")
            clock.lap("student")

            # One optimizer step; an EMA teacher and the generator then follow the new weights.
            update = self.updater.update(scored, weighed, needs, state.updates)
            if update.was_taken:
                self.scoring.weights_changed()
                self.source.sync()
            else:
                on_skip(Skipped(step, state.updates, scored))
            state.count(update.was_taken)
            updates.append(update)
            parts.append(whole_batch(part))
            clock.lap("update")
            if self._has_skipped_too_many(state):
                break
        return ScoredBatch.joined(parts), updates, measured

    def _has_skipped_too_many(self, state: RunState) -> bool:
        return state.skipped_in_a_row >= self.config.max_skipped_updates

    def _sampled_log_probs(self, rollouts: Rollouts, needs: Needs) -> Tensor | None:
        """The sampler's log-probs, used as the old student's; None if the student has to score them."""
        if self.config.old_log_probs == "sampled" and OLD in needs.log_probs:
            return rollouts.sampling_log_probs
        return None

    def _batches(self, state: RunState, progress: Progress) -> Batches:
        return Batches(
            self.samples,
            self.config.prompts_per_step,
            self.config.update_size,
            self.config.seed,
            skip_bad_rows=self.skip_bad_rows,
            say=progress.say,
            position=state.position,
        )
