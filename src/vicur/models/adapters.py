"""LoRA: low-rank adapters in the language model, beside a frozen base.

The adapters are peft's, put into the model in place, so that it keeps its class: hooks, `lm_head` and
`generate` work as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vicur.compat import peft_warnings_ignored
from vicur.settings.section import Count, Decay, section

OWN = "default"
"""The adapter that is trained."""
_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
_VISION = r"model\.visual\.blocks\.\d+\.(attn|mlp)\.(qkv|proj|linear_fc\d)"


@section
class LoRAConfig:
    """Low-rank adapters (LoRA). The base's weights stay frozen, so a self-teacher needs no second copy of
    them."""

    rank: Count = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """Scaling: the adapters' output is multiplied by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout probability on the adapters' inputs during training."""
    vision: bool = False
    """Whether to add adapters to the vision tower too, not only to the language model."""


def add_adapter(model: Any, config: LoRAConfig, name: str = OWN, *, trained: bool = True) -> None:
    """Put an adapter into the model; a fresh one changes nothing.

    Of the parameters that existed before, only those of cue recovery stay trainable.

    Raises:
        ValueError: peft is not installed.
    """
    peft = _peft()
    was_trained = {key: p.requires_grad for key, p in model.named_parameters()}
    targets = f"({_LANGUAGE})|({_VISION})" if config.vision else _LANGUAGE
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    with peft_warnings_ignored():
        peft.inject_adapter_in_model(settings, model, adapter_name=name)
    for layer in _layers(model):
        layer.set_adapter(OWN)  # the newest would be active
    for key, parameter in model.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.requires_grad_(trained)
        elif "lora_" in key or key.startswith("recovery."):
            parameter.requires_grad_(was_trained[key])
        else:
            parameter.requires_grad_(False)


def has_adapters(model: Any) -> bool:
    """Whether there is an adapter in the model."""
    return any("lora_" in name for name, _ in model.named_parameters())


def adapter_parameters(model: Any, name: str = OWN) -> dict[str, Tensor]:
    """The weights of one adapter, by names that do not hold the adapter's."""
    return {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in model.named_parameters()
        if "lora_" in key and f".{name}." in key
    }


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Within it the model computes with the base's weights alone. For passes without gradient."""
    layers = _layers(model)
    with _same_training(model):
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


@contextmanager
def adapter_active(model: Any, name: str) -> Iterator[None]:
    """Within it another adapter takes the place of the trained one. For passes without gradient."""
    layers = _layers(model)
    with _same_training(model):
        for layer in layers:
            layer.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            for layer in layers:
                layer.set_adapter(OWN)


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The weights with the trained adapter added in, under the base's own names. The model stays as it is.

    (Merged in place and taken out again, half-precision weights would not be what they were.)
    """
    products = {f"{name}.base_layer.weight": layer for name, layer in _named_layers(model)}
    weights = {}
    for name, tensor in model.state_dict().items():
        if "lora_" in name:
            continue
        if name in products:
            tensor = (tensor.float() + products[name].get_delta_weight(OWN).float()).to(tensor.dtype)
        weights[name.replace(".base_layer", "")] = tensor
    return weights


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the trained adapter in peft's layout: `PeftModel.from_pretrained(base, folder)` reads it."""
    peft = _peft()
    settings = model.peft_config[OWN]
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    folder.mkdir(parents=True)
    settings.save_pretrained(str(folder))
    from safetensors.torch import save_file

    weights = peft.get_peft_model_state_dict(model, adapter_name=OWN)
    prefixed = {f"base_model.model.{key}": value.contiguous() for key, value in weights.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@contextmanager
def _same_training(model: Any) -> Iterator[None]:
    """peft changes which parameters are trained when it switches adapters; that is undone here."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def _named_layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _layers(model: Any) -> list[Any]:
    return [module for _, module in _named_layers(model)]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("student.lora needs peft: pip install 'vicur[lora]'.") from error
    return peft
