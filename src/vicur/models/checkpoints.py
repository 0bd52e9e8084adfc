"""Identifies checkpoints on disk or on the hub, and reads them completely or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from vicur.models.student import (
    ViCuRQwen3VLConfig,
    ViCuRQwen3VLForConditionalGeneration,
    ViCuRQwen3VLMoeConfig,
    ViCuRQwen3VLMoeForConditionalGeneration,
)
from vicur.packaged import resolve_packaged

Dtype = Literal["float32", "bfloat16"]
"""Supported compute dtypes."""
PACKAGED = "vicur:"
"""Prefix of checkpoints that ship inside the package, e.g. "vicur:tiny-student"."""

STOCK: dict[str, tuple[type, type]] = {
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen3_vl_moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}
"""Configuration and model class of each kind of base model."""
AUGMENTED: dict[str, tuple[type, type]] = {
    "qwen3_vl": (ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration),
    "qwen3_vl_moe": (ViCuRQwen3VLMoeConfig, ViCuRQwen3VLMoeForConditionalGeneration),
}
"""The same with cue recovery."""
_UNSUPPORTED = {
    "qwen2_5_vl": (
        "Qwen2.5-VL passes no mask of the visual tokens to its language model, has no DeepStack features and "
        "counts rotary positions differently, so cue recovery and the prompts here do not work with it"
    ),
    "qwen2_vl": "Qwen2-VL differs from Qwen3-VL in the same ways as Qwen2.5-VL: see docs/checkpoints.md",
}


def resolve_checkpoint(name: str) -> str:
    """The folder of a packaged checkpoint; any other name is returned unchanged.

    Raises:
        ValueError: there is no packaged checkpoint of that name, or no such folder.
    """
    if name.startswith(PACKAGED):
        root = resolve_packaged("checkpoints")
        folder = root / name.removeprefix(PACKAGED)
        if not folder.is_dir():
            known = ", ".join(sorted(f"{PACKAGED}{p.name}" for p in root.iterdir() if p.is_dir()))
            raise ValueError(f"No checkpoint {name!r} ships with vicur; available are: {known}.")
        return str(folder)
    path = Path(name).expanduser()
    # A hub id is "owner/name"; a name that starts with an existing folder is a path.
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local and (path / "checkpoints" / "final" / "config.json").is_file():
        raise ValueError(f"{name} is the folder of a run; its model is in {path / 'checkpoints' / 'final'}.")
    if looks_local and not (path / "config.json").is_file():
        raise ValueError(f"Model folder {name} does not exist or has no config.json.")
    return str(path) if looks_local else name


def kind_of(config: Any) -> str:
    """The kind of base model that a configuration describes, with or without recovery: a key of `STOCK`."""
    return str(config.model_type).removeprefix("vicur_")


def has_recovery(config: Any) -> bool:
    """Whether a configuration describes a model with cue recovery."""
    return isinstance(config, (ViCuRQwen3VLConfig, ViCuRQwen3VLMoeConfig))


def read_config(name: str) -> Any:
    """The configuration of a checkpoint.

    Args:
        name: folder, hub id, "vicur:NAME", or the path of a config.json.

    Raises:
        ValueError: there is no configuration, or its model is not supported.
    """
    is_alone = Path(name).name == "config.json" and Path(name).is_file()
    path = str(Path(name).parent) if is_alone else resolve_checkpoint(name)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"The configuration of {name} cannot be read: {_first_line(error)}") from error
    if kind_of(config) in STOCK:
        return config
    if kind_of(config) in _UNSUPPORTED:
        why = _UNSUPPORTED[kind_of(config)]
    elif not hasattr(config, "vision_config"):
        why = "it reads only text and cannot see images"
    else:
        why = "only Qwen3-VL models are supported, dense or mixture-of-experts"
    raise ValueError(f"{name} is a {config.model_type} model: {why}.")


def saved_dtype(config: Any) -> Dtype:
    """The dtype that a checkpoint was saved in; "float32" for any dtype other than bfloat16."""
    dtype = config.dtype or config.text_config.dtype  # some state it for the language model only
    return "bfloat16" if dtype in (torch.bfloat16, "bfloat16") else "float32"


def stock_settings(config: Any) -> dict[str, Any]:
    """A configuration's settings, without its class names and the settings of recovery."""
    excluded = {"model_type", "architectures", "recovery_layers", "recovery_output_init"}
    return {key: value for key, value in config.to_dict().items() if key not in excluded}


def read_model(name: str, config: Any | None = None, dtype: Dtype | None = "float32") -> Any:
    """Load a model whose checkpoint has exactly the weights that its configuration requires.

    Args:
        name: folder, hub id or "vicur:NAME".
        config: a configuration with cue recovery, instead of the checkpoint's own; the weights of the module
            may then be missing, and are initialised as the configuration says.
        dtype: compute dtype; None for the one it was saved in.

    Raises:
        ValueError: a file is missing or broken, or the checkpoint lacks weights or has unexpected ones; the
            message says which.
    """
    path = resolve_checkpoint(name)
    silence_loading_report()
    stored_config = read_config(name)
    loader: Any = AutoModelForImageTextToText if config is None else AUGMENTED[kind_of(stored_config)][1]
    options = {} if config is None else {"config": config}
    try:
        model, info = loader.from_pretrained(
            path,
            dtype="auto" if dtype is None else getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"Checkpoint {name} cannot be loaded: {_broken_part(path, error)}") from error
    fresh = "recovery." if config is not None and not has_recovery(stored_config) else None
    missing = [key for key in info["missing_keys"] if fresh is None or not key.startswith(fresh)]
    _check_keys(name, missing=missing, unexpected=info["unexpected_keys"])
    return model


def read_processor(name: str) -> Any:
    """Load the processor of a checkpoint: chat template, tokenizer, image and video processor.

    Raises:
        ValueError: it is missing or broken, or has no chat template.
    """
    path = resolve_checkpoint(name)
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The processor of {name} cannot be loaded: {_first_line(error)}") from error
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{name} has a tokenizer but no image processor (preprocessor_config.json).")
    if not processor.chat_template:
        raise ValueError(f"The processor of {name} has no chat template (chat_template.jinja).")
    return processor


def silence_loading_report() -> None:
    """Silence transformers in this process: on every load it shows a bar and a table of missing keys; here
    the keys are checked instead, and named in an error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _check_keys(name: str, *, missing: Any, unexpected: Any) -> None:
    for what, keys in (("lacks", sorted(missing)), ("has unexpected", sorted(unexpected))):
        if keys:
            listed = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise ValueError(f"Checkpoint {name} {what} weights: {listed}.")


def _broken_part(path: str, error: Exception) -> str:
    """A sentence on the broken file of a local checkpoint, otherwise the first line of the error."""
    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed_files = set(json.loads(index.read_text())["weight_map"].values())
        except (json.JSONDecodeError, KeyError, TypeError):
            return f"{index.name} is not a valid index of weights."
        absent = sorted(file for file in listed_files if not (folder / file).is_file())
        if absent:
            return f"its file {absent[0]} is missing."
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as broken:
            return f"its file {file.name} is damaged ({_first_line(broken)})."
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
