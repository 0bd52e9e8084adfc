"""Prints the estimated peak memory per GPU, by model and setting: the tables of docs/scale.md.

    python benchmarks/memory_table.py              # both tables, in about ten minutes; needs no GPU
    python benchmarks/memory_table.py --parts "2B, self, 1 GPU"   # what one entry consists of

The numbers are those of `vicur train --dry-run`, computed and not measured. Models of the real shapes, whose
weights are on an imagined GPU and have shapes but no values (torch's FakeTensorMode), are sharded by FSDP2
over imagined ranks (torch's process group "fake"), and `vicur.preflight.memory` estimates the peak
of a step. The recipe is the packaged `vicur/2b/opd_vicur`: bfloat16, cue recovery, gradient checkpointing, 1
problem per micro-batch, 4 per scoring batch; 8 per decoding batch instead of 32. Prompts have 2,048 tokens,
1,800 of them visual, 160 more for the teacher; responses have 1,024.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from random_models import SHAPES, TOKENS, Shape, random_model, wide_processor
from vicur import distributed
from vicur.models.adapters import add_adapter
from vicur.models.contract import check_contract
from vicur.models.load import LoadedModel, as_base, augmented_config
from vicur.models.sharding import shard
from vicur.models.student import ViCuRQwen3VLForConditionalGeneration
from vicur.preflight.memory import GIB, MemoryEstimate
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.run.execute import Run
from vicur.run.held_out import HeldOut
from vicur.run.problems import TrainingProblems
from vicur.run.recipe import Recipe, load_recipe
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher
from vicur.training.loop import Trainer
from vicur.training.optimizer import Optimizer
from vicur.training.scoring import BatchScorer
from vicur.training.update import Updater

GPU = torch.device("cuda", 0)
GPUS_PER_NODE = 8
PROMPT = PromptSizes(128, 2048.0, 2048, "longest", 1800.0, 1800, 1800 * 32.0**2)
TEACHER_PROMPT = replace(PROMPT, mean_tokens=2208.0, most_tokens=2208)
BATCHES = ("rollout.sampling.max_new_tokens=1024", "rollout.prompts_per_batch=8")
SELF = "self"


@dataclass(frozen=True)
class Entry:
    """One estimate.

    Attributes:
        student, teacher: names of shapes; the teacher may be "self", the frozen initial weights.
        gpus: number of ranks.
        settings: settings of the recipe.
    """

    student: str
    teacher: str
    gpus: int
    settings: tuple[str, ...] = ()


ROWS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 GPU, without gradient checkpointing": (1, ("scoring.gradient_checkpointing=false",)),
    "1 GPU": (1, ()),
    "1 GPU, `training.offload=true`": (1, ("training.offload=true",)),
    "1 GPU, LoRA of rank 16": (1, ("student.lora={rank: 16}",)),
    "8 GPUs, `training.sharding=replicated`": (8, ("training.sharding=replicated",)),
    "8 GPUs, `training.sharding=full`": (8, ()),
    "8 GPUs, `full`, LoRA of rank 16": (8, ("student.lora={rank: 16}",)),
    "16 GPUs, `training.sharding=full`": (16, ()),
    "2 nodes of 8 GPUs, `training.sharding=hybrid`": (16, ("training.sharding=hybrid",)),
}
TEACHERS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 GPU": (1, ()),
    "1 GPU, `teacher.offload=true`": (1, ("teacher.offload=true",)),
    "8 GPUs, `training.sharding=full`": (8, ()),
    "8 GPUs, `full`, `teacher.offload=true`": (8, ("teacher.offload=true",)),
    "16 GPUs, `training.sharding=full`": (16, ()),
}
PAIRS = {"2B from 8B": ("2B", "8B"), "2B from 32B": ("2B", "32B"), "8B from 32B": ("8B", "32B")}


def local_part(tensor: Any) -> Any:
    """Same as `vicur.models.sharding.local`, without a new tensor, which takes time in FakeTensorMode."""
    return getattr(tensor, "_local_tensor", tensor)


def offload_without_pinning(*, pin_memory: bool) -> CPUOffloadPolicy:
    """An offload policy that does not pin memory, which FakeTensorMode cannot do."""
    return CPUOffloadPolicy(pin_memory=False)


@contextmanager
def ranks(count: int) -> Iterator[None]:
    """A context in which this process is the first of so many ranks, each with a GPU."""
    launcher = {"RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": min(count, GPUS_PER_NODE)}
    environment = {name: str(value) for name, value in launcher.items()}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    meshes = {kind: distributed.mesh(kind, "cuda") for kind in ("full", "replicated")}  # type: ignore[arg-type]
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, environment))
        meshes["hybrid"] = distributed.mesh("hybrid", "cuda")
        stack.enter_context(patch("vicur.distributed.mesh", lambda sharding, device: meshes[sharding]))
        stack.enter_context(patch("torch.cuda.current_device", lambda: 0))
        stack.enter_context(patch("vicur.models.sharding.gather_once", lambda policy: None))
        stack.enter_context(patch("vicur.run.execute.available_memory", lambda device: None))
        stack.enter_context(patch("vicur.preflight.weights.local", local_part))
        stack.enter_context(patch("vicur.models.sharding.CPUOffloadPolicy", offload_without_pinning))
        try:
            yield
        finally:
            dist.destroy_process_group()


def without_numbers(config: Any, lora: Any = None) -> Any:
    """A model of shapes only. It must be made outside `ranks`."""
    model = random_model(config, torch.bfloat16, torch.device("meta"))
    if lora is not None:
        add_adapter(model, lora)
    return model


def student_and_teacher(
    entry: Entry, recipe: Recipe, processor: Any, shapes: dict[str, Shape]
) -> Iterator[Any]:
    """The student's model, and the teacher's; None for the base of a student with adapters."""
    own = shapes[entry.student].config(processor)
    lora = recipe.student.lora
    yield without_numbers(augmented_config(own, recipe.student.recovery), lora)
    is_base = entry.teacher == SELF and lora is not None
    other = own if entry.teacher == SELF else shapes[entry.teacher].config(processor)
    yield None if is_base else without_numbers(other).requires_grad_(False)


def on_gpu(model: Any, processor: Any) -> LoadedModel:
    """A model before it is sharded."""
    return LoadedModel.of(model.to_empty(device=GPU), processor)


def estimate(entry: Entry, processor: Any, shapes: dict[str, Shape] = SHAPES) -> MemoryEstimate:
    """The estimate of `vicur train --dry-run`."""
    model = SELF if entry.teacher == SELF else "another"
    settings = [f"teacher.model={model}", "data.train=none", *BATCHES, *entry.settings]
    recipe = load_recipe("vicur/2b/opd_vicur", settings)
    training, view = recipe.training, recipe.teacher.view
    student_model, teacher_model = student_and_teacher(entry, recipe, processor, shapes)
    with ranks(entry.gpus):
        # Only here: the estimate itself counts the tokens of the vocabulary, which are numbers.
        with FakeTensorMode(allow_non_fake_inputs=True):
            student = on_gpu(student_model, processor)
            if teacher_model is None:
                teacher = Teacher(as_base(student), view, recipe.scoring)
            else:
                loaded = on_gpu(teacher_model, processor)
                teacher = Teacher(loaded, view, recipe.scoring, offload=recipe.teacher.offload)
                teacher.shard(training.sharding, GPU)
            shard(student.policy, training.sharding, GPU, offload=training.offload)
        scorer = Scorer(student, recipe.scoring)
        optimizer = Optimizer(student.model, recipe.optimizer, total_steps=1)
        trainer = Trainer(
            samples=[],
            source=None,  # type: ignore[arg-type]
            scoring=BatchScorer(scorer, teacher, seed=0),
            objective=recipe.objective.build(),
            updater=Updater(scorer, optimizer, recipe.optimizer.prompts_per_micro_batch),
            config=training,
        )
        sizes = {"student": PROMPT, "teacher": TEACHER_PROMPT}
        problems = TrainingProblems(problems=[], sizes=sizes)  # type: ignore[arg-type]
        reading = training.evaluate.data_config(recipe.data)
        held_out = HeldOut(recipe, student, trainer.scoring, None, recipe.evaluation, reading, None)
        return Run(recipe, problems, student, trainer, held_out).plan().memory


def print_table(title: str, columns: Sequence[str], rows: dict[str, list[Entry]], processor: Any) -> None:
    """Print estimates in GiB, row by row."""
    print(f"| {title} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1), sep="\n")
    for name, row in rows.items():
        totals = [estimate(entry, processor).total / GIB for entry in row]
        print(f"| {name} | {' | '.join(f'{total:.0f}' for total in totals)} |", flush=True)
    print()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", metavar="STUDENT, TEACHER, ROW", help="print the parts of one estimate")
    options = parser.parse_args(arguments)
    check_contract(ViCuRQwen3VLForConditionalGeneration)  # runs a tiny model, which needs real numbers
    processor = wide_processor(TOKENS)
    if options.parts:
        student, teacher, row = options.parts.split(", ", 2)
        found = estimate(Entry(student, teacher, *(ROWS if teacher == SELF else TEACHERS)[row]), processor)
        for name, count in found.parts.items():
            print(f"{count / GIB:8.2f}  {name}")
        print(f"{found.total / GIB:8.2f}  total")
        return
    own = {name: [Entry(size, SELF, *row) for size in SHAPES] for name, row in ROWS.items()}
    larger = {name: [Entry(*pair, *row) for pair in PAIRS.values()] for name, row in TEACHERS.items()}
    print_table("GiB on each GPU, self-teacher", list(SHAPES), own, processor)
    print_table("GiB on each GPU, larger teacher", list(PAIRS), larger, processor)


if __name__ == "__main__":
    main()
