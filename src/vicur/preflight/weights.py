"""Memory of a model's weights on its device: what it stores, and what FSDP2 gathers to run it.

The numbers come from the tensors themselves, so they hold for any number of shards, offloading and
quantisation: a shard has its own size, and an offloaded one is not on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vicur import distributed
from vicur.models.adapters import has_adapters
from vicur.models.policy import Policy
from vicur.models.quantised import is_quantised, matrices_of, statistics_bytes
from vicur.models.sharding import local, units
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher

FLOAT = 4
"""Bytes of a float32 number."""
QUANTISED = 0.52
"""Bytes of a weight in 4 bits, with its scales."""


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of one model's weights.

    Attributes:
        stored: on the device, all the time.
        offloaded: in CPU memory, where that is not the device's.
        gathered: peak of the weights gathered for a pass, in the compute dtype: the root with two units (the
            next one is prefetched), or the root and its copy, whichever is larger; with 4-bit weights, plus
            one dequantised matrix.
        whole: for decoding, in the compute dtype: all units.
        reduced: for a backward pass, the gradient of one unit: whole in the compute dtype and in float32, and
            the shard.
        root_reduced: the same for the root, at the end of the backward pass.
    """

    stored: int
    offloaded: int
    gathered: int
    whole: int
    reduced: int
    root_reduced: int

    @classmethod
    def of(cls, policy: Policy) -> WeightMemory:
        """The memory of a policy's weights."""
        weights = list(policy.parameters())
        here = [weight for weight in weights if is_on(weight, policy.device)]
        stored, total = stored_bytes(here), stored_bytes(weights)
        size = policy.dtype.itemsize
        matrix = max((2 * weight.numel() * size for weight in weights if is_quantised(weight)), default=0)
        if not policy.is_sharded:
            return cls(stored, total - stored, matrix, 0, 0, 0)
        parts = [_sharded(unit.parameters()) for unit in units(policy)]
        inside = {weight for part in parts for weight in part}
        root = [weight for weight in _sharded(weights) if weight not in inside]
        largest = max(map(_count, parts))
        return cls(
            stored=stored,
            offloaded=total - stored,
            gathered=size * (_count(root) + max(_count(root), 2 * largest)) + matrix,
            whole=size * (_count(root) + sum(map(_count, parts))) + matrix,
            reduced=max(_reduced(part, size) for part in parts),
            root_reduced=_reduced(root, size),
        )


@dataclass(frozen=True)
class Lever:
    """A setting that leaves less on the device.

    Attributes:
        setting: the setting, as on the command line.
        saved: about how many bytes less; None if that depends.
    """

    setting: str
    saved: float | None = None

    def __str__(self) -> str:
        return self.setting if self.saved is None else f"{self.setting} (saves {self.saved / 2**30:.1f} GiB)"


def weight_levers(student: Scorer, teacher: Teacher | None, state_bytes: float) -> Iterator[Lever]:
    """Settings with which all weights are still trained.

    Args:
        student: the student.
        teacher: its teacher.
        state_bytes: bytes of the optimizer's states per trained weight.
    """
    policy, on_gpu = student.policy, student.device.type == "cuda"
    count = local_count(p for p in policy.parameters() if p.requires_grad and is_on(p, policy.device))
    if on_gpu and policy.dtype == torch.float32:
        yield Lever("student.dtype=bfloat16")
    if teacher is not None and teacher.loaded.policy is not policy:
        stored = WeightMemory.of(teacher.loaded.policy).stored
        is_other = teacher.loaded.processor is not student.loaded.processor
        if is_other and teacher.loaded.dtype == torch.float32:
            yield Lever("teacher.dtype=bfloat16", stored / 2)
        if on_gpu and stored:
            yield Lever("teacher.offload=true", stored)
    if state_bytes >= 2 * FLOAT and count:
        yield Lever("optimizer.states=8bit", 0.74 * state_bytes * count)
    if on_gpu and count:
        yield Lever("training.offload=true, which is slow", (2 * FLOAT + state_bytes) * count)


def adapter_levers(student: Scorer, state_bytes: float) -> Iterator[Lever]:
    """Settings with which only adapters are trained, and more processes.

    Args:
        student: the student.
        state_bytes: bytes of the optimizer's states per trained weight.
    """
    policy, is_alone = student.policy, distributed.size() == 1
    size, weights = policy.dtype.itemsize, list(policy.parameters())
    quantising = (size - QUANTISED) * local_count(matrices_of(policy.model))
    is_quantised_now = any(is_quantised(weight) for weight in weights)
    if not has_adapters(policy.model):
        count = local_count(weight for weight in weights if weight.requires_grad)
        training = (2 * FLOAT + state_bytes - size) * count
        yield Lever("student.lora={rank: 16}", training)
        if is_alone:
            yield Lever("student.lora={rank: 16, quantize: nf4}", training + quantising)
    elif is_alone and not is_quantised_now:
        yield Lever("student.lora.quantize=nf4", quantising)
    if student.device.type == "cuda" and not is_quantised_now:
        yield Lever("more processes, over which weights and states are sharded")


def is_on(weight: Tensor, device: torch.device) -> bool:
    """Whether this rank's part of a weight is in the memory of a kind of device."""
    return local(weight).device.type == device.type


def stored_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes of this rank's part of weights."""
    total = 0
    for weight in weights:
        part = local(weight)
        total += part.numel() * part.element_size()
        if is_quantised(weight):
            total += statistics_bytes(weight)
    return total


def local_count(weights: Iterable[Tensor]) -> int:
    """Number of weights in this rank's part."""
    return sum(local(weight).numel() for weight in weights)


def _sharded(weights: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if isinstance(weight, DTensor)]


def _count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _reduced(weights: Iterable[nn.Parameter], size: int) -> int:
    trained = [weight for weight in weights if weight.requires_grad]
    return (size + FLOAT) * _count(trained) + FLOAT * local_count(trained)
