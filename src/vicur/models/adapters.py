"""LoRA: low-rank adapters in the language model, with a frozen base.

The adapters are peft's. They are added in place, so the model keeps its class: hooks, `lm_head` and
`generate` work as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from vicur.compat import peft_warnings_ignored
from vicur.models.quantised import LANGUAGE
from vicur.settings.section import Decay, Positive, section

TRAINED = "default"
"""Name of the adapter that is trained."""
_VISION = r"model\.visual\.blocks\.\d+\.(attn|mlp)\.(qkv|proj|linear_fc\d)"


@section
class LoRAConfig:
    """Low-rank adapters (LoRA). The base's weights stay frozen, so a self-teacher needs no second copy of
    them."""

    rank: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Rank of the adapters."""
    alpha: Positive = 32.0
    """Scaling: the adapters' output is multiplied by alpha / rank."""
    dropout: Decay = 0.0
    """Dropout probability on the adapters' inputs during training."""
    vision: bool = False
    """Whether to add adapters to the vision tower too, not only to the language model."""
    quantize: Literal["none", "nf4"] = "none"
    """Quantisation of the base (QLoRA). "nf4": the language model's matrices are stored in 4 bits and used in
    student.dtype; needs bitsandbytes and a single process. Of a mixture of experts only the attention
    matrices are quantised."""


def add_adapter(model: Any, config: LoRAConfig, name: str = TRAINED, *, trained: bool = True) -> None:
    """Add an adapter to the model; a new one does not change the output.

    Of the parameters that existed before, only those of cue recovery and of other adapters stay trainable.

    Raises:
        ValueError: peft is not installed.
    """
    peft = _peft()
    was_trained = {key: p.requires_grad for key, p in model.named_parameters()}
    targets = f"({LANGUAGE})|({_VISION})" if config.vision else LANGUAGE
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    with peft_warnings_ignored():
        peft.inject_adapter_in_model(settings, model, adapter_name=name)
    for layer in _layers(model):
        layer.set_adapter(TRAINED)  # otherwise the newest would be active
    for key, parameter in model.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.requires_grad_(trained)
        elif "lora_" in key or key.startswith("recovery."):
            parameter.requires_grad_(was_trained[key])
        else:
            parameter.requires_grad_(False)


def has_adapters(model: Any) -> bool:
    """Whether the model has an adapter."""
    return any("lora_" in name for name, _ in model.named_parameters())


def adapter_parameters(model: Any, name: str = TRAINED) -> dict[str, Tensor]:
    """The weights of one adapter, by names without the adapter's own."""
    return {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in model.named_parameters()
        if "lora_" in key and f".{name}." in key
    }


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """A context in which the model uses only the weights of its base, for passes without gradients."""
    layers = _layers(model)
    with _keep_requires_grad(model):
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


@contextmanager
def adapter_active(model: Any, name: str) -> Iterator[None]:
    """A context in which another adapter replaces the trained one, for passes without gradients."""
    layers = _layers(model)
    with _keep_requires_grad(model):
        for layer in layers:
            layer.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            for layer in layers:
                layer.set_adapter(TRAINED)


def merged_weights(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the trained adapter merged in, under the base's names. The model is not changed.

    (Merging in place and undoing it would not restore half-precision weights exactly.)

    Args:
        model: the model with its adapters.
        weights: all its weights, as `vicur.models.sharding.whole_weights` returns them.
    """
    merged = merging(model, weights)
    return {
        name.replace(".base_layer", ""): merged(name, tensor)
        for name, tensor in weights.items()
        if "lora_" not in name
    }


def merging(model: Any, weights: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """A function that adds the trained adapter to one weight, given its name.

    Args:
        model: the model, with or without adapters.
        weights: the adapter's weights, whole, among others.
    """
    layers = _named_layers(model) if has_adapters(model) else []
    scales = {f"{name}.base_layer.weight": layer.scaling[TRAINED] for name, layer in layers}

    def merged(name: str, tensor: Tensor) -> Tensor:
        if name not in scales:
            return tensor
        layer = name.removesuffix(".base_layer.weight")
        down, up = (weights[f"{layer}.lora_{side}.{TRAINED}.weight"].float() for side in "AB")
        return (tensor.float() + scales[name] * (up @ down)).to(tensor.dtype)

    return merged


def save_adapter(model: Any, weights: Mapping[str, Tensor], folder: Path, base: str) -> None:
    """Write the trained adapter in peft's layout: `PeftModel.from_pretrained(base, folder)` reads it.

    Args:
        model: the model with its adapters.
        weights: all its weights, as `vicur.models.sharding.whole_weights` returns them.
        folder: folder to write.
        base: the base's checkpoint, for peft's configuration.
    """
    peft = _peft()
    settings = model.peft_config[TRAINED]
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    folder.mkdir(parents=True)
    settings.save_pretrained(str(folder))
    from safetensors.torch import save_file

    trained = peft.get_peft_model_state_dict(model, state_dict=dict(weights), adapter_name=TRAINED)
    prefixed = {f"base_model.model.{key}": value.contiguous() for key, value in trained.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@contextmanager
def _keep_requires_grad(model: Any) -> Iterator[None]:
    """Restore `requires_grad` of all parameters, which peft changes when it switches adapters."""
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
