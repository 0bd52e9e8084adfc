"""Shards models over the ranks of a run with FSDP2, in mixed precision.

Each decoder layer and each block of the vision tower is a unit, and the policy is the root with the rest:
embeddings, head, norms and cue recovery. Trained weights, their gradients and the optimizer's states are
float32; a unit is gathered in the compute dtype when it runs. This holds for one device too: float32 master
weights of a bfloat16 model come from here.

Gradients are summed over ranks, not averaged: every token weight already includes 1/N over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from vicur import distributed
from vicur.distributed import Sharding
from vicur.models.policy import Policy
from vicur.models.quantised import dequantised, is_quantised


def shard(
    policy: Policy, sharding: Sharding, device: torch.device, *, float32: bool = False, offload: bool = False
) -> None:
    """Shard a policy's weights over all ranks, and move them to the device.

    A float32 model in a single process is only moved: there is nothing to shard or to convert.

    Args:
        policy: the policy; its present dtype becomes the compute dtype.
        sharding: where the shards are.
        device: device of this rank.
        float32: store all weights in float32, not only the trained ones: for a moving average.
        offload: keep the shards, their gradients and the optimizer's states in CPU memory; a unit is copied
            to the device when it runs.
    """
    is_precise = policy.dtype.itemsize >= 4
    if distributed.size() == 1 and is_precise and not offload:
        policy.model.to(device)
        policy.device = device
        return
    settings: dict[str, Any] = {
        "mesh": distributed.mesh(sharding, device.type),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=None if is_precise else policy.dtype,
            reduce_dtype=None if is_precise else torch.float32,
            cast_forward_inputs=False,
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy(),
    }
    policy.device = device
    quantised = _quantised_weights(policy, device)
    for unit in (*units(policy), policy):
        _store_float32(unit, all_weights=float32)
        module: Any = fully_shard(unit, ignored_params=quantised, **settings)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for buffer_owner in policy.modules():
        _move_buffers(buffer_owner, device)
    register_fsdp_forward_method(policy, "decode")
    policy.is_sharded = True
    gather_once(policy)


def gather_once(policy: Policy) -> None:
    """Gather every unit once, one after another: an offloaded model may be too large for the device.

    Gathered weights take over requires_grad when they are made for the first time, which must not happen
    while adapters are switched off.
    """
    module: Any
    for module in (*units(policy), policy):
        module.unshard()
        module.reshard()


def _quantised_weights(policy: Policy, device: torch.device) -> set[nn.Parameter]:
    """Move the 4-bit weights to the device and return them: they are neither sharded nor converted."""
    for module in policy.modules():
        if any(is_quantised(parameter) for parameter in module.parameters(recurse=False)):
            module.to(device)
    return {parameter for parameter in policy.parameters() if is_quantised(parameter)}


def units(policy: Policy) -> Iterator[nn.Module]:
    """The parts of a policy that are gathered one after another; the root has the rest."""
    yield from policy.model.model.language_model.layers
    yield from policy.model.model.visual.blocks


def _store_float32(unit: nn.Module, *, all_weights: bool) -> None:
    for name, parameter in unit.named_parameters():
        if isinstance(parameter, DTensor) or parameter.dtype.itemsize >= 4:
            continue
        if all_weights or parameter.requires_grad or "lora_" in name:
            parameter.data = parameter.data.float()


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.device != device:
            setattr(module, name, buffer.to(device))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks, which must all call this; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weight(tensor: Tensor) -> Tensor:
    """A weight gathered from all ranks, which must all call this; from 4 bits in the compute dtype."""
    return dequantised(tensor) if is_quantised(tensor) else whole(tensor.detach())


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of `whole_weight`, without gathering anything."""
    state: Any = tensor.quant_state if is_quantised(tensor) else tensor  # type: ignore[attr-defined]
    return torch.Size(state.shape)


def whole_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a model, gathered on the CPU of the main rank; the other ranks get none.

    Args:
        model: the model; all ranks must call this.
        dtype: dtype of floating-point weights in the result; 4-bit weights are dequantised.
    """
    weights: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    for name, tensor in stored_tensors(model):
        if id(tensor) in names:  # tied weights are gathered once, and stay tied
            if distributed.is_main():
                weights[name] = weights[names[id(tensor)]]
            continue
        names[id(tensor)] = name
        gathered = whole_weight(tensor)
        if distributed.is_main():
            weights[name] = gathered.to("cpu", dtype if gathered.is_floating_point() else None)
    return weights


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers that a checkpoint holds; tied ones under each of their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    scaled = tuple(f"{name}." for name, tensor in tensors.items() if is_quantised(tensor))
    for name in model.state_dict():
        if not name.startswith(scaled):  # the scales of 4-bit weights
            yield name, tensors[name]
