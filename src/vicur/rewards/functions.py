"""Load a user's own function for rewards."""

from __future__ import annotations

import importlib
import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFunction = Callable[[str, str | None, Mapping[str, Any]], float | bool | None]


def load_function(path: str) -> RewardFunction:
    """Load `package.module:name` or `path/to/file.py:name`.

    Returns:
        The function, whose results and errors are checked: it raises ValueError where the user's raises
        anything, or returns neither a bool, a finite number nor None.

    Raises:
        ValueError: there is no such module, file or name, it cannot be imported, or is no function.
    """
    source, colon, name = path.rpartition(":")
    if not (colon and source and name):
        raise ValueError(
            f"The reward function is given as 'package.module:name' or 'path/to/file.py:name', not {path!r}."
        )
    module = _load_file(source, path) if source.endswith(".py") else _load_module(source, path)
    if name not in vars(module):
        raise ValueError(f"The reward function {path!r} cannot be loaded: {source} has no {name!r}.")
    function = vars(module)[name]
    if not callable(function):
        raise ValueError(f"The reward function {path!r} is a {type(function).__name__}, not a function.")

    def checked(response: str, gold: str | None, meta: Mapping[str, Any]) -> float | bool | None:
        try:
            reward = function(response, gold, meta)
        except Exception as error:
            raise ValueError(f"The reward function {path!r} raised {_said(error)}.") from error
        if reward is None or isinstance(reward, bool):
            return reward
        if isinstance(reward, numbers.Real) and math.isfinite(reward):
            return float(reward)
        raise ValueError(
            f"The reward function {path!r} returned {reward!r} ({type(reward).__name__}), "
            "not a bool, a finite number or None."
        )

    return checked


def _load_module(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's code runs on import, and may raise anything
        raise ValueError(f"The reward function {path!r} cannot be loaded: {_said(error)}.") from error


def _load_file(file: str, path: str) -> ModuleType:
    location = Path(file).expanduser().resolve()
    if not location.is_file():
        raise ValueError(f"The reward function {path!r} cannot be loaded: there is no file {location}.")
    # A name that no installed module has, so that `random.py` does not replace the library's.
    name = "vicur_user_reward_" + "".join(c if c.isalnum() else "_" for c in str(location.with_suffix("")))
    spec = importlib.util.spec_from_file_location(name, location)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"The reward function {path!r} cannot be loaded: {_said(error)}.") from error
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". :")
