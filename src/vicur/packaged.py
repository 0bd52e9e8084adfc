"""Data that ships inside the package: recipes, studies and checkpoints."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from vicur.paths import expand
from vicur.settings.reading import LARGEST_YAML, Unreadable, parse_yaml, read_text
from vicur.settings.section import SettingsError

Folder = Literal["recipes", "studies", "presets"]
_KINDS: dict[Folder, str] = {"recipes": "recipe", "studies": "study", "presets": "preset"}


def resolve_packaged(folder: str) -> Path:
    """The path of a folder that ships inside the package."""
    return Path(str(resources.files("vicur") / folder))


def packaged_names(folder: Folder) -> list[str]:
    """Names of the packaged YAML files, without the bases of others."""
    root = resolve_packaged(folder)
    files = (file for file in root.rglob("*.yaml") if file.parent.name != "bases")
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in files)


def find_packaged(path: str, folder: Folder) -> Path:
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
    known = packaged_names(folder)
    if file.suffix in (".yaml", ".yml") and not path.startswith(tuple(known)):
        raise SettingsError(f"There is no file {path}.")
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.0)
    raise SettingsError(f"There is no {_KINDS[folder]} {path}; did you mean {' or '.join(near)}?")


def display_path(file: Path) -> str:
    """A settings file's name in messages: the name of a packaged one, the path of any other."""
    for folder, kind in _KINDS.items():
        root = resolve_packaged(folder)
        if file.resolve().is_relative_to(root.resolve()):
            name = file.resolve().relative_to(root.resolve()).with_suffix("").as_posix()
            return f"{kind} {name}"
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def read_settings(file: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Settings by name from a YAML file.

    Args:
        file: the file.
        may_be_empty: whether an empty file holds no settings instead of raising an error.

    Raises:
        SettingsError: it is not YAML, sets a key twice, or does not hold settings by name.
    """
    try:
        settings = parse_yaml(read_text(file, LARGEST_YAML))
    except Unreadable as error:
        raise SettingsError(f"{display_path(file)} {error}") from error
    if settings is None and may_be_empty:
        return {}
    if not isinstance(settings, dict):
        raise SettingsError(f"{display_path(file)} must hold settings by name, not {_kind_of(settings)}.")
    return {str(key): value for key, value in settings.items()}


def _kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
