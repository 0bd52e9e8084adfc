"""Inspects the files of a checkpoint before they are loaded.

A checkpoint comes from anywhere. Only safetensors and JSON are read, no code that it brings is run, and no
model is built before the sizes in its configuration are known to be those of its weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import Qwen3VLConfig

from vicur.settings.reading import LARGEST_JSON, Unreadable, parse_json, read_json, read_text
from vicur.wording import first_reason

CONFIG = "config.json"
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
)
_TEXT_FILES = {
    "tokenizer.json": 2**28,
    "chat_template.jinja": 2**20,
    "vocab.json": 2**26,
    "merges.txt": 2**26,
}
"""Other files of a processor, and their maximum size in bytes."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of weights, as safetensors names them."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_IGNORED = {"auto_map", "transformers_weights"} | {
    f"{underscore}{part}_implementation{internal}"
    for underscore in ("", "_")
    for part in ("attn", "experts")
    for internal in ("", "_internal")
}
"""Settings of config.json that name code to run or files to read; they have no effect here."""
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "depth")
_MOST_LAYERS = 1000
"""Maximum number of layers of a language model or a vision tower. The largest model has 94."""
_FEW = 10**8
"""Number of missing weights that take no notable memory while a checkpoint is loaded."""


@dataclass(frozen=True)
class Weight:
    """A tensor in a safetensors file.

    Attributes:
        shape: its shape.
        dtype: its type, as safetensors names it, e.g. "BF16".
        file: name of the file.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str


def sentence(error: BaseException) -> str:
    """An error of another library in one line of limited length."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        return sentence(error.__cause__)
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which is never run"
    text = text if len(text) <= 300 else f"{text[:300]} ..."
    is_clear = isinstance(error, ValueError | OSError | RuntimeError | TypeError | SafetensorError)
    # A KeyError has only the key as its text, an AssertionError often nothing; tokenizers raises Exception.
    if text and (is_clear or type(error) is Exception):
        return text.removeprefix("Error while deserializing header: ")
    return f"{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def refused(what: str) -> Iterator[None]:
    """A context for another library that reads a file from outside: any error is the file's fault.

    Args:
        what: beginning of the message, e.g. "The processor of NAME cannot be loaded".

    Raises:
        ValueError: the library raised any error.
    """
    try:
        yield
    except BaseException as error:
        # A panic of a library in Rust is no Exception; neither is Ctrl-C, which must pass.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {sentence(error).rstrip('.')}.") from error


def folder_of(name: str, *, whole: bool) -> Path:
    """The folder with a checkpoint's files; those of a hub id are downloaded.

    Args:
        name: folder or hub id.
        whole: whether weights and processor are needed, and not only the configuration.

    Raises:
        ValueError: it cannot be downloaded.
    """
    return Path(name) if Path(name).is_dir() else _downloaded(name, whole)


@functools.cache
def _downloaded(name: str, whole: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "merges.txt"] if whole else [CONFIG]
    with refused(f"{name} is not a folder, and it cannot be downloaded from the hub"):
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
        except (OSError, ValueError) as error:
            raise ValueError(first_reason(error)) from error


def stored_config(file: Path, name: str) -> dict[str, Any]:
    """The settings in a config.json, without those that name code or files.

    Args:
        file: the config.json.
        name: the checkpoint, for messages.

    Raises:
        ValueError: it cannot be read, is of quantised weights, or has a number of layers that no model has.
    """
    try:
        values = read_json(file)
    except (Unreadable, OSError) as error:
        reason = f"it {error}" if isinstance(error, Unreadable) else sentence(error)
        raise ValueError(f"The configuration of {name} cannot be read: {reason}") from error
    sections = [values, *(part for part in values.values() if isinstance(part, dict))]
    for part in sections:
        if part.get("quantization_config") is not None:
            raise ValueError(
                f"{name} is quantised (quantization_config in its {CONFIG}), and only models in float32, "
                "bfloat16 or float16 are supported. Use the checkpoint that it was made from."
            )
        for key in _LAYER_COUNTS:
            count = part.get(key, 0)
            if isinstance(count, int | float) and count > _MOST_LAYERS:
                raise ValueError(
                    f"{name} has {key}={count:g} in its {CONFIG}, and no model has more than {_MOST_LAYERS}."
                )
        for key, value in part.items():
            if callable(getattr(Qwen3VLConfig, key, None)):  # it would replace the method
                raise ValueError(f"{name} has {key} in its {CONFIG}, which is not a setting of a model.")
            if isinstance(value, list) and len(value) > _MOST_LAYERS:
                raise ValueError(
                    f"{name} has {len(value):,} values in {key} in its {CONFIG}, and no model has more than "
                    f"{_MOST_LAYERS} layers."
                )
        for key in _IGNORED & set(part):
            del part[key]
    return values


def check_processor_files(folder: Path, name: str) -> None:
    """Check that the JSON files of a processor hold objects, and that its other files are of usual size.

    Raises:
        ValueError: one does not; the message names it.
    """
    for file in (folder / part for part in (*_PROCESSOR_FILES, *_TEXT_FILES)):
        try:
            if file.exists():
                text = read_text(file, _TEXT_FILES.get(file.name, LARGEST_JSON))
                if file.name in _PROCESSOR_FILES:
                    parse_json(text)
        except Unreadable as error:
            raise ValueError(f"The processor of {name} cannot be loaded: {file.name} {error}") from error


