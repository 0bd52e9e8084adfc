"""QLoRA: the frozen matrices of the language model in 4 bits, by bitsandbytes.

The matrices that get adapters are stored as NF4 with double quantisation, about 4.13 bits per weight, and
dequantised to the compute dtype whenever they are used. Embeddings, head, norms, vision tower and cue
recovery are unchanged. FSDP2 cannot shard the 4-bit weights, so this is for one process.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from vicur import distributed

LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
"""Names of the language model's matrices."""


def check_quantisable() -> None:
    """Make sure that weights can be quantised here.

    Raises:
        ValueError: bitsandbytes is not installed, or there are several processes.
    """
    _bitsandbytes()
    if distributed.size() > 1:
        raise ValueError(
            "student.lora.quantize=nf4 works in one process only, because 4-bit weights cannot be sharded. "
            "Start one process, or set student.lora.quantize=none: the base is then sharded over "
            f"the {distributed.size()} processes."
        )


def quantise(model: Any, device: torch.device) -> None:
    """Replace the language model's matrices by 4-bit ones, one after another.

    Args:
        model: a model in its compute dtype, usually in CPU memory; the 4-bit weights are made on the device.
        device: device that the model will be on.
    """
    library = _bitsandbytes()
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and re.fullmatch(LANGUAGE, name)
    ]
    for name in names:
        linear = model.get_submodule(name)
        with torch.device("meta"):  # its weight is replaced at once
            quantised = library.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype,
                quant_type="nf4",
            )
        quantised.weight = library.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", module=quantised
        )
        quantised.bias = linear.bias
        # Otherwise, on some CPUs, a pass without gradient changes the layout of the weights for good.
        quantised.support_avx512bf16_for_cpu = False
        quantised.train(linear.training)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, quantised.to(device))


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are quantised or could be."""
    return [
        weight
        for name, weight in model.named_parameters()
        if re.fullmatch(rf"{LANGUAGE}(\.base_layer)?\.weight", name)
    ]


def is_quantised(tensor: Tensor) -> bool:
    """Whether a weight is stored in 4 bits."""
    return tensor.dtype == torch.uint8


def dequantised(weight: Any) -> Tensor:
    """A 4-bit weight as a matrix in the compute dtype."""
    return _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)


def statistics_bytes(weight: Any) -> int:
    """Bytes of the scales that belong to a 4-bit weight."""
    state = weight.quant_state
    tensors = (state.absmax, state.code, state.state2.absmax, state.state2.code)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError("student.lora.quantize needs bitsandbytes: pip install 'vicur[qlora]'.") from error
    return bitsandbytes
