"""Loads users' own code by name, and names the line of their file that raised an error."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_name(path: str, what: str) -> Any:
    """Load `package.module:name` or `path/to/file.py:name`.

    Args:
        path: module or file, and a name in it.
        what: expected kind of object, for messages, e.g. "reward function".

    Raises:
        ValueError: there is no such module, file or name, or it cannot be imported.
    """
    source, colon, name = path.rpartition(":")
    if not (colon and source and name):
        raise ValueError(
            f"The {what} must have the form 'package.module:name' or 'path/to/file.py:name', not {path!r}."
        )
    load = _load_file if source.endswith(".py") else _load_module
    module = load(source, f"The {what} {path!r} cannot be loaded")
    if name not in vars(module):
        raise ValueError(f"The {what} {path!r} cannot be loaded: {source} has no {name!r}.")
    return vars(module)[name]


def error_in(code: Callable[..., Any], error: Exception) -> str:
    """An exception from a user's function or class as text, with the line of its file that raised it, e.g.
    "KeyError: 'x' (my_rewards.py, line 12)"."""
    return f"{_text(error)}{_line(error, _file_of(code))}"


def _load_module(name: str, failure: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code runs on import, and may raise anything
        where = _line(error, str(Path(*name.split(".")).with_suffix(".py")))
        raise ValueError(f"{failure}: {_text(error)}{where}.") from error


def _load_file(file: str, failure: str) -> ModuleType:
    location = Path(file).expanduser().resolve()
    if not location.is_file():
        raise ValueError(f"{failure}: there is no file {location}.")
    # A name that no installed module has, so that a user's `random.py` does not replace the standard one.
    name = "vicur_user_" + "".join(c if c.isalnum() else "_" for c in str(location.with_suffix("")))
    spec = importlib.util.spec_from_file_location(name, location)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{failure}: {_text(error)}{_line(error, str(location))}.") from error
    return module


def _file_of(code: Callable[..., Any]) -> str:
    """The file that holds a function, a class, or the class of a callable object."""
    plain = inspect.unwrap(code)
    module = sys.modules.get(plain.__module__)
    return str(module.__file__) if module is not None and module.__file__ is not None else ""


def _line(error: BaseException, file: str) -> str:
    """The line of the user's file that an exception came from: " (my_rewards.py, line 12)"; "" if not from
    there."""
    if isinstance(error, SyntaxError) and error.filename and error.filename.endswith(file):
        return f" ({Path(error.filename).name}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename.endswith(file)
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". :")
