"""On-policy distillation for vision-language models, supervised by what can be seen.

Importing the package registers the student model with transformers' Auto classes. Only the command line
leaves that to its commands, which import what they need, so that `vicur --help` is quick.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vicur.models.student import ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration

__all__ = ["ViCuRQwen3VLConfig", "ViCuRQwen3VLForConditionalGeneration"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module("vicur.models.student"))[name]


def _is_command_line() -> bool:
    """Whether this process was started as `vicur`, `python -m vicur` or `python -m vicur.cli`."""
    started_as_module = sys.argv[:1] == ["-m"] and not {"vicur", "vicur.cli"}.isdisjoint(sys.orig_argv)
    return started_as_module or PurePath(sys.argv[0] if sys.argv else "").name in ("vicur", "vicur.exe")


if not _is_command_line():
    importlib.import_module("vicur.models.student")
