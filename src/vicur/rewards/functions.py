"""Load a user's own function for rewards."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
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
            where = _line(error, _file_of(function))
            raise ValueError(f"The reward function {path!r} raised {_said(error)}{where}.") from error
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
        where = _line(error, str(Path(*name.split(".")).with_suffix(".py")))
        raise ValueError(f"The reward function {path!r} cannot be loaded: {_said(error)}{where}.") from error


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
        where = _line(error, str(location))
        raise ValueError(f"The reward function {path!r} cannot be loaded: {_said(error)}{where}.") from error
    return module


def _file_of(function: Callable[..., Any]) -> str:
    """The file that holds the code of a function, or of the class of a callable object."""
    plain = inspect.unwrap(function)
    module = sys.modules.get(plain.__module__)
    return str(module.__file__) if module is not None and module.__file__ is not None else ""


def _line(error: Exception, file: str) -> str:
    """Where in the user's file an exception came from: " (my_rewards.py, line 12)"; "" if not from there."""
    if isinstance(error, SyntaxError) and error.filename and error.filename.endswith(file):
        return f" ({Path(error.filename).name}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename.endswith(file)
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". :")
