"""`Policy`: a model's backbone and head in one module, the unit that is run and sharded.

Everything that runs a model runs it through its policy: scoring and updates through `forward`, decoding
through `decode`. A sharded weight exists as a whole only inside these two methods, so the head and its
gradient are used nowhere else.

Shape suffixes: B sequences, L sequence length, D hidden size, W rows of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vicur import distributed
from vicur.compat import abandon_iteration
from vicur.models.out_of_memory import OutOfMemory
from vicur.models.recovery import CueRecovery

Result = TypeVar("Result")


class Policy(nn.Module):
    """Backbone and head of a model.

    Args:
        model: a Qwen3-VL model, with or without cue recovery.

    Attributes:
        dtype: compute dtype. Sharded weights are stored in float32 if they are trained.
        device: device that the model computes on.
        is_sharded: whether FSDP2 manages the weights (`vicur.models.sharding`).

    Raises:
        ValueError: the head is not a plain matrix, so its weight alone does not define it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.is_sharded = False
        self._is_gathered = False
        head = model.lm_head
        if type(head) is not nn.Linear or head.bias is not None:
            raise ValueError(
                f"The LM head is of type {type(head).__name__}; only a plain matrix can be scored chunk by "
                "chunk. Leave lm_head out of the adapted modules."
            )

    def forward(self, inputs: Mapping[str, Any], read: Callable[[Tensor, Tensor], Result]) -> Result:
        """Run the backbone, and apply a function to its last hidden states and the head.

        Full logits never leave the module, so the head can be sharded with the rest and gathered only here.

        Args:
            inputs: keyword arguments of the backbone.
            read: called with the last hidden states (B, L, D) and the LM head's weight (W, D).
        """
        zero = self._unused_vision(inputs)
        hidden_BLD = self.model.model(**inputs, use_cache=False).last_hidden_state
        return read(hidden_BLD if zero is None else hidden_BLD + zero, self.model.lm_head.weight)

    def decode(self, **inputs: Any) -> Any:
        """Run the whole model as transformers does, with a key-value cache. Needs `unsharded`."""
        return self.model(**inputs, use_cache=True)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """A context in which every rank holds all weights, in the compute dtype.

        Ranks then run the model without waiting for each other, as decoding needs: their responses have
        different lengths. The context may be nested.
        """
        units = [] if self._is_gathered else self._sharded_modules()
        before = self._is_gathered
        try:
            for unit in units:
                unit.set_reshard_after_forward(False)
                unit.unshard()
            self._is_gathered = True
            yield
        finally:
            self._is_gathered = before
            for unit in units:
                unit.set_reshard_after_forward(unit is not self)
                unit.reshard()

    def reshard(self) -> None:
        """Free the gathered weights that a forward pass without a backward pass leaves behind.

        The root stays gathered after a forward pass, for the backward pass. If none follows, the next pass
        would use weights from before an update.
        """
        if not self._is_gathered:
            for unit in self._sharded_modules():
                unit.reshard()

    def abandon_pass(self) -> None:
        """Make the model usable after an error in the middle of a forward or backward pass.

        Raises:
            OutOfMemory: this version of torch cannot do that for sharded weights.
        """
        if self.is_sharded:
            try:
                abandon_iteration(self)
            except RuntimeError as error:
                raise OutOfMemory(
                    f"Out of memory. {error} Set smaller batches and resume the run."
                ) from error
        for parameter in self.parameters():
            parameter.grad = None

    @property
    def recovery(self) -> CueRecovery | None:
        """The cue recovery module, if the model has one."""
        recovery: CueRecovery | None = getattr(self.model, "recovery", None)
        return recovery

    def _sharded_modules(self) -> list[Any]:
        from torch.distributed.fsdp import FSDPModule

        return [module for module in self.modules() if isinstance(module, FSDPModule)]

    def _unused_vision(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Zero, computed by the vision tower from blank images; None if it is not sharded.

        Ranks gather a sharded layer together, so all must run the vision tower equally often: once for
        images and once for videos, if any rank has them. A rank without them runs it on a blank image.
        """
        if not self.is_sharded:
            return None
        kinds = ("pixel_values", "pixel_values_videos")
        present = {kind for kind in kinds if inputs.get(kind) is not None}
        missing = len(set.union(*distributed.gather(present)) - present)
        zero: Tensor | None = None
        for _ in range(missing):
            zero = self._blank_image() if zero is None else zero + self._blank_image()
        return zero

    def _blank_image(self) -> Tensor:
        """Zero times the features of a blank image of one merged token."""
        vision = self.model.config.vision_config
        merge, channels = vision.spatial_merge_size, vision.in_channels
        pixels = channels * vision.temporal_patch_size * vision.patch_size**2
        patches = torch.zeros(merge**2, pixels, device=self.device, dtype=self.dtype)
        grid = torch.tensor([[1, merge, merge]], device=self.device)
        features = self.model.model.visual(patches, grid_thw=grid)
        outputs = features if isinstance(features, tuple) else tuple(features.values())
        return 0.0 * torch.stack([tensor.sum() for tensor in _tensors(outputs)]).sum()


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
