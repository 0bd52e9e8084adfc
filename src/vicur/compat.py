"""Every place that depends on a library's version. Supported: torch 2.11 and later, transformers 5.17 to 5.x.

Renamed interfaces are handled under both names here, and nowhere else. Other assumptions about the installed
transformers are checked by a forward pass in `vicur.models.contract`.
"""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.cache_utils import CacheLayerMixin
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

TESTED_TRANSFORMERS = "5.17 to 5.24"
"""Releases of transformers that the whole test suite has passed with."""

_CACHE_NAMES = ("cache", "past_key_values")
"""Names of the key-value cache as keyword argument and output field: since transformers 5.24, and before."""
_CACHE_NAME = next(
    (name for name in _CACHE_NAMES if name in inspect.signature(Qwen3VLTextModel.forward).parameters),
    _CACHE_NAMES[0],
)


def cache_argument(cache: Any) -> dict[str, Any]:
    """Keyword arguments that hand a key-value cache to a Qwen3-VL model."""
    return {_CACHE_NAME: cache}


def cache_of(values: Mapping[str, Any]) -> Any:
    """The key-value cache in a model's keyword arguments or in its output; None if there is none."""
    return next((values[name] for name in _CACHE_NAMES if values.get(name) is not None), None)


def load_like(model_type: str, known: str) -> None:
    """Let the checkpoints of a model type be converted, when they are loaded, like those of a known one.

    transformers turns the experts' matrices of Qwen3-VL, which are published transposed.
    """
    register_checkpoint_conversion_mapping(
        model_type, get_checkpoint_conversion_mapping(known) or [], overwrite=True
    )


class SizedCacheLayer(CacheLayerMixin):
    """A cache layer of limited length; transformers asks for the limit by one of two method names."""

    @abstractmethod
    def capacity(self) -> int:
        """Maximum number of tokens."""

    def get_max_length(self) -> int:
        """Maximum number of tokens: the name since transformers 5.20."""
        return self.capacity()

    def get_max_cache_shape(self) -> int:
        """Maximum number of tokens: the name before transformers 5.20."""
        return self.capacity()


@contextmanager
def peft_warnings_ignored() -> Iterator[None]:
    """Silence peft while an adapter is added: it reads an attribute that transformers deprecates, and warns
    about every adapter after the first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def checkpoint_activations(model: Any) -> None:
    """Keep only the inputs of the decoder layers for the backward pass, and recompute the rest."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.20
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def abandon_iteration(sharded: Any) -> None:
    """Make a module that FSDP2 manages usable after an error in the middle of a pass.

    Raises:
        RuntimeError: torch is older than 2.14, where FSDP2 cannot do that.
    """
    if not hasattr(sharded, "reset_iter_state"):
        raise RuntimeError("FSDP2 cannot recover from an error in a pass before torch 2.14.")
    sharded.reset_iter_state()


def video_processor_options(video_processor: Any) -> dict[str, Any]:
    """Options with which a Qwen3-VL video processor takes frames unchanged.

    `cap_pixels_per_frame` has no effect on frames that are not resized. But versions of transformers that
    have it warn unless it is set, because its default will change.
    """
    options = {"do_sample_frames": False, "do_resize": False}
    if "cap_pixels_per_frame" in video_processor.valid_kwargs.__annotations__:
        options["cap_pixels_per_frame"] = False
    return options
