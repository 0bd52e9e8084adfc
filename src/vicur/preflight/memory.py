"""Estimates the memory of a run before its first forward pass.

Weights, optimizer states and the problems of a step are resident throughout; sampling, scoring, update and
optimizer step run one after another, and the largest of them counts. Every phase is estimated at its worst:
the longest prompt in the batch, responses of the full length. `vicur.preflight.weights` measures what
sharding, offloading and quantisation leave on the device, and which settings would leave less.
`benchmarks/memory.py` compares the sums with measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vicur.models.checkpoints import has_recovery
from vicur.models.policy import Policy
from vicur.models.student import layers_with_recovery
from vicur.objectives.objective import TEACHER, Needs
from vicur.preflight.activations import (
    kept_by_mergers,
    kept_by_text_layer,
    kept_by_vision_block,
    passing_text_layer,
    passing_vision_block,
    pixel_numbers,
)
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.preflight.weights import (
    FLOAT,
    Lever,
    WeightMemory,
    adapter_levers,
    is_on,
    local_count,
    stored_bytes,
    weight_levers,
)
from vicur.scoring.chunks import BLOCK_BYTES, CHUNK_BYTES, HEAD_ROWS
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher

GIB = 2**30
PROCESS = int(0.85 * 2**30)
"""Bytes of a process that has imported torch and transformers; they count where the device is the CPU."""
FEWEST_CHUNK_TOKENS = 64
"""With fewer tokens per chunk the products with the head are slow."""
BLOCK_TENSORS = 12
"""Tensors of the size of a block that a term keeps while its gradient is computed."""
SAMPLING_BYTES = 44
"""Bytes per candidate for the next token and per response being decoded: logits and log-probs in float32, the
penalty's mask, and their cumulative sum in float64."""
EIGHT_BIT_TEMPORARIES = {"cpu": 14, "cuda": 4}
"""Temporaries of an update with 8-bit states, in float32 numbers per weight of the largest matrix; torchao's
step is compiled on a GPU only."""

COPIES_IN_A_SAVE = 2
"""Copies in CPU memory of what a checkpoint holds, while it is written: the tensors as they were after the
step, and the bytes of the file."""

Bytes = int | float

SAVING = "checkpoint being written"
HELD = "freed activations kept by the C library"
SECOND_GRADIENT = "second gradient for the measured scale"
SMALL_BLOCKS = (
    "activations of the language model",
    "activations of the vision tower",
    "pixel values",
    "one layer's backward pass",
    "vocabulary chunk",
)
"""Parts of the update that consist of many tensors."""

Phase = Literal["sampling", "scoring", "update", "optimizer step"]


