"""The student: Qwen3-VL, dense or mixture-of-experts, with cue recovery attached.

Nothing in transformers is replaced or copied. The model is the stock one plus a `CueRecovery`
module, which acts through forward pre-hooks: before layer i + 1 or the final norm, and so
after layer i and its DeepStack addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from vicur.compat import cache_of, load_like
from vicur.models.contract import check_contract
from vicur.models.recovery import (
    ContinuedPromptError,
    CueRecovery,
    OutputInit,
    OutputProjection,
    RecoveryPlan,
    Sink,
    Turns,
)

INTERVAL = 5
"""Interval in ViCuR: recovery acts after decoder layers i with i % 5 == 0."""


class ViCuRQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's configuration plus the settings of cue recovery.

    Attributes:
        recovery_layers: the decoder layers that are followed by recovery; None for every fifth.
        recovery_sink: "first" (the first token gathers) or "question" (the last token of the question).
        recovery_turn_ids: ids of the tokens that begin and end a turn, for the sink "question".
        recovery_output_init: "zero" (a fresh student equals its base) or "normal".
        recovery_is_fresh: whether the checkpoint's module is untrained, as `vicur init` writes it.
    """

    model_type = "vicur_qwen3_vl"

    recovery_layers: list[int] | None = None
    recovery_sink: Sink = "first"
    recovery_turn_ids: list[int] | None = None
    recovery_output_init: OutputInit = "zero"
    recovery_is_fresh: bool = False


class ViCuRQwen3VLMoeConfig(Qwen3VLMoeConfig):
    """The same for the mixture-of-experts models of Qwen3-VL.

    Attributes:
        recovery_layers: the decoder layers that are followed by recovery; None for every fifth.
        recovery_sink: "first" (the first token gathers) or "question" (the last token of the question).
        recovery_turn_ids: ids of the tokens that begin and end a turn, for the sink "question".
        recovery_output_init: "zero" (a fresh student equals its base) or "normal".
        recovery_is_fresh: whether the checkpoint's module is untrained, as `vicur init` writes it.
    """

    model_type = "vicur_qwen3_vl_moe"

    recovery_layers: list[int] | None = None
    recovery_sink: Sink = "first"
    recovery_turn_ids: list[int] | None = None
    recovery_output_init: OutputInit = "zero"
    recovery_is_fresh: bool = False


def layers_with_recovery(config: Any) -> list[int]:
    """Indices of the decoder layers that are followed by recovery, ascending.

    Raises:
        ValueError: the model has no such layer.
    """
    count = config.text_config.num_hidden_layers
    if config.recovery_layers is None:
        return list(range(0, count, INTERVAL))
    layers = sorted(set(config.recovery_layers))
    if not layers or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(
            f"Cue recovery needs decoder layers between 0 and {count - 1}, not {config.recovery_layers}."
        )
    return layers


def turn_ids_of(config: Any) -> tuple[int, int]:
    """Ids of the tokens that begin and end a turn, as a configuration has them for the sink "question".

    Raises:
        ValueError: it has none.
    """
    ids = config.recovery_turn_ids
    if ids is None or len(ids) != 2:
        raise ValueError(
            f"A model with recovery_sink=question needs recovery_turn_ids, the ids of the tokens that begin "
            f"and end a turn, not {ids}."
        )
    return int(ids[0]), int(ids[1])


