"""The student: Qwen3-VL with cue recovery attached.

Nothing of transformers is replaced or copied. The model is the stock one plus a `CueRecovery`
module, which acts through forward pre-hooks: before layer i + 1, or before the final norm, and so
after layer i and its DeepStack addition.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vicur.models.recovery import CueRecovery, OutputInit, OutputProjection, RecoveryPlan


class ViCuRQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's configuration and where cue recovery acts.

    Attributes:
        recovery_interval: decoder layers i with i % interval == 0 are followed by recovery.
        recovery_output_init: "zero" (a fresh student equals its base) or "normal".
    """

    model_type = "vicur_qwen3_vl"

    recovery_interval: int = 5
    recovery_output_init: OutputInit = "zero"

    @property
    def recovery_layers(self) -> list[int]:
        """Indices of the decoder layers that are followed by recovery."""
        return list(range(0, self.text_config.num_hidden_layers, self.recovery_interval))


class ViCuRQwen3VLForConditionalGeneration(Qwen3VLForConditionalGeneration):
    """Qwen3-VL whose first token gathers visual evidence during prefill (ViCuR section 3.2).

    Loads, saves and generates like any transformers model.
    """

    config: ViCuRQwen3VLConfig  # type: ignore[assignment]
    config_class = ViCuRQwen3VLConfig

    def __init__(self, config: ViCuRQwen3VLConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.recovery = CueRecovery(
            text.hidden_size, text.num_attention_heads, config.recovery_layers, text.rms_norm_eps
        )
        self._plan: RecoveryPlan | None = None
        self._attach()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in any Qwen3-VL, matrices from N(0, 0.02) and norms 1, but W_o zero if so configured.

        Nobody states how the module starts. At zero a fresh student equals its base exactly.
        """
        super()._init_weights(module)
        if isinstance(module, OutputProjection) and self.config.recovery_output_init == "zero":
            nn.init.zeros_(module.weight)

    def _attach(self) -> None:
        text = self.model.language_model
        text.register_forward_pre_hook(self._begin, with_kwargs=True)
        for layer in self.config.recovery_layers:
            last = layer + 1 == len(text.layers)
            after = text.norm if last else text.layers[layer + 1]
            after.register_forward_pre_hook(partial(self._recover, layer))

    def _begin(self, text: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide once, before the layers, whether this is a prefill: later the cache is not empty."""
        cache, embeds = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        visual = kwargs.get("visual_pos_masks")
        if cache is not None and int(cache.get_seq_length()) > 0:
            if visual is not None or embeds.shape[1] > 1:
                raise ValueError(
                    "With cue recovery the whole prompt must be in one prefill: the first token "
                    "gathers from every visual token. Chunked prefill, a reused prefix cache and "
                    "an image in a later turn are not possible; pass the whole conversation."
                )
            self._plan = None
            return
        positions = kwargs.get("position_ids")
        has_text_positions = positions is not None and positions.ndim == 3 and len(positions) == 4
        self._plan = RecoveryPlan.of(
            visual,
            kwargs.get("attention_mask"),
            positions[0] if has_text_positions else None,  # type: ignore[index]
            (embeds.shape[0], embeds.shape[1]),
            embeds.device,
        )

    def _recover(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._plan is None:
            return args
        hidden: Tensor = args[0]
        return (self.recovery(layer, hidden, self._plan), *args[1:])


AutoConfig.register(ViCuRQwen3VLConfig.model_type, ViCuRQwen3VLConfig)
AutoModelForImageTextToText.register(ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration)
