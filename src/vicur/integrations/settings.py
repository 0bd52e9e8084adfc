"""Settings of a model that a benchmark harness evaluates: those of `vicur eval`, with its layers.

A harness brings its own problems, scoring and output, so that only a part of the settings applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vicur.evaluation.settings import EvaluationSettings, notes_on, settings_of_models
from vicur.settings.schema import Layer, Schema, schema_of
from vicur.settings.section import SettingsError

USUAL = {
    "pretrained": "model",
    "batch_size": "prompts_per_batch",
    "system_prompt": "data.system_prompt",
    "min_pixels": "data.min_pixels",
    "max_pixels": "data.max_pixels",
    "fps": "data.video.frames_per_second",
    "min_frames": "data.video.min_frames",
    "max_frames": "data.video.max_frames",
    "max_num_frames": "data.video.max_frames",
}
"""The names of settings in other models of harnesses, and ours."""
_APPLY = ("model", "preset", "dtype", "engine", "seed", "prompts_per_batch", "data.system_prompt")
_APPLY_PREFIXES = ("data.min_pixels", "data.max_", "data.video.", "sampling.", "vllm.")
_NOT_PREFIXES = ("data.max_prompt_tokens", "data.max_teacher_prompt_tokens")


def harness_settings(arguments: Mapping[str, Any], origin: str) -> EvaluationSettings:
    """The settings of a model: the user's over those of the preset, and these over those of its training.

    Args:
        arguments: the user's settings by our names or by those of `USUAL`; texts are read as on the command
            line of `vicur eval`.
        origin: where the user wrote them, for messages.

    Raises:
        SettingsError: a setting does not exist, does not fit, or has no effect in a harness.
        ValueError: there is no such model.
    """
    schema = schema_of(EvaluationSettings, "eval")
    layers = [_layer(schema, USUAL.get(key, key), value, origin) for key, value in arguments.items()]
    (settings,) = settings_of_models(schema, layers)
    return settings


def decides_sampling(arguments: Mapping[str, Any]) -> bool:
    """Whether the user's settings replace the sampling settings that a harness has for its tasks."""
    return any(key == "preset" or key.startswith("sampling.") for key in arguments)


def notes(settings: EvaluationSettings) -> list[str]:
    """What the user should know before the model answers, in sentences."""
    result = notes_on(settings)
    if settings.samples > 1:
        result.append(
            f"Warning: preset {settings.preset} has {settings.samples} responses per problem. A harness asks "
            "for its own number; `vicur eval` reports avg@k."
        )
    return result


def _layer(schema: Schema[EvaluationSettings], key: str, value: Any, origin: str) -> Layer:
    if schema.knows(key, value) and not _applies(key):
        raise SettingsError(
            f"{origin}: {key} has no effect here; the harness decides about problems and scoring."
        )
    if isinstance(value, str):
        return schema.override(f"{key}={value}", f"{origin}: {key}={value}")
    return Layer(f"{origin}: {key}={value}", {key: value})


def _applies(key: str) -> bool:
    return key in _APPLY or (key.startswith(_APPLY_PREFIXES) and not key.startswith(_NOT_PREFIXES))
