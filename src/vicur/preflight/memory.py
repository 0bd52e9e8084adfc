"""Estimates the memory of a run before its first forward pass.

Weights, optimizer states and the problems of a step are resident throughout; sampling, scoring, update and
optimizer step run one after another, and the largest of them counts. Every phase is estimated at its worst:
the longest prompt in the batch, responses of the full length. `benchmarks/memory.py` compares the sums with
measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from vicur.data.views import Blind, Plain
from vicur.models.checkpoints import has_recovery
from vicur.models.student import layers_with_recovery
from vicur.objectives.objective import Needs
from vicur.preflight.activations import (
    kept_by_mergers,
    kept_by_text_layer,
    kept_by_vision_block,
    passing_text_layer,
    passing_vision_block,
    pixel_numbers,
)
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.scoring.engine import BLOCK_BYTES, CHUNK_BYTES
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher

GIB = 2**30
FLOAT = 4
"""Bytes of a float32 number."""
PROCESS = int(0.85 * 2**30)
"""Bytes of a process that has imported torch and transformers; they count where the device is the CPU."""
BLOCK_TENSORS = 12
"""Tensors of the size of a block that a term keeps while its gradient is computed."""
SAMPLING_BYTES = 44
"""Bytes per candidate for the next token and per response being decoded: logits and log-probs in float32, the
penalty's mask, and their cumulative sum in float64."""

Bytes = int | float

HELD = "freed activations kept by the C library"

Phase = Literal["sampling", "scoring", "update", "optimizer step"]


