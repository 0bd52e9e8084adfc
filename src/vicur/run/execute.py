"""Carries out a run: preflight, held-out problems, training, checkpoints, model, summary."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vicur import distributed
from vicur.data.sources import FileSource
from vicur.diagnostics.leakage import HintLeakage
from vicur.files import RECIPE_FILE
from vicur.models.devices import available_memory, cpu_notice, machine_memory
from vicur.models.load import LoadedModel
from vicur.objectives.objective import TEACHER
from vicur.preflight.checks import Check, Preflight, check_lengths, run_preflight
from vicur.preflight.memory import (
    MemoryEstimate,
    Workload,
    cpu_memory_warning,
    estimate_memory,
    memory_warning,
)
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.progress import Bars, Progress, silent
from vicur.reporting.report import Report
from vicur.reporting.responses import Lookup
from vicur.reporting.run_summary import write_run_summary
from vicur.reporting.runs import RecordedRun
from vicur.rollouts.engines import Engine
from vicur.run.held_out import HeldOut, during
from vicur.run.live import Live
from vicur.run.problems import TrainingProblems
from vicur.run.recipe import Recipe, recipe_schema, to_yaml
from vicur.run.reports import REPORT, lookup_in
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import STUDENT
from vicur.training.checkpoint import FINAL, FOLDER, Checkpoints, Saved, check_finite, clean
from vicur.training.interruption import Interruption
from vicur.training.loop import Trainer
from vicur.training.nonfinite import Skipped, write_skipped
from vicur.training.records import Records
from vicur.training.state import RunState
from vicur.training.trackers import open_trackers
from vicur.wording import counted, first_reason


class InterruptedRunError(KeyboardInterrupt):
    """A signal stopped the run; its checkpoint is on disk.

    Args:
        step: steps that are finished.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


@dataclass(frozen=True)
class Plan:
    """Size and memory of a step, known before any model is run.

    Attributes:
        work: sizes of its batches.
        fitting: whether the prompts fit the models.
        memory: the estimated peak.
        available: bytes of the device; None if unknown.
        machine: bytes of CPU memory of this node; None if unknown.
    """

    work: Workload
    fitting: tuple[Check, ...]
    memory: MemoryEstimate
    available: int | None
    machine: int | None

    @property
    def warnings(self) -> list[str]:
        """Warnings if the run will probably run out of memory, with what to change first."""
        processes = distributed.processes_on_this_node()
        sentences = (
            memory_warning(self.memory, self.work, self.available),
            cpu_memory_warning(self.memory, processes, self.machine),
        )
        return [sentence for sentence in sentences if sentence is not None]


