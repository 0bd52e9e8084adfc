"""What a run will need: tokens of a step, and memory of a device, estimated before it starts.

Estimates, not measurements: parts that are large at real sizes are counted, the rest is left out (the
vision tower's activations, the optimizer's temporaries, what the allocator does not give back).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vicur.models.load import LoadedModel
from vicur.objectives.objective import Needs
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher
from vicur.scoring.vocabulary import CHUNK_BYTES

GRADIENT_AND_MOMENTS = 3 * 4
"""Bytes: the float32 gradient of a trained weight and AdamW's two moments."""
KEPT_PER_LAYER = 34
"""Hidden states that a decoder layer keeps for the backward pass, about (Korthikanti et al. 2022, in
16-bit bytes: 34 s b h without the attention matrix)."""


@dataclass(frozen=True)
class Workload:
    """The sizes of a step.

    Attributes:
        prompts: of a rollout batch.
        siblings: responses to each.
        prompt_tokens, teacher_prompt_tokens: of one prompt, on average.
        response_tokens: of one response, at most.
        micro_batch: prompts with a graph in memory together.
        scoring_batch: prompts in one pass without gradient.
        decoding_batch: prompts that are decoded together.
        checkpointing: whether layers are computed again in the backward pass.
    """

    prompts: int
    siblings: int
    prompt_tokens: int
    teacher_prompt_tokens: int
    response_tokens: int
    micro_batch: int
    scoring_batch: int
    decoding_batch: int
    checkpointing: bool

    @property
    def generated(self) -> int:
        """Response tokens of a step, at most."""
        return self.prompts * self.siblings * self.response_tokens

    def scored(self, needs: Needs) -> int:
        """Tokens that models read in a step, at most: each look once, and the student with gradient."""
        looks = {(look.who, look.view) for look in needs.looks} | {("student", None)}
        prompt = {"student": self.prompt_tokens, "teacher": self.teacher_prompt_tokens}
        return sum(self.prompts * (prompt[who] + self.siblings * self.response_tokens) for who, _ in looks)


def estimate_memory(
    student: Scorer, teacher: Teacher | None, needs: Needs, work: Workload
) -> dict[str, float]:
    """Bytes by what they are for. Weights and states stay; of the three phases the largest counts.

    Args:
        student: the model that learns.
        teacher: may share the student's weights.
        needs: what the objective looks at.
        work: the sizes of a step.
    """
    model = student.policy.model
    text = model.config.text_config
    trained = [p for p in model.parameters() if p.requires_grad]
    masters = sum(4 * p.numel() for p in trained if p.dtype != torch.float32)
    head = model.lm_head.weight
    found: dict[str, float] = {
        "student's weights": _bytes(model.parameters()) + masters,
        "its gradient and AdamW's moments": GRADIENT_AND_MOMENTS * sum(p.numel() for p in trained),
        "teacher's weights": _of_teacher(teacher, model),
    }
    if head.requires_grad and head.dtype != torch.float32:
        found["the head's gradient in float32"] = 4 * head.numel()
    width = work.siblings * work.response_tokens
    size = model.dtype.itemsize
    scored = sum(
        work.prompts * width * _hidden_bytes(teacher if look.who == "teacher" else None, model)
        for look in needs.distributions.values()
    )
    phases = {
        "decoding: keys and values": work.decoding_batch
        * work.siblings
        * (work.prompt_tokens + work.response_tokens)
        * _cache_bytes(model),
        "scoring: one layer of a batch": work.scoring_batch
        * (work.teacher_prompt_tokens + width)
        * KEPT_PER_LAYER
        * text.hidden_size
        * size
        / 2,
        "update: activations of a micro-batch": work.micro_batch
        * (work.prompt_tokens + width)
        * text.hidden_size
        * size
        * _kept_states(text.num_hidden_layers, work.checkpointing),
    }
    largest = max(phases, key=lambda name: phases[name])
    found |= {
        "distributions of a rollout batch, as hidden states": scored,
        "vocabulary chunk": CHUNK_BYTES["cuda" if student.device.type == "cuda" else "cpu"],
        largest: phases[largest],
    }
    return {name: float(value) for name, value in found.items() if value}


def _of_teacher(teacher: Teacher | None, student: Any) -> int:
    """Weights of a teacher that are its own, and the float32 average behind those of lower precision."""
    if teacher is None or teacher.loaded.model is student:
        return 0
    weights = list(teacher.loaded.model.parameters())
    averaged = teacher.average is not None and weights[0].dtype != torch.float32
    return _bytes(weights) + (4 * sum(p.numel() for p in weights) if averaged else 0)


def _hidden_bytes(teacher: Teacher | None, student: Any) -> int:
    """Of one hidden state."""
    model = student if teacher is None else teacher.loaded.model
    return int(model.config.text_config.hidden_size * model.dtype.itemsize)


def _kept_states(layers: int, checkpointing: bool) -> float:
    """Hidden states of a token that exist during the backward pass."""
    inside = KEPT_PER_LAYER / 2  # in the model's own bytes
    return layers + inside if checkpointing else layers * inside


def _cache_bytes(model: Any) -> int:
    """Of one token in the cache."""
    text = model.config.text_config
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def available_memory(loaded: LoadedModel) -> int | None:
    """Of the device that the model is on, in bytes; None where it cannot be known."""
    device = loaded.model.device
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
