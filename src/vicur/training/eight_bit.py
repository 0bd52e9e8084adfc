"""AdamW with its moments in 8 bits, by torchao.

A moment is stored as codes, one byte per weight, and a float32 scale per block of up to 256 weights. Blocks
do not cross rows, whatever the shape, so a row's codes and scales do not depend on the number of ranks, and
checkpoints can be resumed with another number. Vectors and small matrices keep float32 moments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vicur.models.sharding import local

BLOCK = 256
"""Largest number of weights that share a scale."""
SMALLEST_BLOCK = 16
"""With smaller blocks the scales would need as much memory as they save."""
SMALLEST = 4096
"""Smaller parameters keep float32 moments, as in bitsandbytes."""
SIGNED = {"exp_avg": True, "exp_avg_sq": False}
"""The moments, and whether they have a sign."""


def block_size(parameter: Tensor) -> int | None:
    """Number of weights of a parameter that share a scale; None if its moments stay in float32."""
    if parameter.ndim < 2 or parameter.numel() < SMALLEST:
        return None
    block = math.gcd(BLOCK, math.prod(parameter.shape[1:]))
    return block if block >= SMALLEST_BLOCK else None


def moment_bytes(parameter: Tensor) -> float:
    """Bytes per weight of one moment of a parameter."""
    block = block_size(parameter)
    return 4.0 if block is None else 1.0 + 4.0 / block


class EightBitAdamW:
    """torchao's AdamW on this rank's part of each parameter; as the update is elementwise, that is enough.

    Args:
        groups: parameter groups, as of `torch.optim.AdamW`.
        lr: learning rate.
        betas: decay rates of the moments.

    Attributes:
        state: by parameter, what checkpoints hold: the step, and codes and scale of each moment.

    Raises:
        ValueError: torchao is not installed.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        library = _torchao()
        self._parts = {p: local(p.detach()) for group in groups for p in group["params"]}
        self._torchao = library.AdamW8bit(
            [{**group, "params": [self._parts[p] for p in group["params"]]} for group in groups],
            lr=lr,
            betas=betas,
        )
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        for parameter, part in self._parts.items():
            step = torch.tensor(0.0)
            self.state[parameter] = {"step": step}
            self._torchao.state[part] = {"step": step}
            for name, signed in SIGNED.items():
                saved, used = _zero_moment(parameter, signed)
                self.state[parameter] |= {f"{name}{suffix}": tensor for suffix, tensor in saved.items()}
                self._torchao.state[part][name] = used

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups; their learning rates are tensors."""
        groups: list[dict[str, Any]] = self._torchao.param_groups
        return groups

    def step(self) -> None:
        """Update the parameters from their gradients."""
        for parameter, part in self._parts.items():
            part.grad = None if parameter.grad is None else local(parameter.grad)
        # torchao compiles the step. On a CPU that would take a C++ compiler and a minute, for nothing.
        on_cpu = all(part.device.type == "cpu" for part in self._parts.values())
        with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
            self._torchao.step()
        for part in self._parts.values():
            part.grad = None

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parts:
            parameter.grad = None


def _zero_moment(parameter: nn.Parameter, signed: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A moment of zeros: its tensors for checkpoints, sharded like the parameter, by the suffix of their
    name; and the same memory as torchao's tensor of this rank's part."""
    weight, block = parameter.detach(), block_size(parameter)
    if block is None:
        moment = torch.zeros_like(weight)
        return {"": moment}, local(moment)
    # (rows, blocks of a row): sharded by rows, as the parameter is
    scale = torch.zeros_like(weight.flatten(1)[:, ::block], memory_format=torch.contiguous_format)
    codes = torch.zeros_like(weight, dtype=torch.uint8)
    saved = {"_codes": codes, "_scale": scale}
    if not local(codes).numel():  # more ranks than rows
        return saved, torch.zeros_like(local(weight))
    return saved, _quantised(local(codes), local(scale).view(-1), signed)


def _quantised(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

    values = get_qmap_signed() if signed else get_qmap_unsigned()
    table = torch.tensor(values, dtype=torch.float32, device=codes.device)
    moment: Tensor = OptimState8bit(codes, scale, table, signed, dtype=torch.float32)
    return moment


def _torchao() -> Any:
    try:
        import torchao.optim
    except ImportError as error:
        raise ValueError("optimizer.states=8bit needs torchao: pip install 'vicur[torchao]'.") from error
    return torchao.optim