@dataclass(frozen=True)
class Workload:
    """The sizes of a step.

    Attributes:
        prompts: problems in a rollout batch.
        group_size: responses to each prompt.
        student: sizes of the student's prompts.
        teachers: sizes of each teacher's prompts, by name.
        response_tokens: maximum length of a response.
        micro_batch: prompts with a graph in memory together.
        scoring_batch: prompts in one pass without gradient.
        decoding_batch: prompts that are decoded together.
        writer: source of the responses.
        checkpointing: whether layers are recomputed in the backward pass.
        state_bytes: bytes of the optimizer's states per trained weight: 8 for AdamW in float32.
        saves: whether checkpoints are written while steps run.
    """

    prompts: int
    group_size: int
    student: PromptSizes
    teachers: Mapping[str, PromptSizes]
    response_tokens: int
    micro_batch: int
    scoring_batch: int
    decoding_batch: int
    writer: Literal["student", "teacher", "dataset"]
    checkpointing: bool
    state_bytes: float = 2.0 * FLOAT
    saves: bool = False

    @property
    def generated(self) -> int:
        """Maximum number of response tokens in a step."""
        return self.prompts * self.group_size * self.response_tokens

    def scored(self, needs: Needs) -> int:
        """Maximum number of tokens that models read in a step: each look, and the student with gradient."""
        looks = [*{(look.who, look.view) for look in needs.looks}, ("student", None)]
        responses = self.group_size * self.response_tokens
        return round(sum(self.prompts * (self.sizes(who).mean_tokens + responses) for who, _ in looks))

    def sizes(self, who: str) -> PromptSizes:
        """The prompts of the student or of a teacher."""
        return self.teachers.get(who, self.student)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose.

    Attributes:
        resident: parts in use throughout the run.
        phases: parts that each phase of a step adds.
        cpu: parts in CPU memory, where that is not the device's: what is offloaded, and a checkpoint that is
            being written.
        chunk_tokens: response tokens whose logits are in memory together.
        levers: settings that leave less of the weights and states on the device, in the order in which to try
            them, without those of `adapters`.
        adapters: settings that train adapters instead of all weights, or take more processes.
    """

    resident: Mapping[str, Bytes]
    phases: Mapping[Phase, Mapping[str, Bytes]]
    cpu: Mapping[str, Bytes] = field(default_factory=dict)
    chunk_tokens: int = 0
    levers: tuple[Lever, ...] = ()
    adapters: tuple[Lever, ...] = ()

    @property
    def largest(self) -> Phase:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> dict[str, float]:
        """The parts in use at the peak: the resident ones and those of the largest phase."""
        largest_phase = {
            f"{self.largest}: {name}": count for name, count in self.phases[self.largest].items()
        }
        return {name: float(count) for name, count in {**self.resident, **largest_phase}.items() if count}

    @property
    def total(self) -> float:
        """Bytes in use at the peak."""
        return sum(self.parts.values())


def estimate_memory(
    student: Scorer, teachers: Mapping[str, Teacher], needs: Needs, work: Workload
) -> MemoryEstimate:
    """Estimate the peak of a run on its device.

    Args:
        student: the model that learns.
        teachers: its teachers by name; they may share the student's weights.
        needs: needs of the objective.
        work: the sizes of a step.
    """
    policy, device = student.policy, student.device
    trained = [p for p in policy.parameters() if p.requires_grad]
    here = [p for p in trained if is_on(p, device)]
    weights = WeightMemory.of(policy)
    resident: dict[str, Bytes] = {
        "student's weights": weights.stored,
        "AdamW's moments": work.state_bytes * local_count(here),
        "teacher's weights": 0,
    }
    gradients = 2 if needs.measures_scale else 1
    cpu: dict[str, Bytes] = {
        "offloaded student": weights.offloaded
        + (work.state_bytes + gradients * FLOAT) * (local_count(trained) - local_count(here)),
    }
    theirs = [WeightMemory.of(other) for other in _other_policies(policy, teachers)]
    resident["teacher's weights"] = sum(memory.stored for memory in theirs)
    cpu["offloaded teacher"] = sum(memory.offloaded for memory in theirs)
    if device.type == "cpu":
        resident |= {
            "Python and its libraries": PROCESS,
            "problems of a step": _problems(policy, needs, work),
        }
    if work.saves:
        where = resident if device.type == "cpu" else cpu
        where[SAVING] = COPIES_IN_A_SAVE * _saved(trained, teachers, work)
    return MemoryEstimate(
        resident,
        _phases(student, teachers, needs, work, here),
        {name: count for name, count in cpu.items() if count},
        _chunk_tokens(student),
        tuple(weight_levers(student, teachers.get(TEACHER), work.state_bytes)),
        tuple(adapter_levers(student, work.state_bytes)),
    )


def _phases(
    student: Scorer, teachers: Mapping[str, Teacher], needs: Needs, work: Workload, here: Sequence[Tensor]
) -> dict[Phase, dict[str, Bytes]]:
    """What each phase adds; `here` are the trained weights on the device."""
    policy, device = student.policy, student.device
    kept = {
        "distributions": _distributions(policy, teachers, needs, work),
        "heads": _heads(student, teachers, needs),
    }
    gradient = FLOAT * local_count(here)
    update = _update(student, work, WeightMemory.of(policy))
    # glibc does not return freed blocks below 32 MiB: the update's stay resident in the optimizer step.
    held = sum(update[name] for name in SMALL_BLOCKS) if device.type == "cpu" else 0.0
    return {
        "sampling": _sampling(student, teachers.get(TEACHER), work),
        "scoring": {**kept, **_scoring(student, teachers, work)},
        "update": {
            **kept,
            "gradient": gradient,
            SECOND_GRADIENT: gradient if needs.measures_scale else 0,
            **update,
        },
        "optimizer step": {
            **kept,
            "gradient": gradient,
            "temporaries": _temporaries(here, work, device),
            HELD: held,
        },
    }


def _other_policies(policy: Policy, teachers: Mapping[str, Teacher]) -> list[Policy]:
    """The teachers' policies with weights of their own, each once."""
    policies = {id(teacher.loaded.policy): teacher.loaded.policy for teacher in teachers.values()}
    policies.pop(id(policy), None)
    return list(policies.values())


