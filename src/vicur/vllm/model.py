"""Qwen3-VL with cue recovery for vLLM, from vLLM's own model and this package's recovery module.

vLLM lays the tokens of all requests of a step end to end and carries the residual stream in two parts. As in
`models.student`, recovery acts through forward pre-hooks: before layer i + 1 or the final norm, and so after
layer i and its DeepStack addition.

Shape suffixes: T tokens of a step, B requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from vicur.models.recovery import CueRecovery, RecoveryPlan, Turns
from vicur.models.student import layers_with_recovery, turn_ids_of
from vicur.vllm.salts import Medium, prompt_digest
from vicur.vllm.words import excluded_ids


class SaltingProcessor(Qwen3VLMultiModalProcessor):
    """vLLM's processor of prompts; its outputs are salted, for clients that know nothing of recovery."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a prompt and its media."""
        processed = super().apply(inputs, timing_ctx)
        media = [
            Medium(place.offset, place.length, digest)
            for modality, places in processed["mm_placeholders"].items()
            for place, digest in zip(places, processed["mm_hashes"][modality], strict=True)
        ]
        if media:
            processed["cache_salt"] = prompt_digest(processed["prompt_token_ids"], media)
        return processed


class _SamplesWords:
    """Leaves only words in the logits: tokens that cannot be scored are never sampled. Mixed in first."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._excluded = excluded_ids(vllm_config)

    def compute_logits(self, hidden_TD: Tensor) -> Tensor | None:
        """The logits of the next token, minus infinity for tokens that a response cannot contain."""
        logits: Tensor | None = super().compute_logits(hidden_TD)  # type: ignore[misc]
        if logits is None:  # a rank that does not sample
            return None
        self._excluded = self._excluded.to(logits.device)
        return logits.index_fill(-1, self._excluded, -torch.inf)


class _TurnsExperts:
    """Reads the experts' matrices in either layout: as published, or as transformers keeps and saves them.

    vLLM reads only the published one, which is transposed. Square matrices are taken for transformers', as
    transformers does.
    """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Load the weights of a checkpoint."""
        text = self.config.text_config  # type: ignore[attr-defined]
        kept = {
            ".mlp.experts.gate_up_proj": (2 * text.moe_intermediate_size, text.hidden_size),
            ".mlp.experts.down_proj": (text.hidden_size, text.moe_intermediate_size),
        }

        def published(name: str, tensor: Tensor) -> Tensor:
            is_turned = any(name.endswith(key) and tensor.shape[1:] == kept[key] for key in kept)
            return tensor.transpose(1, 2) if is_turned else tensor

        if current_platform.is_cpu():
            # On CPUs vLLM packs these matrices when it makes a kernel, and makes none for new weights.
            for module in self.modules():  # type: ignore[attr-defined]
                if getattr(getattr(module, "quant_method", None), "moe_kernel", None) is not None:
                    module.quant_method.moe_kernel = None
        return super().load_weights((name, published(name, x)) for name, x in weights)  # type: ignore[misc]