@dataclass(frozen=True)
class Run:
    """A recipe, ready to be run.

    Attributes:
        recipe: the recipe.
        data: the problems.
        student: the model that the trainer changes.
        trainer: trainer that runs the steps.
        held_out: problems that are answered before, during and after training.
        engine: engine of the student's responses; PyTorch if not given.
    """

    recipe: Recipe
    data: TrainingProblems
    student: LoadedModel
    trainer: Trainer
    held_out: HeldOut
    engine: Engine | None = None

    @property
    def steps(self) -> int:
        """Number of rollout steps."""
        return self.recipe.training.rollout_batches(len(self.data.problems))

    @property
    def evaluation_engine(self) -> Engine | None:
        """The engine of the responses to held-out problems; None for PyTorch, with batches of their own."""
        return None if self.recipe.rollout.engine == "torch" else self.engine

    @property
    def notices(self) -> list[str]:
        """Notices about skipped problems, and about running on a CPU."""
        cpu = cpu_notice(self.recipe.training.device, self.trainer.scoring.student.device)
        notes = [*self.data.notes(), *self.held_out.notes()]
        return [*notes, *([] if cpu is None else [cpu]), *self._engine_notices()]

    def _engine_notices(self) -> list[str]:
        """What the estimate of memory leaves out: vLLM in this process."""
        rollout = self.recipe.rollout
        if rollout.engine == "torch" or rollout.vllm.servers:
            return []
        if self.trainer.scoring.student.device.type == "cuda":
            share = f"up to {rollout.vllm.gpu_memory_utilization:.0%} of the GPU's memory while it samples"
        else:
            share = f"a copy of the weights and {rollout.vllm.kv_cache_gib} GiB for the key-value cache"
        return [f"vLLM takes {share}; the memory estimate does not include it."]

    def execute(
        self,
        folder: Path,
        plan: Plan | None = None,
        progress: Progress | None = None,
        bars: Bars | None = None,
        resume_from: Saved | None = None,
        *,
        again: bool = False,
    ) -> HintLeakage:
        """The whole run: preflight, held-out problems, training, held-out problems again, model, summary.

        Args:
            folder: the run's folder.
            plan: result of `plan`; made here if not given.
            progress: progress bar of the training steps; silent if not given.
            bars: progress bars for other lengthy work; silent if not given.
            resume_from: a checkpoint in the folder, from which the run continues.
            again: whether the folder holds this run already, even if there is no checkpoint to resume from.

        Returns:
            hint leakage over all rollouts.

        Raises:
            PreflightError: a check failed; nothing was written.
            ValueError: the folder cannot be used.
            InterruptedRunError: a signal stopped the run.
        """
        interruption = Interruption()
        with interruption.handled(), distributed.shared_failures():
            plan = plan or self.plan()
            self.preflight(plan, bars, resumes=resume_from is not None).raise_if_failed()
            execution = _Execution(self, folder, progress or silent(), bars, resume_from, interruption)
            return execution.run(plan, again=again or resume_from is not None)

    def close(self) -> None:
        """Stop the engine of the responses."""
        if self.engine is not None:
            self.engine.close()

    @property
    def held_out_problems(self) -> dict[str, FileSource | None]:
        """The held-out problems by what they are used for."""
        return {"evaluate": self.held_out.evaluated, "observe": self.held_out.observed}

    def describe_data(self) -> dict[str, Any]:
        """Where the problems come from and how many there are, for records."""
        described: dict[str, Any] = {
            "train": self.recipe.data.train,
            "problems": len(self.data.problems),
            "notes": [*self.data.notes(), *self.held_out.notes()],
        }
        for name, source in self.held_out_problems.items():
            if source is not None:
                described[name] = {"data": source.name, "problems": len(source)}
        return described

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint holds: trained weights, optimizer states, and the weights of an EMA teacher."""
        tensors = dict(self.trainer.updater.optimizer.tensors())
        for name, teacher in self.trainer.scoring.teachers.items():
            prefix = "" if name == TEACHER else f"teachers.{name}."
            tensors |= {f"{prefix}{key}": tensor for key, tensor in teacher.tensors().items()}
        return tensors

    def plan(self) -> Plan:
        """Find out what a step will take. No model is run and no image decoded."""
        scoring = self.trainer.scoring
        student = scoring.student
        work = self._workload()
        return Plan(
            work=work,
            fitting=tuple(self._fitting(work)),
            memory=estimate_memory(student, scoring.teachers, self.trainer.objective.needs(1), work),
            available=available_memory(student.device),
            machine=machine_memory(),
        )

    def preflight(self, plan: Plan, bars: Bars | None = None, *, resumes: bool = False) -> Preflight:
        """Check with the real models that teacher and student see exactly what they should.

        Args:
            plan: result of `plan`.
            bars: progress bars; silent if not given.
            resumes: whether the weights of a checkpoint will replace the present ones.
        """
        scoring = self.trainer.scoring
        return during(
            bars,
            "preflight",
            lambda: run_preflight(
                self._preflight_problems(),
                scoring.student,
                scoring.teachers,
                self.trainer.objective.needs(1),
                engine=self.evaluation_engine,
                parity=self.trainer.parity,
                fitting=plan.fitting,
                text_only=self.recipe.data.text_only,
                served=scoring.served,
                max_start_kl=self.recipe.student.recovery.max_start_kl,
                resumes=resumes,
            ),
        )

    def _preflight_problems(self) -> FileSource:
        """The problems with media, or all where none has any; nothing is read yet."""
        with_media = self.data.with_media
        return self.data.problems.select(with_media) if with_media else self.data.problems

    def _fitting(self, work: Workload) -> Iterator[Check]:
        scoring = self.trainer.scoring
        yield _check_lengths("student", work.student, scoring.student, work)
        for name, teacher in scoring.teachers.items():
            if name in self.data.sizes:
                yield _check_lengths(name, work.sizes(name), teacher.scorer, work)

    def _workload(self) -> Workload:
        recipe, sizes = self.recipe, self.data.sizes
        # This rank's share of a step and of an update.
        prompts, updated = (
            -(-count // distributed.size())
            for count in (recipe.training.prompts_per_step, recipe.training.update_size)
        )
        every, steps = recipe.training.checkpoints.every, self.steps
        return Workload(
            prompts=prompts,
            group_size=recipe.rollout.group_size,
            student=sizes[STUDENT],
            teachers={name: size for name, size in sizes.items() if name != STUDENT},
            response_tokens=recipe.rollout.sampling.max_new_tokens,
            micro_batch=min(recipe.optimizer.prompts_per_micro_batch, updated),
            scoring_batch=min(recipe.scoring.prompts_per_batch, prompts),
            decoding_batch=min(recipe.rollout.prompts_per_batch, prompts),
            writer=recipe.rollout.source,
            checkpointing=recipe.scoring.gradient_checkpointing,
            state_bytes=self.trainer.updater.optimizer.state_bytes,
            saves=every is not None and every < steps,
        )


class _Execution:
    """One execution of a run."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        progress: Progress,
        bars: Bars | None,
        resume_from: Saved | None,
        interruption: Interruption,
    ) -> None:
        self.r, self.folder, self.progress, self.bars = run, folder, progress, bars
        self.training = run.recipe.training
        self.state = RunState() if resume_from is None else resume_from.state
        self.resume_from = resume_from
        self.checkpoints = Checkpoints(folder, self.training.checkpoints, run.tensors)
        self.interruption = interruption

    def run(self, plan: Plan, *, again: bool) -> HintLeakage:
        self._check_data()
        self._check_length()
        if self.resume_from is not None:
            self.checkpoints.resume_from(self.resume_from)
            self.r.trainer.scoring.begin_step(0)
            self.r.trainer.source.sync()
        self.records = Records(
            self.folder,
            to_yaml(self.r.recipe),
            self.r.trainer.scoring.student.device,
            overwrite=self.training.overwrite,
            resumed=self.state if again else None,
        )
        try:
            with self.records:
                # Now that no other run writes there.
                distributed.main_only(lambda: clean(self.folder, self.state.step))
                distributed.agree(self._check_shared)
                self.records.expect_memory(plan.memory.parts, plan.available)
                self.records.describe_data(self.r.describe_data())
                self.records.save_tokenizer(self.r.student.processor.tokenizer)
                distributed.main_only(self._open_trackers)
                self.live = Live(self.folder, self.training, self.records.trackers, self.progress)
                if self.state.step:
                    distributed.main_only(self.live.pass_over_present)
                self._train()
        finally:
            self.records.finish_trackers()
            if distributed.is_main() and (self.folder / "status.json").is_file():
                write_run_summary(self.folder)
                self._report()
        return self.state.leakage

    def _open_trackers(self) -> None:
        """Open the experiment trackers; only the main process has any."""
        config = dict(recipe_schema().flatten(asdict(self.r.recipe)))
        training = self.training
        self.records.trackers = open_trackers(
            training.report_to, training.project, self.folder, config, self.progress.say
        )

    def _check_data(self) -> None:
        """Check that a resumed run has the problems that it began with: its position is a place among them.

        Raises:
            ValueError: it has others.
        """
        present = distributed.main_value(lambda: _digest(self.r.data.problems))
        if self.state.data not in ("", present):
            raise ValueError(
                f"The run in {self.folder} was started with {self.state.data.split()[0]} problems, and "
                f"data.train now has {present.split()[0]}, or others. Resume it with the same problems."
            )
        self.state.data = present

    def _check_length(self) -> None:
        """Check that a resumed run has not passed the end of its recipe.

        Raises:
            ValueError: it has.
        """
        if self.state.step > self.r.steps:
            raise ValueError(
                f"The run in {self.folder} has already taken {counted(self.state.step, 'step')}, and its "
                f"recipe now has {self.r.steps}: a run cannot be made shorter."
            )

    def _check_shared(self) -> None:
        """Check that this rank sees the folder of the main rank: each rank writes its part of a checkpoint.

        Raises:
            ValueError: it does not.
        """
        if not (self.folder / RECIPE_FILE).is_file():
            raise ValueError(
                f"{self.folder.resolve()} on {platform.node()} is not the run's folder of the main process. "
                "Set training.output to a folder on a file system that all nodes share."
            )

    def _train(self) -> None:
        self._hold_out()  # before the first step, or where a signal stopped the run
        with self.interruption.patient():
            self.r.trainer.train(
                self.records, self.progress, self.state, self._after_step, self._write_skipped
            )
            is_stopped = self.interruption.on_any_rank()
            if is_stopped:
                self._save()
            self.checkpoints.finish()
        if is_stopped:
            raise InterruptedRunError(self.state.step)
        if self.training.save_model:
            started = time.perf_counter()
            check_finite(self.r.tensors())
            final = self.folder / FOLDER / FINAL
            during(self.bars, "saving", lambda: self.r.student.save(final, recipe=to_yaml(self.r.recipe)))
            self.records.count_seconds("saving", time.perf_counter() - started)

    def _after_step(self, state: RunState) -> bool:
        """Evaluate and save if that is due; whether to continue.

        A run that is asked to stop saves without an evaluation, which it makes up for when it is resumed.
        """
        is_evaluated = not self.interruption.on_any_rank() and self._hold_out()
        if self.live.is_due(state.step, is_evaluated=is_evaluated):
            distributed.main_only(
                lambda: self.live.after_step(state.step, self.records.latest, is_evaluated=is_evaluated)
            )
        is_stopped = self.interruption.on_any_rank()
        if is_stopped or self.checkpoints.is_due(state.step, self.r.steps):
            self._save()
        self.checkpoints.poll()
        return not is_stopped

    def _hold_out(self) -> bool:
        """Evaluate and observe on held-out problems, if that is due, and renew the report; whether it was."""
        was_due = self.r.held_out.run_if_due(self.state, self.records, self.r.steps, self.bars)
        if was_due and 0 < self.state.step < self.r.steps:  # at the end it is written in any case
            started = time.perf_counter()
            distributed.main_only(self._report)
            self.records.count_seconds("report", time.perf_counter() - started)
        return was_due

    @cached_property
    def _lookup(self) -> Lookup:
        held_out = [source for source in self.r.held_out_problems.values() if source is not None]
        return lookup_in(held_out, self.r.data.problems)

    def _report(self) -> None:
        """Write the report of the run so far; a run never fails because of its report."""
        config = self.training.report
        if not config.enabled or self.state.step == 0:
            return
        try:
            self.records.flush()
            run = RecordedRun(self.folder, self.folder.name)
            Report([run], {run.name: self._lookup}, config.responses).write(self.folder / REPORT)
        except Exception as error:  # of any library that draws or reads: the training is worth more
            self.progress.say(f"The report could not be written: {first_reason(error)}")

    def _write_skipped(self, skipped: Skipped) -> None:
        """Keep what reproduces an update that was skipped."""
        folder = write_skipped(self.folder, skipped, self.r.tensors())
        self.progress.say(
            f"Step {skipped.step}: skipped an update, because its loss or gradient was not finite."
            + ("" if folder is None else f" To see where it came from: vicur replay {folder}")
        )

    def _save(self) -> None:
        started = time.perf_counter()
        distributed.main_only(self.records.flush)
        self.state.seconds = self.records.seconds
        self.checkpoints.save(self.state)
        self.records.count_seconds("checkpoints", time.perf_counter() - started)


def _check_lengths(who: str, sizes: PromptSizes, scorer: Scorer, work: Workload) -> Check:
    positions = scorer.policy.model.config.text_config.max_position_embeddings
    return check_lengths(who, sizes, positions, work.response_tokens)


def _digest(problems: FileSource) -> str:
    """The number of problems and a digest of their ids."""
    ids = json.dumps([str(name) for name in problems.column("id")])
    return f"{len(problems)} {hashlib.sha256(ids.encode()).hexdigest()[:16]}"
