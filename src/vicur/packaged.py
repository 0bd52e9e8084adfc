"""Data that ships inside the package: recipes, studies and checkpoints."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Literal

from vicur.paths import expand
from vicur.settings.section import SettingsError


def resolve_packaged(folder: str) -> Path:
    """The path of a folder that ships inside the package."""
    return Path(str(resources.files("vicur") / folder))


def find_packaged(path: str, folder: Literal["recipes", "studies", "presets"]) -> Path:
    """Find a YAML file by its path, or a packaged one by its name.

    Raises:
        SettingsError: neither exists.
    """
    file, root = Path(expand(path)), resolve_packaged(folder)
    if file.is_file():
        return file
    if file.exists() and not file.is_dir():
        raise SettingsError(f"{path} is not a regular file.")
    packaged = root / f"{path}.yaml"
    if packaged.is_file():
        return packaged
    names = (p.relative_to(root).with_suffix("") for p in root.rglob("*.yaml") if p.parent.name != "bases")
    known = sorted(map(str, names))
    if file.suffix in (".yaml", ".yml") and not path.startswith(tuple(known)):
        raise SettingsError(f"There is no file {path}.")
    kind = {"recipes": "recipe", "studies": "study", "presets": "preset"}[folder]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.0)
    raise SettingsError(f"There is no {kind} {path}; did you mean {' or '.join(near)}?")
