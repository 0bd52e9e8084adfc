"""Identifies checkpoints on disk or on the hub, and reads them completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from vicur.models.processor import check_processor, check_template
from vicur.models.stored import (
    CONFIG,
    check_processor_files,
    check_sizes,
    folder_of,
    refused,
    stored_config,
    stored_weights,
)
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
_OURS = "vicur_"
"""Prefix of the model types with cue recovery."""
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
    return str(config.model_type).removeprefix(_OURS)


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
    is_alone = Path(name).name == CONFIG and Path(name).is_file()
    path = str(Path(name).parent) if is_alone else resolve_checkpoint(name)
    values = stored_config(folder_of(path, whole=False) / CONFIG, name)
    config_class = _classes(values, name)[0]
    with refused(f"The configuration of {name} cannot be read"):
        config = config_class.from_dict(values)  # type: ignore[attr-defined]
        config._name_or_path = path
    return config


def _classes(values: dict[str, Any], name: str) -> tuple[type, type]:
    """Configuration and model class of a checkpoint.

    Args:
        values: the settings in its config.json.
        name: the checkpoint, for messages.

    Raises:
        ValueError: the model is not supported.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"The configuration of {name} cannot be read: it names no model_type.")
    kind = model_type.removeprefix(_OURS)
    if kind in STOCK:
        return (STOCK if kind == model_type else AUGMENTED)[kind]
    if kind in _UNSUPPORTED:
        why = _UNSUPPORTED[kind]
    elif "vision_config" not in values:
        why = "it reads only text and cannot see images"
    else:
        why = "only Qwen3-VL models are supported, dense or mixture-of-experts"
    raise ValueError(f"{name} is a {model_type[:100]} model: {why}.")


def saved_dtype(config: Any) -> Dtype:
    """The dtype that a checkpoint was saved in; "float32" for any dtype other than bfloat16."""
    dtype = config.dtype or config.text_config.dtype  # some state it for the language model only
    return "bfloat16" if dtype in (torch.bfloat16, "bfloat16") else "float32"


def stock_settings(config: Any) -> dict[str, Any]:
    """A configuration's settings, without its class names and the settings of recovery."""
    excluded = {"model_type", "architectures"}
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in excluded and not key.startswith("recovery_")
    }


def without_weights(config: Any) -> Any:
    """The model of a configuration, without recovery and without memory for its weights.

    Args:
        config: the configuration, with or without recovery.
    """
    config_class, model_class = STOCK[kind_of(config)]
    with torch.device("meta"):
        return model_class(config_class.from_dict(stock_settings(config)))  # type: ignore[attr-defined]


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
    silence_loading_report()
    stored = read_config(name)
    folder = folder_of(resolve_checkpoint(name), whole=True)
    wanted_config = stored if config is None else config
    model_class: Any = (AUGMENTED if has_recovery(wanted_config) else STOCK)[kind_of(stored)][1]
    check_sizes(name, model_class, wanted_config, stored_weights(folder, name))
    with refused(f"Checkpoint {name} cannot be loaded"):
        model, info = model_class.from_pretrained(
            folder,
            config=wanted_config,
            dtype="auto" if dtype is None else getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model.config._name_or_path = stored._name_or_path  # a hub id, not the folder that it was stored in
    fresh = "recovery." if has_recovery(wanted_config) and not has_recovery(stored) else None
    missing = [key for key in info["missing_keys"] if fresh is None or not key.startswith(fresh)]
    _check_keys(name, missing=missing, unexpected=info["unexpected_keys"])
    return model


def read_processor(name: str) -> Any:
    """Load the processor of a checkpoint: chat template, tokenizer, image and video processor.

    Raises:
        ValueError: it is missing or broken, does not fit the model, or its chat template is missing, fails,
            or hits a limit.
    """
    config = read_config(name)
    folder = folder_of(resolve_checkpoint(name), whole=True)
    check_processor_files(folder, name)
    with refused(f"The processor of {name} cannot be loaded"):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{name} has a tokenizer but no image processor (preprocessor_config.json).")
    if not processor.chat_template:
        raise ValueError(f"The processor of {name} has no chat template (chat_template.jinja).")
    check_processor(processor, config, name)
    check_template(processor, name)
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