class _GathersCues(_SamplesWords):
    """Attaches cue recovery to a Qwen3-VL model of vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model: Any = self
        text = model.config.text_config
        layers = layers_with_recovery(model.config)
        self.recovery = CueRecovery(text.hidden_size, text.num_attention_heads, layers, text.rms_norm_eps)
        self._visual_T: Tensor | None = None
        self._ids_T: Tensor | None = None
        self._plan: RecoveryPlan | None = None
        decoder = model.language_model.model
        for layer in layers:
            is_last = layer + 1 == len(decoder.layers)
            after = decoder.norm if is_last else decoder.layers[layer + 1]
            # A layer is called with (positions, hidden, residual), the norm with (hidden, residual).
            after.register_forward_pre_hook(partial(self._recover, layer, 0 if is_last else 1))

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Embed a step's tokens, and remember which of them are visual."""
        has_media = multimodal_embeddings is not None and len(multimodal_embeddings) > 0
        self._visual_T = is_multimodal if has_media else None
        self._ids_T = input_ids if has_media else None
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the model over a step's tokens."""
        visual_T, self._visual_T = self._visual_T, None
        if visual_T is None:
            self._plan = None
        else:
            self._plan = plan_of_step(visual_T, positions.device, self._turns(positions.device))
        try:
            return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._plan = None

    def _turns(self, device: torch.device) -> Turns | None:
        """Where the turns of a step's prompts begin and end; None for sinks at the first token."""
        config: Any = self.config  # type: ignore[attr-defined]
        if config.recovery_sink == "first":
            return None
        assert self._ids_T is not None
        return Turns(self._ids_T.to(device)[None], *turn_ids_of(config))

    def _recover(self, layer: int, place: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._plan is None:
            return args
        hidden_TD, residual_TD = args[place], args[place + 1]
        stream_TD = residual_stream(hidden_TD, residual_TD)
        recovered_TD = self.recovery(layer, stream_TD[None], self._plan)[0]
        # The next norm adds the two parts of the stream.
        return (*args[:place], torch.zeros_like(hidden_TD), recovered_TD, *args[place + 2 :])


def residual_stream(hidden_TD: Tensor, residual_TD: Tensor) -> Tensor:
    """The states that recovery reads and writes: a layer returns its last addition apart from the rest."""
    return hidden_TD + residual_TD


def plan_of_step(visual_T: Tensor, device: torch.device, turns: Turns | None = None) -> RecoveryPlan | None:
    """The sinks of a step and what they gather from; None in vLLM's trial runs.

    Args:
        visual_T: true at visual tokens.
        device: device of the hidden states.
        turns: where turns begin and end, for sinks at the end of the question.
    """
    metadata = get_forward_context().attn_metadata
    if metadata is None:
        return None
    first = next(iter((metadata[0] if isinstance(metadata, list) else metadata).values()))
    starts_B, lengths_B = first.query_start_loc.to(device).long(), first.seq_lens.to(device).long()
    return plan_of_batch(visual_T.to(device), starts_B, lengths_B, turns)


def plan_of_batch(
    visual_T: Tensor, starts_B: Tensor, lengths_B: Tensor, turns: Turns | None = None
) -> RecoveryPlan:
    """The sinks of a batch, and what they gather from.

    A sink gathers in the step that computes it. Where a request continues, on what an earlier step or another
    response to the prompt has computed, its sink has gathered already.

    Args:
        visual_T: true at visual tokens.
        starts_B: where each request begins, and the end: one more than there are requests.
        lengths_B: length of each request with what was computed before.
        turns: where turns begin and end, for sinks at the end of the question.
    """
    device = visual_T.device
    queries_B = starts_B.diff()
    is_new_B = lengths_B[: len(queries_B)] == queries_B
    used = int(starts_B[-1])
    request_T = torch.repeat_interleave(torch.arange(len(queries_B), device=device), queries_B)
    gathered_T = torch.zeros_like(visual_T)
    gathered_T[:used] = visual_T[:used] & is_new_B[request_T]
    position_T = torch.ones(len(visual_T), dtype=torch.long, device=device)
    position_T[starts_B[:-1][queries_B > 0]] = 0
    shape = (1, len(visual_T))
    return RecoveryPlan.of(gathered_T[None], None, position_T[None], shape, device, turns)


@MULTIMODAL_REGISTRY.register_processor(
    SaltingProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ViCuRQwen3VLForConditionalGeneration(_GathersCues, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with cue recovery."""


@MULTIMODAL_REGISTRY.register_processor(
    SaltingProcessor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ViCuRQwen3VLMoeForConditionalGeneration(
    _TurnsExperts, _GathersCues, Qwen3VLMoeForConditionalGeneration
):
    """The mixture of experts with cue recovery."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ViCuRPlainQwen3VLForConditionalGeneration(_SamplesWords, Qwen3VLForConditionalGeneration):
    """Qwen3-VL without recovery, limited to words."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class ViCuRPlainQwen3VLMoeForConditionalGeneration(
    _TurnsExperts, _SamplesWords, Qwen3VLMoeForConditionalGeneration
):
    """The mixture of experts without recovery, limited to words."""
