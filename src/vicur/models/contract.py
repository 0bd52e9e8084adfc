"""Checks that the installed transformers runs Qwen3-VL in the way that cue recovery relies on.

Cue recovery acts through forward pre-hooks on a model of another library. If that library renames a keyword,
adds DeepStack features elsewhere or calls its layers differently, the hooks would read the wrong states and
results would change silently. So before the first model of a class is built, a tiny one is run and compared
with the same computation written out layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from vicur.compat import TESTED_TRANSFORMERS, cache_argument, cache_of
from vicur.models.recovery import ContinuedPromptError, RecoveryPlan

_PAD, _SINK, _IMAGE, _VIDEO, _START, _END = 0, 1, 20, 21, 22, 23
_PROMPT = [_SINK, 7, _START, _IMAGE, _IMAGE, _IMAGE, _IMAGE, _END, 8]
"""A prompt with an image of 2 x 2 merged tokens; its first token is the sink."""
_SHORTER = [_SINK, _START, _IMAGE, _IMAGE, _IMAGE, _IMAGE, _END]
_TEXT = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_heads": 2,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_checked: set[type] = set()


class ContractError(ValueError):
    """The installed transformers does not run Qwen3-VL in the way that cue recovery relies on.

    Args:
        reason: the difference.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"transformers {version('transformers')} does not run Qwen3-VL as cue recovery requires: "
            f"{reason} Install a tested version, {TESTED_TRANSFORMERS}."
        )


def check_contract(model_class: Any) -> None:
    """Run a tiny model of this class and compare it with the computation that recovery relies on.

    This runs once for each class and takes about half a second. Random states are not changed.

    Args:
        model_class: a student class with a `config_class`.

    Raises:
        ContractError: a keyword, a hook point, the order of DeepStack features or the cache's state differs.
    """
    if model_class in _checked:
        return
    _checked.add(model_class)  # first, because the probe builds a model of this class
    try:
        with _neutral_state():
            model = _tiny_model(model_class)
            _check_cache(model)
            for case in (_padded(), _packed()):
                _check_layers(model, case)
    except ContractError:
        _checked.discard(model_class)
        raise
    except Exception as error:  # after any error, the model must not be trusted
        _checked.discard(model_class)
        raise ContractError(
            f"a forward pass of a tiny model failed with {type(error).__name__} ({error})."
        ) from error


@contextmanager
def _neutral_state() -> Iterator[None]:
    """Run on the CPU, in float32, without gradients, and restore the random state."""
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _tiny_model(model_class: Any) -> Any:
    config_class = model_class.config_class
    text = {**_TEXT, **_EXPERTS} if "moe" in config_class.model_type else _TEXT
    config = config_class(
        text_config=text,
        vision_config=_VISION,
        image_token_id=_IMAGE,
        video_token_id=_VIDEO,
        vision_start_token_id=_START,
        vision_end_token_id=_END,
        recovery_layers=[0, 1, 2],
        attn_implementation="eager",
    )
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.4, generator=generator)
    return model


@dataclass(frozen=True)
class _Case:
    """Inputs of a forward pass, and where each sample's sink and visual tokens are in them."""

    inputs: dict[str, Tensor]
    plan: RecoveryPlan

    @property
    def visual_BL(self) -> Tensor:
        return self.inputs["input_ids"] == _IMAGE


def _media(images: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(16 * images, 24, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * images),
    }


def _case(rows: list[list[int]], sinks: list[tuple[int, int]], images: list[int]) -> _Case:
    """A case with these token sequences, the (row, column) of each sink, and the first column of its
    image."""
    ids = torch.tensor(rows)
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == _IMAGE).int(), **_media(len(images))}
    columns = torch.tensor(images)[:, None] + torch.arange(4)
    sink = torch.tensor(sinks)
    return _Case(inputs, RecoveryPlan(sink[:, 0], sink[:, 1], columns, torch.ones_like(columns).bool()))


