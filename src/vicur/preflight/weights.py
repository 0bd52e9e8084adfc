"""Memory of a model's weights on its device: what it stores, and what FSDP2 gathers to run it.

The numbers come from the tensors themselves, so they hold for any number of shards, offloading and
quantisation: a shard has its own size, and an offloaded one is not on the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vicur.models.policy import Policy
from vicur.models.quantised import is_quantised, statistics_bytes
from vicur.models.sharding import local, units

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
        gathered: for a pass, in the compute dtype: the root, the unit that runs and the next one, which is
            fetched already; with 4-bit weights, one matrix of them.
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
            gathered=size * (_count(root) + 2 * largest) + matrix,
            whole=size * (_count(root) + sum(map(_count, parts))) + matrix,
            reduced=max(_reduced(part, size) for part in parts),
            root_reduced=_reduced(root, size),
        )


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
