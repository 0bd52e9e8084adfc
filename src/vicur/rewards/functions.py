"""Loads a user's own reward function."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from vicur.user_code import error_in, load_name

RewardFunction = Callable[[str, str | None, Mapping[str, Any]], float | bool | None]


def load_function(path: str) -> RewardFunction:
    """Load `package.module:name` or `path/to/file.py:name`.

    Returns:
        A wrapper of the function that raises ValueError if the function raises anything, or returns something
        other than a bool, a finite number or None.

    Raises:
        ValueError: there is no such module, file or name, it cannot be imported, or it is not callable.
    """
    function = load_name(path, "reward function")
    if not callable(function):
        raise ValueError(f"The reward function {path!r} is a {type(function).__name__}, not a function.")

    def checked(response: str, gold: str | None, meta: Mapping[str, Any]) -> float | bool | None:
        try:
            reward = function(response, gold, meta)
        except Exception as error:
            raise ValueError(f"The reward function {path!r} raised {error_in(function, error)}.") from error
        if reward is None or isinstance(reward, bool):
            return reward
        if isinstance(reward, numbers.Real) and math.isfinite(reward):
            return float(reward)
        raise ValueError(
            f"The reward function {path!r} returned {reward!r} ({type(reward).__name__}), "
            "not a bool, a finite number or None."
        )

    return checked