def _padded() -> _Case:
    """Two prompts, the shorter one padded on the left: sinks are found by the attention mask."""
    case = _case([_PROMPT, [_PAD, _PAD, *_SHORTER]], [(0, 0), (1, 2)], [3, 4])
    case.inputs["attention_mask"] = (case.inputs["input_ids"] != _PAD).long()
    return case


def _packed() -> _Case:
    """Two prompts in one sequence and no attention mask: sinks are found by the text positions."""
    case = _case([_PROMPT + _SHORTER], [(0, 0), (0, 9)], [3, 11])
    positions = torch.cat([torch.arange(len(_PROMPT)), torch.arange(len(_SHORTER))])
    case.inputs["position_ids"] = positions.expand(4, 1, -1)
    return case


def _check_layers(model: Any, case: _Case) -> None:
    """Check that forward passes without and with recovery equal the layers run one by one."""
    with model.without_recovery():
        plain, calls, features = _observed(model, case)
    if (len(calls), len(features)) != (3, 2):
        raise ContractError(
            "its decoder layers or DeepStack mergers are not called exactly once per forward pass."
        )
    if not _same(plain, _layer_by_layer(model, case, calls, features, with_recovery=False)):
        raise ContractError("DeepStack features are not added after the first decoder layers, in order.")
    recovered, calls, features = _observed(model, case)
    if not _same(recovered, _layer_by_layer(model, case, calls, features, with_recovery=True)):
        raise ContractError(
            "a hook before a decoder layer or the final norm does not see the state after the previous layer "
            "and its DeepStack addition, or the text model does not get visual_pos_masks, attention_mask and "
            "position_ids under these names."
        )


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _observed(model: Any, case: _Case) -> tuple[Tensor, list[_Call], list[Tensor]]:
    """The logits of a forward pass, the arguments of each decoder layer, and the DeepStack features."""
    calls: list[_Call] = []
    features: dict[int, Tensor] = {}

    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, dict(kwargs)))

    def feature(index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        features[index] = output

    layers, mergers = model.model.language_model.layers, model.model.visual.deepstack_merger_list
    handles = [layer.register_forward_pre_hook(call, with_kwargs=True) for layer in layers]
    handles += [merger.register_forward_hook(partial(feature, i)) for i, merger in enumerate(mergers)]
    try:
        logits: Tensor = model(**case.inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, calls, [features[i] for i in sorted(features)]


def _layer_by_layer(
    model: Any, case: _Case, calls: list[_Call], features: list[Tensor], with_recovery: bool
) -> Tensor:
    """Logits of the layers, each followed by its DeepStack features at visual positions and by recovery."""
    text = model.model.language_model
    hidden = calls[0][0][0]
    for i, (layer, (args, kwargs)) in enumerate(zip(text.layers, calls, strict=True)):
        hidden = layer.forward(hidden, *args[1:], **kwargs).clone()  # not __call__, which runs the hooks
        if i < len(features):
            hidden[case.visual_BL] += features[i]
        if with_recovery:
            hidden = model.recovery(i, hidden, case.plan)
    logits: Tensor = model.lm_head(text.norm.forward(hidden))
    return logits


def _check_cache(model: Any) -> None:
    """Check that recovery acts only in the prefill, and that a cache cannot be extended by more prompt."""
    whole = model(**_case([[*_PROMPT, 9]], [(0, 0)], [3]).inputs).logits
    prefill = model(**_case([_PROMPT], [(0, 0)], [3]).inputs, use_cache=True)
    cache = cache_of(prefill)
    if cache is None or int(cache.get_seq_length()) != len(_PROMPT):
        raise ContractError("its output has no key-value cache of the prompt's length.")
    decoded = model(input_ids=torch.tensor([[9]]), **cache_argument(cache), use_cache=True).logits
    if not _same(decoded[:, -1], whole[:, -1]):
        raise ContractError("decoding on top of a cache does not equal one forward pass.")
    try:
        model(input_ids=torch.tensor([[9, 9]]), **cache_argument(cache), use_cache=True)
    except ContinuedPromptError:
        return
    raise ContractError(
        "a chunked prefill is not detected, because the cache is passed under another keyword."
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(second.abs().max())))