def stored_weights(folder: Path, name: str) -> dict[str, Weight]:
    """The tensors in a checkpoint's safetensors files, from the files' headers.

    Args:
        folder: the folder with the files.
        name: the checkpoint, for messages.

    Raises:
        ValueError: there are none, a file is missing or damaged, or weights are not plain floats.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{name} has an adapter (adapter_config.json) and is no whole model: merge the adapter into its "
            "base with peft's merge_and_unload, and save the result."
        )
    weights: dict[str, Weight] = {}
    for file in _weight_files(folder, name):
        weights |= _header(folder / file, name)
    for key, weight in weights.items():
        if weight.dtype not in _FLOATS:
            raise ValueError(
                f"{name} has weights in {weight.dtype} ({key} in {weight.file}), and only models in float32, "
                "bfloat16 or float16 are supported. Use the checkpoint that it was made from."
            )
    return weights


def _weight_files(folder: Path, name: str) -> list[str]:
    """The names of the files with the weights: one, or those that the index names."""
    if (folder / _WEIGHTS).exists():
        return [_WEIGHTS]
    if not (folder / _INDEX).exists():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        raise ValueError(f"{name} has no {_WEIGHTS}." if not pickles else _conversion(name, pickles[0]))
    try:
        table = read_json(folder / _INDEX).get("weight_map")
    except Unreadable as error:
        raise ValueError(f"Checkpoint {name} cannot be loaded: {_INDEX} {error}") from error
    files = list(table.values()) if isinstance(table, dict) else []
    if not files or not all(_is_file_name(file) for file in files):
        raise ValueError(
            f"Checkpoint {name} cannot be loaded: {_INDEX} is not a valid index of weights: its weight_map "
            "must give the name of a safetensors file in the same folder for each weight."
        )
    return sorted(set(files))


def _is_file_name(file: object) -> bool:
    return isinstance(file, str) and file.endswith(".safetensors") and not set(file) & {"/", "\\", "\0", "\n"}


def _conversion(name: str, pickle: str) -> str:
    return (
        f"{name} has its weights in {pickle}, a pickle, which may run code when it is loaded: only "
        "safetensors are read. If you trust it, convert it in Python: from transformers import "
        "AutoModelForImageTextToText as Model; Model.from_pretrained(FOLDER, use_safetensors=False)"
        ".save_pretrained(NEW), then copy the tokenizer's and processor's files to NEW."
    )


def _header(file: Path, name: str) -> dict[str, Weight]:
    failure = f"Checkpoint {name} cannot be loaded: its file {file.name}"
    if not file.is_file():
        raise ValueError(f"{failure} is missing.")
    with refused(f"{failure} is damaged"), safe_open(file, "pt") as tensors:
        slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
        return {
            key: Weight(tuple(part.get_shape()), part.get_dtype(), file.name) for key, part in slices.items()
        }


def _check_heads(config: Any) -> None:
    """Check the sizes that no weight's shape depends on."""
    text, vision = config.text_config, config.vision_config
    if vision.num_heads < 1 or vision.hidden_size % vision.num_heads:
        raise ValueError(
            f"vision_config has num_heads={vision.num_heads}, which does not divide its hidden_size "
            f"{vision.hidden_size}."
        )
    rope = text.rope_parameters if isinstance(text.rope_parameters, dict) else {}
    parts, half = rope.get("mrope_section", [24, 20, 20]), text.head_dim // 2
    is_split = isinstance(parts, list | tuple) and len(parts) == 3 and all(isinstance(n, int) for n in parts)
    if "mrope_section" in rope and not (is_split and min(parts) >= 0 and sum(parts) == half):
        raise ValueError(f"its mrope_section must be three numbers with the sum {half}, not {parts!r}.")


def check_sizes(name: str, model_class: Any, config: Any, weights: Mapping[str, Weight]) -> None:
    """Check that the weights have the sizes that the configuration describes; nothing is allocated.

    Args:
        name: the checkpoint, for messages.
        model_class: class of the model.
        config: its configuration.
        weights: the tensors of the checkpoint.

    Raises:
        ValueError: no model can be built, or its sizes are not those of the weights.
    """
    with refused(f"The configuration of {name} describes no model"):
        _check_heads(config)
        with torch.device("meta"):
            model = model_class(config)
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    for key, shape in expected.items():
        # The experts' matrices are published transposed, and turned when they are loaded.
        if key in weights and sorted(weights[key].shape) != sorted(shape):
            raise ValueError(
                f"Checkpoint {name} cannot be loaded: its {CONFIG} describes {key} with the shape "
                f"{list(shape)}, and {weights[key].file} has it with {list(weights[key].shape)}."
            )
    missing = sum(math.prod(shape) for key, shape in expected.items() if key not in weights)
    present = sum(math.prod(weight.shape) for weight in weights.values())
    # A few missing weights are named after loading, with all the others that are missing.
    if missing > max(present, _FEW):
        raise ValueError(
            f"Checkpoint {name} cannot be loaded: its {CONFIG} describes a model of "
            f"{sum(map(math.prod, expected.values())):,} parameters, and its weights have {present:,}."
        )
