"""Builds a run from a recipe."""

from __future__ import annotations

from dataclasses import replace

import torch

from vicur import distributed
from vicur.compat import checkpoint_activations
from vicur.data.sources import DataConfig
from vicur.data.views import Plain, in_hindsight, teacher_view
from vicur.encoding.lengths import PromptMeter, Reader
from vicur.encoding.prompts import PromptEncoder
from vicur.models.checkpoints import read_config, read_processor
from vicur.models.devices import choose_device, reset_peak_memory
from vicur.models.load import LoadedModel, load_student
from vicur.models.sharding import shard
from vicur.objectives.objective import TEACHER
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.progress import Bars
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.source import DatasetSource, GeneratedSource, RolloutSource
from vicur.run.execute import Run
from vicur.run.held_out import HeldOut, during, observed_problems
from vicur.run.problems import training_problems
from vicur.run.recipe import Recipe
from vicur.scoring.parity import ParityCheck
from vicur.scoring.scorer import Scorer
from vicur.scoring.served import ServedTeacher
from vicur.scoring.teacher import SELF, Teacher, load_teachers
from vicur.scoring.term import STUDENT
from vicur.training.loop import Trainer
from vicur.training.optimizer import Optimizer
from vicur.training.scoring import BatchScorer
from vicur.training.trackers import check_trackers
from vicur.training.update import Updater
from vicur.vllm.installed import check_installed
from vicur.wording import counted

_RESPONSES_SHOWN = 2
"""Number of responses that a view in hindsight shows at most: the one that is scored, and a solution."""