def _saved(trained: Sequence[Tensor], teachers: Mapping[str, Teacher], work: Workload) -> Bytes:
    """This rank's part of a checkpoint: trained weights, their states, the weights of an EMA teacher."""
    averaged = [tensor for teacher in teachers.values() for tensor in teacher.tensors().values()]
    return stored_bytes([*trained, *averaged]) + work.state_bytes * local_count(trained)


@dataclass(frozen=True)
class _Batch:
    """The size of a batch that a model reads in one pass.

    Attributes:
        tokens: tokens that the language model reads, padding included.
        visual: visual tokens.
        patches: patches that the vision tower reads.
        mask: entries of the attention mask, where responses share a sequence.
    """

    tokens: Bytes
    visual: Bytes
    patches: Bytes
    mask: Bytes = 0.0


def _batch(scorer: Scorer, sizes: PromptSizes, prompts: int, group_size: int, response_tokens: int) -> _Batch:
    """Prompts with their responses, all padded to the longest."""
    lengths = [response_tokens] * group_size
    width = scorer.responses_per_sequence(sizes.most_tokens, lengths) if group_size else 1
    sequences = -(-group_size // width) if group_size else 1  # per prompt
    length = sizes.most_tokens + width * response_tokens
    visual = sequences * sizes.visual_of(prompts)
    merged = scorer.policy.model.config.vision_config.spatial_merge_size**2
    mask = prompts * sequences * length**2 if width > 1 else 0
    return _Batch(prompts * sequences * length, visual, visual * merged, mask)


def _update(student: Scorer, work: Workload, weights: WeightMemory) -> dict[str, Bytes]:
    """The graph of a micro-batch, and the additional memory of its backward pass and of the vocabulary."""
    policy = student.policy
    batch = _batch(student, work.student, work.micro_batch, work.group_size, work.response_tokens)
    head = policy.model.lm_head.weight
    size = policy.dtype.itemsize
    activations: dict[str, Bytes] = {
        "activations of the language model": batch.tokens * _kept_text(policy, work.checkpointing)
        + batch.mask * size,
        "activations of the vision tower": _kept_vision(policy, batch, work.checkpointing),
    }
    others: dict[str, Bytes] = {
        "pixel values": batch.patches * FLOAT * pixel_numbers(policy.model.config.vision_config),
        "one layer's backward pass": _passing(policy, batch),
        "vocabulary chunk": _chunk(student),
        "gathered weights": weights.gathered,
    }
    half = head.numel() * size if head.requires_grad and policy.dtype != torch.float32 else 0
    full = FLOAT * head.numel() if head.requires_grad and (policy.is_sharded or half) else 0
    others["the head's gradient before it is added"] = full + half
    # Afterwards each unit's gradient is reduced; the root's last, when the activations are free.
    reduced = max((half or full) + weights.reduced, weights.root_reduced - sum(activations.values()))
    if policy.is_sharded:
        others["gradients being reduced"] = max(0.0, reduced - full - half)
    return activations | others


def _chunk_tokens(student: Scorer) -> int:
    """Number of tokens in a chunk where two distributions are compared."""
    kind = "cuda" if student.device.type == "cuda" else "cpu"
    most = CHUNK_BYTES[kind] // (2 * FLOAT * len(student.vocabulary.kept_ids))
    return student.config.chunk_tokens or max(1, most)


def _chunk(student: Scorer) -> Bytes:
    """Logits of a chunk of tokens for two distributions, and the tensors of a block."""
    block = BLOCK_BYTES["cuda" if student.device.type == "cuda" else "cpu"]
    logits = FLOAT * len(student.vocabulary.kept_ids) * _chunk_tokens(student)
    rows, width = student.policy.model.lm_head.weight.shape
    # A half-precision head is converted in parts.
    converted = FLOAT * min(rows, HEAD_ROWS) * width if student.policy.dtype != torch.float32 else 0
    return 2 * logits + BLOCK_TENSORS * min(block, logits) + converted


def _kept_text(policy: Policy, checkpointing: bool) -> Bytes:
    """Bytes per token in the graph."""
    text, size = policy.model.config.text_config, policy.dtype.itemsize
    layer = kept_by_text_layer(text, size)
    last_norm = (FLOAT + size) * text.hidden_size
    if checkpointing:
        return text.num_hidden_layers * text.hidden_size * size + layer + last_norm
    return text.num_hidden_layers * layer + last_norm


def _kept_vision(policy: Policy, batch: _Batch, checkpointing: bool) -> Bytes:
    """Bytes of the images in the graph: the tower's where it is trained, and what recovery reads."""
    model, size = policy.model, policy.dtype.itemsize
    text, vision = model.config.text_config, model.config.vision_config
    recovered = len(layers_with_recovery(model.config)) if has_recovery(model.config) else 0
    kept = batch.visual * recovered * text.hidden_size * (FLOAT + size)
    if not any(p.requires_grad for p in model.model.visual.parameters()):
        return kept
    block = kept_by_vision_block(vision, size)
    blocks = vision.depth * vision.hidden_size * size + block if checkpointing else vision.depth * block
    cast = _pixel_bytes(policy) - FLOAT * pixel_numbers(vision)
    return kept + batch.patches * (blocks + cast) + batch.visual * kept_by_mergers(vision, size)


def _pixel_bytes(policy: Policy) -> int:
    """Bytes of one patch as the processor returns it, plus those in the model's dtype if that differs."""
    size = 0 if policy.dtype == torch.float32 else policy.dtype.itemsize
    return pixel_numbers(policy.model.config.vision_config) * int(FLOAT + size)


def _passing(policy: Policy, batch: _Batch) -> Bytes:
    """Bytes inside the widest layer; tower and language model run one after another."""
    config, size = policy.model.config, policy.dtype.itemsize
    text, vision = config.text_config, config.vision_config
    return max(
        batch.tokens * passing_text_layer(text, size), batch.patches * passing_vision_block(vision, size)
    )


def _scoring(student: Scorer, teachers: Mapping[str, Teacher], work: Workload) -> dict[str, Bytes]:
    """A pass of the student or of the teacher, or reading what it returned, whichever needs more."""
    scorers = [(student, work.student)]
    scorers += [(teacher.scorer, work.sizes(name)) for name, teacher in teachers.items()]
    passes: list[dict[str, Bytes]] = []
    for scorer, sizes in scorers:
        policy = scorer.policy
        batch = _batch(scorer, sizes, work.scoring_batch, work.group_size, work.response_tokens)
        pixels = batch.patches * _pixel_bytes(policy)
        layer = _passing(policy, batch) + pixels + batch.mask * policy.dtype.itemsize
        passes.append({"one layer of a batch": layer, "gathered weights": WeightMemory.of(policy).gathered})
        passes.append({"vocabulary chunk": _chunk(scorer)})  # read after all passes
    return max(passes, key=lambda parts: sum(parts.values()))


def _sampling(student: Scorer, teacher: Teacher | None, work: Workload) -> dict[str, Bytes]:
    """Prefill, then keys and values of all responses, and the distributions of their next tokens."""
    if work.writer == "dataset" or not work.decoding_batch:
        return {}
    by_teacher = work.writer == "teacher" and teacher is not None
    scorer = teacher.scorer if by_teacher and teacher is not None else student
    policy, sizes = scorer.policy, work.sizes(work.writer)
    prefill = _batch(scorer, sizes, work.decoding_batch, 0, 0)
    responses = work.decoding_batch * work.group_size
    cached = _cache_bytes(policy)
    words = len(scorer.vocabulary.kept_ids) * SAMPLING_BYTES
    words += policy.model.config.text_config.vocab_size * policy.dtype.itemsize
    pixels = prefill.patches * _pixel_bytes(policy)
    longest = sizes.most_tokens + work.response_tokens
    weights = WeightMemory.of(policy)
    return {
        "gathered weights": weights.whole or weights.gathered,
        "keys and values of the prompts": prefill.tokens * cached,
        "keys and values of the responses": responses * longest * cached,
        "prefill or next tokens": max(_passing(policy, prefill) + pixels, responses * words),
    }


def _temporaries(trained: Sequence[Tensor], work: Workload, device: torch.device) -> Bytes:
    """AdamW's temporaries: on a GPU one float32 per weight, on a CPU two per weight of the largest matrix;
    with 8-bit states several per weight of the largest matrix."""
    largest = max((local_count([p]) for p in trained), default=0)
    kind = "cuda" if device.type == "cuda" else "cpu"
    if work.state_bytes < 2 * FLOAT:
        return FLOAT * EIGHT_BIT_TEMPORARIES[kind] * largest
    return FLOAT * local_count(trained) if kind == "cuda" else 2 * FLOAT * largest


def _distributions(policy: Policy, teachers: Mapping[str, Teacher], needs: Needs, work: Workload) -> Bytes:
    """Hidden states of a rollout batch that are kept until the update."""
    width = work.prompts * work.group_size * work.response_tokens
    policies = [
        teachers[look.who].loaded.policy if look.who in teachers else policy
        for look in needs.distributions.values()
    ]
    return float(
        sum(
            width * scored.model.config.text_config.hidden_size * scored.dtype.itemsize for scored in policies
        )
    )


def _heads(student: Scorer, teachers: Mapping[str, Teacher], needs: Needs) -> Bytes:
    """Copies of the heads that belong to kept hidden states, where the head itself is sharded or changes."""
    scorers = [student] if "student" in needs.models else []
    scorers += [teacher.scorer for name, teacher in teachers.items() if name in needs.models]
    copied = [scorer.policy for scorer in scorers if scorer.keep_head or scorer.policy.is_sharded]
    return sum(policy.model.lm_head.weight.numel() * policy.dtype.itemsize for policy in copied)


def _problems(policy: Policy, needs: Needs, work: Workload) -> Bytes:
    """Decoded images, and their pixel values under every view that shows them."""
    vision = policy.model.config.vision_config
    looks = {(look.who, look.view) for look in needs.looks} | {("student", None)}
    seeing = {(who, view) for who, view in looks if "blind" not in getattr(view, "name", "").split(" + ")}
    patches = vision.spatial_merge_size**2 * pixel_numbers(vision) * FLOAT
    values = sum(work.sizes(who).mean_visual * patches for who, _ in seeing)
    return work.prompts * (3 * work.student.mean_raw + values)


def _cache_bytes(policy: Policy) -> int:
    """Bytes per token in the KV cache."""
    text = policy.model.config.text_config
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    return int(numbers * policy.dtype.itemsize)


def memory_warning(estimate: MemoryEstimate, work: Workload, available: int | None) -> str | None:
    """A warning if the estimate exceeds the device's memory, with what to change, the cheapest first.

    Args:
        estimate: the estimate for the run.
        work: the sizes of a step.
        available: bytes of the device; None if unknown.
    """
    if available is None or estimate.total <= available:
        return None
    remedies = "; ".join(_remedies(estimate, work, available))
    return (
        f"The estimated peak of {estimate.total / GIB:.1f} GiB ({estimate.largest}) is above the device's "
        f"{available / GIB:.1f} GiB."
    ) + (f" Change first, in this order: {remedies}." if remedies else " Use a smaller student or teacher.")


def cpu_memory_warning(estimate: MemoryEstimate, processes: int, machine: int | None) -> str | None:
    """A warning if what a GPU run keeps in CPU memory exceeds the machine's.

    Args:
        estimate: the estimate for the run.
        processes: number of processes on this node.
        machine: bytes of CPU memory of the machine or container; None if unknown.
    """
    total = processes * sum(estimate.cpu.values())
    if machine is None or total <= machine:
        return None
    parts = ", ".join(f"{name} {count / GIB:.1f} GiB" for name, count in estimate.cpu.items())
    each = "" if processes == 1 else f" per process, {processes} processes"
    settings = {
        "offloaded student": "training.offload=false",
        "offloaded teacher": "teacher.offload=false",
        SAVING: "training.checkpoints.every=null",
    }
    remedies = "; ".join(settings[name] for name in estimate.cpu)
    return (
        f"The run keeps about {total / GIB:.1f} GiB in CPU memory ({parts}{each}), and the machine has "
        f"{machine / GIB:.1f} GiB. Use more nodes, or set: {remedies}."
    )


def _remedies(estimate: MemoryEstimate, work: Workload, available: int) -> list[str]:
    """Settings that lower the peak. Those that do not change the result come first, unless the weights and
    states alone are too large: then no smaller batch helps."""
    batches, longer = _batch_remedies(estimate, work)
    levers, adapters = ([str(lever) for lever in levers] for levers in (estimate.levers, estimate.adapters))
    if sum(estimate.resident.values()) > available:
        return [*levers, *adapters, *batches, *longer]
    return [*batches, *levers, *longer, *adapters]


def _batch_remedies(estimate: MemoryEstimate, work: Workload) -> tuple[list[str], list[str]]:
    """Smaller batches of the largest phase; and shorter prompts or responses, which change the result."""
    batches: dict[Phase, tuple[str, int]] = {
        "sampling": ("rollout.prompts_per_batch", work.decoding_batch),
        "scoring": ("scoring.prompts_per_batch", work.scoring_batch),
        "update": ("optimizer.prompts_per_micro_batch", work.micro_batch),
        "optimizer step": ("", 1),
    }
    held = estimate.phases["optimizer step"][HELD] > 0
    phase: Phase = "update" if estimate.largest == "optimizer step" and held else estimate.largest
    name, size = batches[phase]
    remedies = [f"{name}={size // 2} or less (now {size})"] if size > 1 else []
    if phase == "optimizer step":
        return remedies, []
    if phase == "update":
        if not work.checkpointing:
            remedies.append("scoring.gradient_checkpointing=true")
        if estimate.chunk_tokens > FEWEST_CHUNK_TOKENS:
            halved = estimate.chunk_tokens // 2
            remedies.append(f"scoring.chunk_tokens={halved} or less (now {estimate.chunk_tokens})")
    longer = ["a lower data.max_pixels", "a lower rollout.sampling.max_new_tokens"]
    visual = work.student.mean_visual > work.response_tokens
    return remedies, longer if visual else longer[::-1]
