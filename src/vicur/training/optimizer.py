"""AdamW, its learning-rate schedule and one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vicur.models.sharding import whole
from vicur.settings.section import Count, Decay, NonNegative, Positive, Share, section
from vicur.training.eight_bit import EightBitAdamW, moment_bytes

ADAMW = {"float32": torch.optim.AdamW, "8bit": EightBitAdamW}
"""AdamW by the storage of its states."""


@section
class OptimizerConfig:
    """AdamW and its learning rate schedule. The defaults are those of the ViCuR recipes."""

    learning_rate: NonNegative = 1e-6
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, applied to matrices only, not to norms and biases."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or cosine decay to zero."""
    warmup: Share = 0.0
    """Fraction of the updates over which the learning rate rises linearly from zero."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping: maximum global norm of the gradient."""
    prompts_per_micro_batch: Count = 64
    """Number of problems per forward and backward pass, in each process. Smaller values need less memory; the
    result is the same, except for the dropout of adapters."""
    states: Literal["float32", "8bit"] = "float32"
    """Storage of AdamW's two moments: 8 bytes per trained weight in float32, or about 2 in 8 bits, with a
    scale per block of up to 256 weights. 8bit needs torchao and changes the result slightly."""


class Optimizer:
    """AdamW for the student, with a separate learning rate for cue recovery.

    Args:
        model: the student.
        config: settings of the optimizer.
        total_steps: number of optimizer steps in the run, for the schedule.
        recovery_learning_rate: learning rate of the parameters under `recovery.`; None for that of `config`.

    Attributes:
        named: the trained parameters by name.
        parameters: the trained parameters.
        torch: AdamW, of torch or with 8-bit states.

    Raises:
        ValueError: a trained parameter is in half precision, where a step of 1e-6 would change nothing; or
            8-bit states are wanted and torchao is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        total_steps: int,
        recovery_learning_rate: float | None = None,
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        halved = next((name for name, p in self.named.items() if p.dtype.itemsize < 4), None)
        if halved is not None:
            raise ValueError(
                f"The trained weight {halved} is in {self.named[halved].dtype}; it must be in float32. "
                "vicur.models.sharding.shard stores trained weights in float32."
            )
        recovery_rate = config.learning_rate if recovery_learning_rate is None else recovery_learning_rate
        groups: list[dict[str, Any]] = []
        for recovery in (False, True):
            for decays in (True, False):
                parameters = [
                    p
                    for name, p in self.named.items()
                    if name.startswith("recovery.") == recovery and (p.ndim > 1) == decays
                ]
                if parameters:
                    groups.append(
                        {
                            "params": parameters,
                            "weight_decay": config.weight_decay if decays else 0.0,
                            "peak": recovery_rate if recovery else config.learning_rate,
                            "recovery": recovery,
                        }
                    )
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        make: Any = ADAMW[config.states]
        self.torch = make(groups, lr=config.learning_rate, betas=config.betas)

    @property
    def state_bytes(self) -> float:
        """Bytes of the two moments per trained weight."""
        if self.config.states == "float32":
            return 8.0
        count = sum(p.numel() for p in self.parameters)
        return sum(2 * moment_bytes(p) * p.numel() for p in self.parameters) / max(1, count)

    def scale(self, step: int) -> float:
        """The schedule's factor at a step, counted from 0."""
        warmup = self.config.warmup * self.total_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.config.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1.0, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the last update, by metric name."""
        names = {False: "learning_rate", True: "recovery_learning_rate"}
        return {names[group["recovery"]]: float(group["lr"]) for group in self.torch.param_groups}

    def tensors(self) -> dict[str, Tensor]:
        """The trained parameters and the optimizer's state of each, by name, for checkpoints.

        Before the first update the states are made, as zeros, so that a checkpoint can be loaded into them.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            state = self.torch.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors[f"student.{name}"] = parameter.detach()
            tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        return tensors

    def grad_norm(self) -> Tensor:
        """The norm of the current gradient, over all ranks."""
        return whole(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def take_gradient(self) -> list[Tensor | None]:
        """Remove the present gradient and return it, one tensor for each of `parameters`."""
        gradient = [p.grad for p in self.parameters]
        self.clear()
        return gradient

    def add_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Add what `take_gradient` returned to the present gradient."""
        for parameter, part in zip(self.parameters, gradient, strict=True):
            if parameter.grad is None:
                parameter.grad = part
            elif part is not None:
                parameter.grad.add_(part)

    def scale_gradient(self, factor: float) -> None:
        """Multiply the gradient by a factor."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def clear(self) -> None:
        """Drop the gradient."""
        self.torch.zero_grad()

    def step(self, step: int, norm: Tensor) -> None:
        """Clip the gradient, update, and clear it.

        Args:
            step: optimizer step, counted from 0, for the schedule.
            norm: norm of the gradient; it must be finite.
        """
        assert torch.isfinite(norm), "a gradient that is not finite must not reach the weights"
        # As torch's clip_grad_norm_ does it, which would compute the norm once more.
        self.scale_gradient(float((self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)))
        for group in self.torch.param_groups:
            _set_rate(group, group["peak"] * self.scale(step))
        self.torch.step()
        self.clear()


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, which torchao keeps in a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
