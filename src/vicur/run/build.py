"""Builds a run from a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from vicur import distributed
from vicur.compat import checkpoint_activations
from vicur.data.sources import DataConfig, FileSource
from vicur.data.views import Plain, View, teacher_view
from vicur.diagnostics.leakage import HintLeakage
from vicur.encoding.lengths import Reader
from vicur.encoding.prompts import PromptEncoder
from vicur.evaluation.runner import evaluate
from vicur.models.checkpoints import read_config, read_processor
from vicur.models.devices import available_memory, choose_device, cpu_notice, reset_peak_memory
from vicur.models.load import LoadedModel, load_student
from vicur.models.sharding import shard
from vicur.preflight.checks import Check, Preflight, check_lengths, run_preflight
from vicur.preflight.memory import MemoryEstimate, Workload, estimate_memory, memory_warning
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.progress import Bars, Progress, silent
from vicur.reporting.run_summary import write_run_summary
from vicur.rewards.grader import Grader
from vicur.rollouts.generator import TorchGenerator
from vicur.rollouts.source import DatasetSource, GeneratedSource, RolloutSource
from vicur.run.problems import TrainingProblems, training_problems
from vicur.run.recipe import Recipe, to_yaml
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import SELF, Teacher
from vicur.training.loop import Trainer
from vicur.training.optimizer import Optimizer
from vicur.training.records import Records
from vicur.training.scoring import BatchScorer
from vicur.training.update import Updater

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """Size and memory of a step, known before any model is run.

    Attributes:
        work: sizes of its batches.
        fitting: whether the prompts fit the models.
        memory: the estimated peak.
        available: bytes of the device; None if unknown.
    """

    work: Workload
    fitting: tuple[Check, ...]
    memory: MemoryEstimate
    available: int | None

    @property
    def warning(self) -> str | None:
        """A warning if the run will probably run out of memory, with what to change first."""
        return memory_warning(self.memory, self.work, self.available)


@dataclass(frozen=True)
class Run:
    """A recipe, ready to be run.

    Attributes:
        recipe: the recipe.
        data: the problems.
        student: the model that the trainer changes.
        trainer: trainer that runs the steps.
        held_out: problems that are answered before and after training; None for none.
    """

    recipe: Recipe
    data: TrainingProblems
    student: LoadedModel
    trainer: Trainer
    held_out: FileSource | None = None

    @property
    def notices(self) -> list[str]:
        """Notices about skipped problems, and about running on a CPU."""
        cpu = cpu_notice(self.recipe.training.device, self.trainer.scoring.student.device)
        return [*self.data.notes(), *([] if cpu is None else [cpu])]

    def execute(
        self,
        folder: Path,
        plan: Plan | None = None,
        progress: Progress | None = None,
        bars: Bars | None = None,
    ) -> HintLeakage:
        """The whole run: preflight, held-out problems, training, held-out problems again, model, summary.

        Args:
            folder: the run's folder.
            plan: result of `plan`; made here if not given.
            progress: progress bar of the training steps; silent if not given.
            bars: progress bars for other lengthy work; silent if not given.

        Returns:
            hint leakage over all rollouts.

        Raises:
            PreflightError: a check failed; nothing was written.
            ValueError: the folder cannot be used.
        """
        plan = plan or self.plan()
        self.preflight(plan, bars).raise_if_failed()
        training, device = self.recipe.training, self.trainer.scoring.student.device
        records = Records(folder, to_yaml(self.recipe), device, overwrite=training.overwrite)
        try:
            with records:
                records.expect_memory(plan.memory.parts, plan.available)
                self._validate("before", records, bars)
                leakage = self.trainer.train(records, progress or silent())
                self._validate("after", records, bars)
                if training.save_model:
                    started = time.perf_counter()
                    final = folder / "checkpoints" / "final"
                    _during(bars, "saving", lambda: self.student.save(final))
                    records.count_seconds("saving", time.perf_counter() - started)
        finally:
            write_run_summary(folder)
        return leakage

    def _validate(self, when: Literal["before", "after"], records: Records, bars: Bars | None) -> None:
        """Let the student answer the held-out problems, if there are any."""
        if self.held_out is None:
            return
        started = time.perf_counter()
        recipe, title = self.recipe, f"validation {when}"
        evaluation = evaluate(
            self.student,
            self.held_out,
            recipe.validation.evaluation(recipe.rollout.sampling.max_new_tokens, recipe.training.seed),
            None if bars is None else bars(title),
            grader=self.trainer.scoring.grader,
            limits=recipe.data.pixel_limits(),
        )
        by_id = {sample.id: sample for sample in self.held_out.outlines()}
        answered = [by_id[answer.id] for answer in evaluation.answers]
        records.write_validation(when, answered, evaluation.responses, evaluation.correct)
        records.count_seconds("validation", time.perf_counter() - started)

    def plan(self) -> Plan:
        """Find out what a step will take. No model is run and no image decoded."""
        scoring = self.trainer.scoring
        student, teacher = scoring.student, scoring.teacher
        work = self._workload()
        return Plan(
            work=work,
            fitting=tuple(self._fitting(work)),
            memory=estimate_memory(student, teacher, self.trainer.objective.needs(1), work),
            available=available_memory(student.device),
        )

    def preflight(self, plan: Plan, bars: Bars | None = None) -> Preflight:
        """Check with the real models that teacher and student see exactly what they should."""
        scoring = self.trainer.scoring
        return _during(
            bars,
            "preflight",
            lambda: run_preflight(
                self._preflight_problems(),
                scoring.student,
                scoring.teacher,
                self.trainer.objective.needs(1),
                fitting=plan.fitting,
                text_only=self.recipe.data.text_only,
            ),
        )

    def _preflight_problems(self) -> FileSource:
        """The problems with media, or all where none has any; nothing is read yet."""
        with_media = self.data.with_media
        return self.data.problems.select(with_media) if with_media else self.data.problems

    def _fitting(self, work: Workload) -> Iterator[Check]:
        scoring = self.trainer.scoring
        yield _check_lengths("student", work.student, scoring.student, work)
        if scoring.teacher is not None and work.teacher is not None:
            yield _check_lengths("teacher", work.teacher, scoring.teacher.scorer, work)

    def _workload(self) -> Workload:
        recipe, sizes = self.recipe, self.data.sizes
        prompts = recipe.training.prompts_per_step
        return Workload(
            prompts=prompts,
            group_size=recipe.rollout.group_size,
            student=sizes["student"],
            teacher=sizes.get("teacher"),
            response_tokens=recipe.rollout.sampling.max_new_tokens,
            micro_batch=min(recipe.optimizer.prompts_per_micro_batch, recipe.training.update_size),
            scoring_batch=min(recipe.scoring.prompts_per_batch, prompts),
            decoding_batch=min(recipe.rollout.prompts_per_batch, prompts),
            writer=recipe.rollout.source,
            checkpointing=recipe.scoring.gradient_checkpointing,
        )


def _check_lengths(who: str, sizes: PromptSizes, scorer: Scorer, work: Workload) -> Check:
    positions = scorer.policy.model.config.text_config.max_position_embeddings
    return check_lengths(who, sizes, positions, work.response_tokens)


def build(recipe: Recipe, bars: Bars | None = None) -> Run:
    """Make the components of a run.

    Args:
        recipe: the recipe to build.
        bars: progress bars for lengthy work; silent if not given.

    Raises:
        ValueError: a model or the data is missing or does not fit.
    """
    device = choose_device(
        recipe.training.device, distributed.local_rank() if distributed.launched() else None
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.start(device)
    _check_ranks(recipe)
    reset_peak_memory(device)
    torch.manual_seed(recipe.training.seed)
    held_out = recipe.validation.open(recipe.data)
    grader = Grader(recipe.rewards)
    data = training_problems(recipe, _readers(recipe), grader, bars)
    # A model that will be sharded is loaded on the CPU: it may be too large for one device.
    loading = device if distributed.size() == 1 else torch.device("cpu")
    loaded = _during(bars, "loading the student", lambda: load_student(recipe.student, loading))
    if recipe.scoring.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    limits = recipe.data.pixel_limits()
    teacher = None
    if recipe.has_teacher:
        settings = (recipe.teacher, loaded, recipe.scoring, recipe.student.lora, limits)
        teacher = _during(bars, "loading the teacher", lambda: Teacher.of(*settings))
    shard(loaded.policy, recipe.training.sharding, device, offload=recipe.training.offload)
    if teacher is not None and teacher.loaded.policy is not loaded.policy:
        teacher.shard(recipe.training.sharding, device)
    student = Scorer(loaded, recipe.scoring, limits)
    objective = recipe.objective.build()
    optimizer = Optimizer(
        loaded.model,
        recipe.optimizer,
        recipe.training.updates(len(data.problems)),
        recipe.student.recovery.learning_rate,
    )
    trainer = Trainer(
        samples=data.problems,
        source=_source(recipe, student, teacher, loaded),
        scoring=BatchScorer(student, teacher, recipe.training.seed, grader),
        objective=objective,
        updater=Updater(student, optimizer, recipe.optimizer.prompts_per_micro_batch),
        config=recipe.training,
        skip_bad_rows=recipe.data.bad_rows == "skip",
    )
    return Run(recipe, data, loaded, trainer, held_out)


def _check_ranks(recipe: Recipe) -> None:
    """Check that every rank has a problem in every update.

    Raises:
        ValueError: there are more ranks than problems in an update.
    """
    size = recipe.training.update_size
    if size < distributed.size():
        raise ValueError(
            f"An update has {size} problems, fewer than the {distributed.size()} processes. Start fewer, or "
            "raise training.prompts_per_update and training.prompts_per_step."
        )


def _readers(recipe: Recipe) -> list[Reader]:
    """Student and teacher as readers of prompts: their processors alone, before any weights are loaded."""
    data, teacher = recipe.data, recipe.teacher
    encoder = _encoder(recipe.student.model, data)
    readers = [Reader("student", Plain(), encoder, data.max_prompt_tokens)]
    if recipe.has_teacher:
        if teacher.model != SELF:
            encoder = _encoder(teacher.model, data)
        # A problem without the privilege is measured too: whether that is an error is decided later.
        view = teacher_view(teacher.privilege, missing="plain")
        readers.append(Reader("teacher", view, encoder, data.max_teacher_prompt_tokens))
    return readers


def _encoder(model: str, data: DataConfig) -> PromptEncoder:
    """Encoder that measures the prompts of a checkpoint.

    Raises:
        ValueError: the checkpoint cannot be used here.
    """
    read_config(model)  # names what is wrong with another kind of model, which may have no processor
    return PromptEncoder.for_lengths(read_processor(model), data.pixel_limits())


def _during(bars: Bars | None, title: str, work: Callable[[], Result]) -> Result:
    return work() if bars is None else bars(title).during(work)


def _source(recipe: Recipe, student: Scorer, teacher: Teacher | None, loaded: LoadedModel) -> RolloutSource:
    config = recipe.rollout
    if config.source == "dataset":
        tokenizer = loaded.processor.tokenizer
        return DatasetSource(tokenizer, loaded.vocabulary, config.sampling.max_new_tokens)
    writer, scorer = loaded, student
    view: View = Plain()
    if config.source == "teacher":
        assert teacher is not None
        writer, scorer, view = teacher.loaded, teacher.scorer, teacher.view
    generator = TorchGenerator(writer, config.sampling, config.prompts_per_batch, encode=scorer.encode)
    return GeneratedSource(generator, view, config.group_size, recipe.training.seed)
