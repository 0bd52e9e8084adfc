"""Registers the student with transformers' Auto classes once these are imported, and not before.

`import vicur` must be quick, and `AutoModelForImageTextToText.from_pretrained` must find the student after
it. Registering needs the student's class, which needs torch and transformers: seconds of time, and a gigabyte
of memory. So `import vicur` only adds a finder before Python's own that watches imports. When the import that
loads the Auto classes ends, the finder registers the student and removes itself.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The module that every Auto class needs to look up a model."""
WATCHED = ("transformers.", "vicur.")
"""Packages that the student imports; while one of their modules is being imported, it may be incomplete."""


def register_when_needed() -> None:
    """Register now if the Auto classes are imported already, otherwise after their import."""
    if AUTO_CLASSES in sys.modules:
        importlib.import_module("vicur.models.student")
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher(importlib.abc.MetaPathFinder):
    """Counts the watched modules that are being imported, one nested in another."""

    def __init__(self) -> None:
        self._depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module spec that Python's own finders return, with a loader that reports back."""
        if not fullname.startswith(WATCHED):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def begin(self) -> None:
        """Record that a module starts to execute."""
        self._depth += 1

    def end(self) -> None:
        """Record that a module was executed or failed; register the student once that is possible."""
        self._depth -= 1
        if self._depth == 0 and AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("vicur.models.student")


class _WatchedLoader(importlib.abc.Loader):
    """Runs a module's own loader, and reports the start and the end to the watcher."""

    def __init__(self, loader: importlib.abc.Loader, watcher: _Watcher) -> None:
        self._loader, self._watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        """Attributes of the module's own loader, which `python -m`, resources and the like need."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._watcher.begin()
        try:
            self._loader.exec_module(module)
        finally:
            self._watcher.end()
