"""The benchmarks of the papers under the names of the harnesses (`suites.yaml`)."""

from __future__ import annotations

import functools

from vicur.packaged import resolve_packaged
from vicur.settings.reading import LARGEST_YAML, parse_yaml, read_text

HARNESSES = ("vlmevalkit", "lmms_eval")


def suites() -> list[str]:
    """The papers: vicur, va-opd, vgs."""
    return list(_read())


def benchmarks(suite: str, harness: str) -> list[str]:
    """The names of a paper's benchmarks in a harness; those that it lacks are left out.

    Args:
        suite: the paper, one of `suites`.
        harness: one of `HARNESSES`.
    """
    names = (entry[harness] for entry in _read()[suite].values())
    return [name for name in names if name is not None]


@functools.cache
def _read() -> dict[str, dict[str, dict[str, str | None]]]:
    read: dict[str, dict[str, dict[str, str | None]]] = parse_yaml(
        read_text(resolve_packaged("integrations/suites.yaml"), LARGEST_YAML)
    )
    return read