@dataclass(frozen=True)
class Workload:
    """The sizes of a step.

    Attributes:
        prompts: problems in a rollout batch.
        group_size: responses to each prompt.
        student: sizes of the student's prompts.
        teacher: the teacher's prompts; None without a teacher.
        response_tokens: maximum length of a response.
        micro_batch: prompts with a graph in memory together.
        scoring_batch: prompts in one pass without gradient.
        decoding_batch: prompts that are decoded together.
        writer: source of the responses.
        checkpointing: whether layers are recomputed in the backward pass.
    """

    prompts: int
    group_size: int
    student: PromptSizes
    teacher: PromptSizes | None
    response_tokens: int
    micro_batch: int
    scoring_batch: int
    decoding_batch: int
    writer: Literal["student", "teacher", "dataset"]
    checkpointing: bool

    @property
    def generated(self) -> int:
        """Maximum number of response tokens in a step."""
        return self.prompts * self.group_size * self.response_tokens

    def scored(self, needs: Needs) -> int:
        """Maximum number of tokens that models read in a step: each look, and the student with gradient."""
        looks = {(look.who, look.view) for look in needs.looks} | {("student", None)}
        mean = {"student": self.student.mean_tokens, "teacher": self.sizes("teacher").mean_tokens}
        return round(
            sum(self.prompts * (mean[who] + self.group_size * self.response_tokens) for who, _ in looks)
        )

    def sizes(self, who: str) -> PromptSizes:
        """The prompts of "student" or "teacher"."""
        return self.student if who == "student" or self.teacher is None else self.teacher


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose.

    Attributes:
        resident: parts in use throughout the run.
        phases: parts that each phase of a step adds.
    """

    resident: Mapping[str, Bytes]
    phases: Mapping[Phase, Mapping[str, Bytes]]

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


def estimate_memory(student: Scorer, teacher: Teacher | None, needs: Needs, work: Workload) -> MemoryEstimate:
    """Estimate the peak of a run on its device.

    Args:
        student: the model that learns.
        teacher: may share the student's weights.
        needs: needs of the objective.
        work: the sizes of a step.
    """
    model = student.policy.model
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    resident: dict[str, Bytes] = {
        "student's weights": _bytes(model.parameters())
        + sum(FLOAT * p.numel() for p in trained if p.dtype != torch.float32),
        "AdamW's moments": 2 * FLOAT * count,
        "teacher's weights": _teacher_weights(teacher, model),
    }
    if student.device.type == "cpu":
        resident |= {"Python and its libraries": PROCESS, "problems of a step": _problems(model, needs, work)}
    distributions = _distributions(model, teacher, needs, work)
    update = _update(student, work)
    # glibc does not return freed blocks below 32 MiB: the update's stay resident in the optimizer step.
    held = sum(update.values()) if student.device.type == "cpu" else 0.0
    phases: dict[Phase, dict[str, Bytes]] = {
        "sampling": _sampling(student, teacher, work),
        "scoring": {"distributions": distributions, "one layer of a batch": _scoring(student, teacher, work)},
        "update": {
            "distributions": distributions,
            "gradient": FLOAT * count,
            **update,
        },
        "optimizer step": {
            "distributions": distributions,
            "gradient": FLOAT * count,
            "temporaries": _temporaries(trained, student.device),
            HELD: held,
        },
    }
    return MemoryEstimate(resident, phases)


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


def _update(student: Scorer, work: Workload) -> dict[str, Bytes]:
    """The graph of a micro-batch, and the additional memory of its backward pass and of the vocabulary."""
    model = student.policy.model
    batch = _batch(student, work.student, work.micro_batch, work.group_size, work.response_tokens)
    head = model.lm_head.weight
    kind = "cuda" if student.device.type == "cuda" else "cpu"
    phases: dict[str, Bytes] = {
        "activations of the language model": batch.tokens * _kept_text(model, work.checkpointing)
        + batch.mask * model.dtype.itemsize,
        "activations of the vision tower": _kept_vision(model, batch, work.checkpointing),
        "pixel values": batch.patches * FLOAT * pixel_numbers(model.config.vision_config),
        "one layer's backward pass": _passing(model, batch),
        "vocabulary chunk": CHUNK_BYTES[kind] + BLOCK_TENSORS * BLOCK_BYTES[kind],
    }
    if head.requires_grad and head.dtype != torch.float32:
        phases["the head's gradient before it is added"] = (FLOAT + head.element_size()) * head.numel()
    return phases


def _kept_text(model: Any, checkpointing: bool) -> Bytes:
    """Bytes per token in the graph."""
    text, size = model.config.text_config, model.dtype.itemsize
    layer = kept_by_text_layer(text, size)
    last_norm = (FLOAT + size) * text.hidden_size
    if checkpointing:
        return text.num_hidden_layers * text.hidden_size * size + layer + last_norm
    return text.num_hidden_layers * layer + last_norm


def _kept_vision(model: Any, batch: _Batch, checkpointing: bool) -> Bytes:
    """Bytes of the images in the graph: the tower's where it is trained, and what recovery reads."""
    text, vision, size = model.config.text_config, model.config.vision_config, model.dtype.itemsize
    recovered = len(layers_with_recovery(model.config)) if has_recovery(model.config) else 0
    kept = batch.visual * recovered * text.hidden_size * (FLOAT + size)
    if not any(p.requires_grad for p in model.model.visual.parameters()):
        return kept
    block = kept_by_vision_block(vision, size)
    blocks = vision.depth * vision.hidden_size * size + block if checkpointing else vision.depth * block
    cast = _pixel_bytes(model) - FLOAT * pixel_numbers(vision)
    return kept + batch.patches * (blocks + cast) + batch.visual * kept_by_mergers(vision, size)


def _pixel_bytes(model: Any) -> int:
    """Bytes of one patch as the processor returns it, plus those in the model's dtype if that differs."""
    size = 0 if model.dtype == torch.float32 else model.dtype.itemsize
    return pixel_numbers(model.config.vision_config) * int(FLOAT + size)


def _passing(model: Any, batch: _Batch) -> Bytes:
    """Bytes inside the widest layer; tower and language model run one after another."""
    text, vision, size = model.config.text_config, model.config.vision_config, model.dtype.itemsize
    return max(
        batch.tokens * passing_text_layer(text, size), batch.patches * passing_vision_block(vision, size)
    )


def _scoring(student: Scorer, teacher: Teacher | None, work: Workload) -> Bytes:
    """A pass of the student or of the teacher, whichever needs more."""
    scorers = [(student, work.student)]
    if teacher is not None:
        scorers.append((teacher.scorer, work.sizes("teacher")))
    byte_counts = []
    for scorer, sizes in scorers:
        model = scorer.policy.model
        batch = _batch(scorer, sizes, work.scoring_batch, work.group_size, work.response_tokens)
        pixels = batch.patches * _pixel_bytes(model)
        byte_counts.append(_passing(model, batch) + pixels + batch.mask * model.dtype.itemsize)
    return max(byte_counts)


