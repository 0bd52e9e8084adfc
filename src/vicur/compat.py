"""Every place that depends on a library's version. Supported: torch 2.11 and later, transformers 5.17 to 5.x.

A renamed interface is read here under both names, and nowhere else. What has no old and new name, but must
simply hold, is checked by a forward pass in `vicur.models.contract`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

_CACHE_NAMES = ("cache", "past_key_values")
"""The key-value cache as keyword and as output field: since transformers 5.24, and before."""


def _accepted(function: Any, names: tuple[str, ...]) -> str | None:
    parameters = inspect.signature(function).parameters
    return next((name for name in names if name in parameters), None)


def cache_argument(cache: Any) -> dict[str, Any]:
    """Keyword arguments that hand a key-value cache to a Qwen3-VL model."""
    return {_CACHE_NAME: cache}


def cache_of(values: Mapping[str, Any]) -> Any:
    """The key-value cache in a model's keyword arguments or in its output; None if there is none."""
    return next((values[name] for name in _CACHE_NAMES if values.get(name) is not None), None)


_CACHE_NAME = _accepted(Qwen3VLTextModel.forward, _CACHE_NAMES) or _CACHE_NAMES[0]