class _GathersCues:
    """Attaches cue recovery to a Qwen3-VL model: mixed in before the stock class.

    It needs `model.language_model` with `layers` and `norm`, called with `visual_pos_masks`, a key-value
    cache, `attention_mask` and `position_ids`; `vicur.models.contract` checks that before a model is built.
    """

    config: Any
    model: Any

    def __init__(self, config: Any) -> None:
        # First, so that an incompatible transformers is rejected before minutes of loading weights.
        check_contract(type(self))
        super().__init__(config)  # type: ignore[call-arg]
        text = config.text_config
        self.recovery = CueRecovery(
            text.hidden_size, text.num_attention_heads, layers_with_recovery(config), text.rms_norm_eps
        )
        self._plan: RecoveryPlan | None = None
        self._ids: Tensor | None = None
        self._recovery_is_off = False
        self._attach()
        self.post_init()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as in any Qwen3-VL: matrices from N(0, 0.02) and norms 1, but W_o zero if so configured.

        The papers do not state the initialisation. With zero, a fresh student equals its base exactly.
        """
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, OutputProjection) and self.config.recovery_output_init == "zero":
            nn.init.zeros_(module.weight)

    @contextmanager
    def without_recovery(self) -> Iterator[None]:
        """A context in which the model acts as its base: the module is skipped."""
        # Restore the previous value instead of False, so that these contexts can be nested.
        before, self._recovery_is_off = self._recovery_is_off, True
        try:
            yield
        finally:
            self._recovery_is_off = before

    def _attach(self) -> None:
        text = self.model.language_model
        if self.config.recovery_sink == "question":
            self.model.register_forward_pre_hook(self._see_ids, with_kwargs=True)
        text.register_forward_pre_hook(self._begin, with_kwargs=True)
        for layer in layers_with_recovery(self.config):
            last = layer + 1 == len(text.layers)
            # The model adds DeepStack features between layers: a hook after `layer` would run too early;
            # the input of the next layer contains them.
            after = text.norm if last else text.layers[layer + 1]
            after.register_forward_pre_hook(partial(self._recover, layer))

    def _see_ids(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the token ids: the language model is given only their embeddings."""
        self._ids = args[0] if args else kwargs.get("input_ids")

    def _turns(self) -> Turns | None:
        """Where the turns of this pass begin and end; None for sinks at the first token.

        Raises:
            ValueError: the model was called with embeddings instead of token ids.
        """
        if self.config.recovery_sink == "first":
            return None
        if self._ids is None:
            raise ValueError("With student.recovery.sink=question the model must be called with input_ids.")
        return Turns(self._ids, *turn_ids_of(self.config))

    def _begin(self, text: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide whether this is a prefill, before the layers fill the cache."""
        self._plan = None
        if self._recovery_is_off:
            return
        cache, embeds = cache_of(kwargs), kwargs["inputs_embeds"]
        visual = kwargs.get("visual_pos_masks")
        if cache is not None and int(cache.get_seq_length()) > 0:
            if visual is not None or embeds.shape[1] > 1:  # more than the one token of a decoding step
                raise ContinuedPromptError(embeds.shape[1], visual is not None)
            return
        positions = kwargs.get("position_ids")
        # Position ids with four rows have text positions before the three multimodal ones. They restart at 0
        # with each sample packed into a sequence, which separates the samples if there is no mask.
        has_text_positions = positions is not None and positions.ndim == 3 and len(positions) == 4
        self._plan = RecoveryPlan.of(
            visual,
            kwargs.get("attention_mask"),
            positions[0] if has_text_positions else None,  # type: ignore[index]
            (embeds.shape[0], embeds.shape[1]),
            embeds.device,
            None if visual is None else self._turns(),
        )
        self._ids = None

    def _recover(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """With gradient checkpointing, transformers before 5.20 runs this again in the backward pass, with
        the plan of that moment: a model's backward pass must come before its next forward pass."""
        if self._plan is None:
            return args
        hidden: Tensor = args[0]
        return (self.recovery(layer, hidden, self._plan), *args[1:])


class ViCuRQwen3VLForConditionalGeneration(_GathersCues, Qwen3VLForConditionalGeneration):
    """Qwen3-VL, one of whose tokens gathers visual evidence during prefill (ViCuR section 3.2).

    Loads, saves and generates like any transformers model.
    """

    config: ViCuRQwen3VLConfig
    config_class = ViCuRQwen3VLConfig


class ViCuRQwen3VLMoeForConditionalGeneration(_GathersCues, Qwen3VLMoeForConditionalGeneration):
    """The same for the mixture-of-experts models of Qwen3-VL."""

    config: ViCuRQwen3VLMoeConfig
    config_class = ViCuRQwen3VLMoeConfig


AutoConfig.register(ViCuRQwen3VLConfig.model_type, ViCuRQwen3VLConfig)
AutoModelForImageTextToText.register(ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration)
AutoConfig.register(ViCuRQwen3VLMoeConfig.model_type, ViCuRQwen3VLMoeConfig)
AutoModelForImageTextToText.register(ViCuRQwen3VLMoeConfig, ViCuRQwen3VLMoeForConditionalGeneration)
load_like(ViCuRQwen3VLMoeConfig.model_type, Qwen3VLMoeConfig.model_type)