def _sampling(student: Scorer, teacher: Teacher | None, work: Workload) -> dict[str, Bytes]:
    """Prefill, then keys and values of all responses, and the distributions of their next tokens."""
    if work.writer == "dataset" or not work.decoding_batch:
        return {}
    by_teacher = work.writer == "teacher" and teacher is not None
    scorer = teacher.scorer if by_teacher and teacher is not None else student
    model, sizes = scorer.policy.model, work.sizes(work.writer)
    prefill = _batch(scorer, sizes, work.decoding_batch, 0, 0)
    responses = work.decoding_batch * work.group_size
    cached = _cache_bytes(model)
    words = len(scorer.vocabulary.kept_ids) * SAMPLING_BYTES
    words += model.config.text_config.vocab_size * model.dtype.itemsize
    pixels = prefill.patches * _pixel_bytes(model)
    longest = sizes.most_tokens + work.response_tokens
    return {
        "keys and values of the prompts": prefill.tokens * cached,
        "keys and values of the responses": responses * longest * cached,
        "prefill or next tokens": max(_passing(model, prefill) + pixels, responses * words),
    }


def _temporaries(trained: list[nn.Parameter], device: torch.device) -> int:
    """AdamW's temporaries: on a GPU one float32 per weight, on a CPU two per weight of the largest matrix."""
    if device.type == "cuda":
        return FLOAT * sum(p.numel() for p in trained)
    return 2 * FLOAT * max((p.numel() for p in trained), default=0)


def _distributions(model: Any, teacher: Teacher | None, needs: Needs, work: Workload) -> Bytes:
    """Hidden states of a rollout batch that are kept until the update."""
    width = work.prompts * work.group_size * work.response_tokens
    models = [
        teacher.loaded.model if look.who == "teacher" and teacher is not None else model
        for look in needs.distributions.values()
    ]
    return float(
        sum(
            width * scored_model.config.text_config.hidden_size * scored_model.dtype.itemsize
            for scored_model in models
        )
    )


def _problems(model: Any, needs: Needs, work: Workload) -> Bytes:
    """Decoded images, and their pixel values under every view that shows them."""
    vision = model.config.vision_config
    seeing = {(look.who, look.view) for look in needs.looks if look.view != Blind()} | {("student", Plain())}
    patches = vision.spatial_merge_size**2 * pixel_numbers(vision) * FLOAT
    values = sum(work.sizes(who).mean_visual * patches for who, _ in seeing)
    return work.prompts * (3 * work.student.mean_raw + values)


def _teacher_weights(teacher: Teacher | None, student: Any) -> int:
    """Weights that a teacher does not share, and the float32 average of an EMA teacher in lower precision."""
    if teacher is None or teacher.loaded.model is student:
        return 0
    weights = list(teacher.loaded.model.parameters())
    averaged = teacher.average is not None and weights[0].dtype != torch.float32
    return _bytes(weights) + (FLOAT * sum(p.numel() for p in weights) if averaged else 0)


def _cache_bytes(model: Any) -> int:
    """Bytes per token in the KV cache."""
    text = model.config.text_config
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def memory_warning(estimate: MemoryEstimate, work: Workload, available: int | None) -> str | None:
    """A warning if the estimate exceeds the device's memory, with what to change, the cheapest first.

    Args:
        estimate: the estimate for the run.
        work: the sizes of a step.
        available: bytes of the device; None if unknown.
    """
    if available is None or estimate.total <= available:
        return None
    return (
        f"The estimated peak of {estimate.total / GIB:.1f} GiB ({estimate.largest}) is above the device's "
        f"{available / GIB:.1f} GiB. Change first, in this order: {'; '.join(_remedies(estimate, work))}."
    )


def _remedies(estimate: MemoryEstimate, work: Workload) -> list[str]:
    """Settings that lower the peak. Those that do not change the result come first."""
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
    if phase == "update" and not work.checkpointing:
        remedies.append("scoring.gradient_checkpointing=true")
    if phase != "optimizer step":
        visual = work.student.mean_visual > work.response_tokens
        longer = ["a lower data.max_pixels", "a lower rollout.sampling.max_new_tokens"]
        remedies += longer if visual else longer[::-1]
    if work.teacher is not None:
        remedies.append("teacher.dtype=bfloat16")
    return [*remedies, "student.lora={rank: 16}"]