def start_processes(recipe: Recipe) -> torch.device:
    """Join the other processes of the job, if there are any; the device of this one.

    Raises:
        ValueError: there is no such device, or there are more processes than problems in an update.
    """
    device = choose_device(recipe.training.device, distributed.local_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.start(device)
    check_processes(recipe.training.update_size, distributed.size())
    return device


def build(recipe: Recipe, bars: Bars | None = None) -> Run:
    """Make the components of a run.

    Args:
        recipe: the recipe to build.
        bars: progress bars for lengthy work; silent if not given.

    Raises:
        ValueError: a model, the data, or the package of a tracker is missing or does not fit.
    """
    check_trackers(recipe.training.report_to)
    device = start_processes(recipe)
    reset_peak_memory(device)
    torch.manual_seed(recipe.training.seed)
    readers = _readers(recipe)
    meter = None
    if recipe.rollout.engine != "torch":  # held-out problems are shown plain
        meter = PromptMeter([replace(readers[0], view=Plain())])
    training = recipe.training
    grader = Grader(recipe.rewards)
    evaluation, reading = recipe.evaluation, training.evaluate.data_config(recipe.data)
    evaluation.sampling.check_engine(recipe.rollout.engine)
    evaluated = training.evaluate.open(recipe.data, grader, meter)
    observed = observed_problems(recipe, meter)
    data = training_problems(recipe, readers, grader, bars)
    loaded, teachers, served = _models(recipe, device, data.sizes.get(TEACHER), bars)
    teacher = teachers.pop(TEACHER, None)
    student = Scorer(loaded, recipe.scoring, recipe.data.pixel_limits(), recipe.views[STUDENT])
    objective = recipe.objective.build()
    optimizer = Optimizer(
        loaded.model,
        recipe.optimizer,
        recipe.training.updates(len(data.problems)),
        recipe.student.recovery.learning_rate,
    )
    longest = [data.sizes[STUDENT].most_tokens]
    for source in (evaluated, observed):
        if meter is not None and source is not None:
            longest.append(PromptSizes.of(meter.measured_of(source), STUDENT).most_tokens)
    engine = _engine(recipe, loaded, max(longest))
    trainer = Trainer(
        samples=data.problems,
        source=_source(recipe, student, teacher, engine),
        scoring=BatchScorer(student, teacher, recipe.training.seed, grader, served, teachers),
        objective=objective,
        updater=Updater(student, optimizer, recipe.optimizer.prompts_per_micro_batch),
        config=recipe.training,
        skip_bad_rows=recipe.data.bad_rows == "skip",
        parity=_parity(recipe, loaded),
        importance_cap=recipe.rollout.importance_cap,
    )
    sampler = None if recipe.rollout.engine == "torch" else engine
    held_out = HeldOut(recipe, loaded, trainer.scoring, evaluated, evaluation, reading, observed, sampler)
    return Run(recipe, data, loaded, trainer, held_out, engine)


def _models(
    recipe: Recipe, device: torch.device, sizes: PromptSizes | None, bars: Bars | None
) -> tuple[LoadedModel, dict[str, Teacher], ServedTeacher | None]:
    """The student, its teachers in this process by name, and the teacher on servers, if there is one; all
    are sharded."""
    # A model that will be sharded or offloaded is loaded on the CPU: it may be too large for one device.
    alone = distributed.size() == 1 and not recipe.training.offload
    loading = device if alone else torch.device("cpu")
    loaded = during(bars, "loading the student", lambda: load_student(recipe.student, loading))
    if recipe.scoring.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    served = _served(recipe, loaded, sizes)
    configs = dict(recipe.teachers)
    if recipe.has_teacher and served is None:
        configs[TEACHER] = recipe.teacher
    settings = (loaded, recipe.scoring, recipe.student.lora, recipe.data.pixel_limits())
    teachers = during(bars, "loading the teacher", lambda: load_teachers(configs, *settings))
    shard(loaded.policy, recipe.training.sharding, device, offload=recipe.training.offload)
    sharded = {id(loaded.policy)}
    for teacher in teachers.values():
        if id(teacher.loaded.policy) not in sharded:
            sharded.add(id(teacher.loaded.policy))
            teacher.shard(recipe.training.sharding, device)
    return loaded, teachers, served


def check_processes(update: int, processes: int) -> None:
    """Check that every process has a problem in every update.

    Args:
        update: number of problems in an update.
        processes: number of processes.

    Raises:
        ValueError: there are more processes than problems in an update.
    """
    if update < processes:
        raise ValueError(
            f"An update has {counted(update, 'problem')}, fewer than the {processes} processes. Start fewer, "
            "or raise training.prompts_per_update and training.prompts_per_step."
        )


def _readers(recipe: Recipe) -> list[Reader]:
    """Student and teacher as readers of prompts: their processors alone, before any weights are loaded."""
    data, encoder = recipe.data, _encoder(recipe.student.model, recipe.data)
    readers = [Reader(STUDENT, recipe.views[STUDENT], encoder, data.max_prompt_tokens)]
    teachers = ({TEACHER: recipe.teacher} if recipe.teaches else {}) | recipe.teachers
    for name, config in teachers.items():
        reads = encoder if config.model == SELF else _encoder(config.model, data)
        # A problem without the privilege is measured too: whether that is an error is decided later.
        view = teacher_view(config.privilege, missing="plain")
        more = _RESPONSES_SHOWN * recipe.rollout.sampling.max_new_tokens if in_hindsight(view) else 0
        readers.append(Reader(name, view, reads, data.max_teacher_prompt_tokens, more))
    return readers


def _encoder(model: str, data: DataConfig) -> PromptEncoder:
    """Encoder that measures the prompts of a checkpoint.

    Raises:
        ValueError: the checkpoint cannot be used here.
    """
    read_config(model)  # names what is wrong with another kind of model, which may have no processor
    return PromptEncoder.for_lengths(read_processor(model), data.pixel_limits())


def _engine(recipe: Recipe, loaded: LoadedModel, longest_prompt: int) -> Engine:
    """The engine of the student's responses."""
    rollout = recipe.rollout
    new = max(rollout.sampling.max_new_tokens, recipe.evaluation.sampling.max_new_tokens)
    return make_engine(
        loaded,
        rollout.engine,
        rollout.vllm,
        prompts_per_batch=rollout.prompts_per_batch,
        setting="rollout.prompts_per_batch",
        longest=longest_prompt + new,
    )


def _served(recipe: Recipe, student: LoadedModel, sizes: PromptSizes | None) -> ServedTeacher | None:
    """The teacher on servers; None if there is none."""
    if not recipe.teacher.servers or not recipe.has_teacher:
        return None
    check_installed()  # it encodes the images of the requests
    assert sizes is not None, "the prompts of every teacher are measured"
    longest = sizes.most_tokens + recipe.rollout.sampling.max_new_tokens + 1
    limits = recipe.data.pixel_limits()
    return ServedTeacher(recipe.teacher, student, recipe.scoring.vocabulary, longest, limits)


def _parity(recipe: Recipe, loaded: LoadedModel) -> ParityCheck | None:
    """The comparison of the engine with the student; None if the student itself samples."""
    name, vllm = recipe.rollout.engine, recipe.rollout.vllm
    if name == "torch":
        return None
    limits = recipe.data.pixel_limits()
    responses, bound = vllm.parity_responses, vllm.max_difference
    return ParityCheck(loaded, name, recipe.scoring, responses, bound, limits, recipe.views[STUDENT])


def _source(recipe: Recipe, student: Scorer, teacher: Teacher | None, engine: Engine) -> RolloutSource:
    config, seed = recipe.rollout, recipe.training.seed
    if config.source == "dataset":
        loaded = student.loaded
        tokenizer = loaded.processor.tokenizer
        return DatasetSource(tokenizer, loaded.vocabulary, config.sampling.max_new_tokens)
    scorer = student
    if config.source == "teacher":
        assert teacher is not None
        scorer = teacher.scorer
        size, setting = config.prompts_per_batch, "rollout.prompts_per_batch"
        engine = make_engine(teacher.loaded, prompts_per_batch=size, setting=setting)
    generator = ModelGenerator(engine, config.sampling, encode=scorer.encode)
    return GeneratedSource(generator, scorer.view, config.group_size, seed)
