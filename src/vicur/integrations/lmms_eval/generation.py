"""The `generation_kwargs` of an lmms-eval task as settings for sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vicur.evaluation.settings import MAX_NEW_TOKENS
from vicur.rollouts.processors import SamplingConfig

_LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens")
_STOPS = ("until", "stop_sequences")
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1, "length_penalty": 1}
"""Settings that have no counterpart here, with the value at which they change nothing."""
_WITHOUT_EFFECT = ("image_aspect_ratio", "use_cache", "max_agentic_steps")
"""Settings of other models' processing, and of the harness itself."""
_DEFAULT_STOP = "\n\n"
"""The harness adds it to every task that names no stop text. Its own Qwen models ignore it too, because a
chain of thought has blank lines."""


def sampling_of(kwargs: Mapping[str, Any]) -> SamplingConfig:
    """Settings for sampling.

    Args:
        kwargs: `generation_kwargs` of a task, changed by the harness's --gen_kwargs.

    Raises:
        ValueError: a setting is unknown, or has no counterpart here and a value that matters.
    """
    left = {key: value for key, value in kwargs.items() if value is not None and key not in _WITHOUT_EFFECT}
    length = next((int(left[key]) for key in _LENGTHS if key in left), MAX_NEW_TOKENS)
    does_sample = left.pop("do_sample", None)
    temperature = float(left.pop("temperature", 1.0 if does_sample else 0.0))
    if does_sample is False:
        temperature = 0.0
    top_p, top_k = float(left.pop("top_p", 1.0)), int(left.pop("top_k", 0))
    presence = float(left.pop("presence_penalty", 0.0))
    for key, value in left.items():
        if key not in (*_LENGTHS, *_STOPS) and (key not in _NEUTRAL or float(value) != _NEUTRAL[key]):
            raise ValueError(
                f"The task samples with {key}={value!r}, which this model cannot; change it with "
                "--gen_kwargs, or replace all sampling settings of the task with preset=NAME or "
                "sampling.temperature=T in --model_args."
            )
    if temperature == 0:  # tasks write top_p: 0 and the like beside it
        return SamplingConfig(0.0, presence_penalty=presence, max_new_tokens=length)
    return SamplingConfig(temperature, top_p, max(top_k, 0), presence, length)


def stops_of(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts before which a response is cut off."""
    stops: list[str] = []
    for key in _STOPS:
        value = kwargs.get(key) or []
        stops += [value] if isinstance(value, str) else list(value)
    return tuple(stop for stop in stops if stop and stop != _DEFAULT_STOP)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """A response up to the first of the texts that stop it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
