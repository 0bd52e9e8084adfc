"""How papers evaluate, and how a model was trained: settings that an evaluation starts from.

Settings come in layers: the defaults, those of the model's own recipe (system prompt and image limits), those
of the preset, and the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vicur.data.sources import DataConfig
from vicur.files import RECIPE_FILE
from vicur.models.checkpoints import resolve_checkpoint
from vicur.packaged import display_path, find_packaged, read_settings
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.schema import Layer, schema_of, settings_in
from vicur.settings.section import section, short

OWN_SAMPLING = "recipe"
"""The preset that samples like the training rollouts of the model."""
SHOWN = ("data.system_prompt", "data.order", "data.options", "data.min_pixels", "data.max_pixels")
"""Settings of a recipe that decide what a model is shown; with those of `data.video`."""
_VIDEO = "data.video."


@section
class Preset:
    """What a preset can set."""

    data: DataConfig = field(default_factory=DataConfig)
    """System prompt, format of options, and limits of images and videos."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the responses."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of responses per problem."""


def preset_settings(name: str) -> dict[str, Any]:
    """The settings that a preset states, by dotted name.

    Args:
        name: name of a packaged preset, or a YAML file.

    Raises:
        SettingsError: there is no such preset, it cannot be read, or it has a setting that does not exist,
            does not fit, or has no place in a preset.
    """
    file = find_packaged(name, "presets")
    schema = schema_of(Preset, "preset")
    stated = schema.flatten(read_settings(file))
    checked = schema.load([Layer(display_path(file), stated)])
    return {key: value for key, value in settings_in(checked) if key in stated}


def part_of(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The settings of one section without its name, e.g. {"temperature": 1.0} for "sampling".

    Args:
        settings: settings by dotted name.
        section: name of the section.
    """
    prefix = f"{section}."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def recipe_of_model(model: str) -> Mapping[str, Any] | None:
    """The nested settings of the recipe that a model was trained with; None if it is not known.

    Args:
        model: folder, hub id or "vicur:NAME". The recipe is in the folder, or in the folder of its run.

    Raises:
        SettingsError: the recipe cannot be read.
        ValueError: there is no such model.
    """
    folder = Path(resolve_checkpoint(model))
    candidates = [folder / RECIPE_FILE]
    if folder.resolve().parent.name == "checkpoints":
        candidates.append(folder.resolve().parents[1] / RECIPE_FILE)
    file = next((path for path in candidates if path.is_file()), None)
    return None if file is None else read_settings(file)


def shown_settings(recipe: Mapping[str, Any], *, sampling: bool) -> dict[str, Any]:
    """The settings of a recipe that an evaluation takes over, by dotted name.

    Args:
        recipe: nested settings.
        sampling: whether they include the sampling of the training rollouts.
    """
    data = recipe.get("data") or {}
    flat = {name: data.get(name.removeprefix("data.")) for name in SHOWN}
    flat |= {f"{_VIDEO}{name}": value for name, value in (data.get("video") or {}).items()}
    if sampling:
        rollout = (recipe.get("rollout") or {}).get("sampling") or {}
        flat |= {f"sampling.{name}": value for name, value in rollout.items()}
    # A null is the default of all of these but the options, which it leaves out.
    return {
        name: value
        for name, value in flat.items()
        if value is not None or (name == "data.options" and "options" in data)
    }


def differences(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Settings that decide what a model is shown and differ from those of its training, in words.

    Args:
        recipe: nested settings of the training.
        settings: nested settings of the evaluation.
    """
    before, after = recipe.get("data") or {}, settings["data"]
    keys = [name.removeprefix("data.") for name in SHOWN]
    pairs = {f"data.{key}": (before[key], after.get(key)) for key in keys if key in before}
    video = before.get("video") or {}
    pairs |= {f"{_VIDEO}{key}": (video[key], value) for key, value in after["video"].items() if key in video}
    return [
        f"{name} is {short(now)}, but {short(trained)} in training"
        for name, (trained, now) in pairs.items()
        if trained != now
    ]
