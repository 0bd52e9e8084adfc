"""Imports point one way: every room imports only rooms that stand before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vicur"
ROOMS = [
    *("registration", "wording", "paths", "compat", "files", "progress", "bad_rows", "settings", "packaged"),
    "user_code",
    *("models", "media", "rewards", "data", "encoding", "rollouts", "scoring", "objectives", "diagnostics"),
    *("evaluation", "reporting", "preflight", "training", "run"),
    *("cuebench", "cues", "audit", "worth", "studies", "cli"),
]
FILES = [path for path in sorted(ROOT.rglob("*.py")) if not path.relative_to(ROOT).parts[0].startswith("__")]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, inside functions too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("vicur.")}


def test_every_room_is_listed():
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    here = ROOMS.index(room_of(path))
    later = {room for room in imported_rooms(path) if ROOMS.index(room) > here}
    assert not later, f"{path.relative_to(ROOT)} imports {sorted(later)}, which stand after {room_of(path)}"


def test_only_the_generator_samples():
    """Encode, sample and decode is written once: whoever has the sampler could write it again."""
    users = {path.relative_to(ROOT).as_posix() for path in FILES if "rollouts.sampler" in path.read_text()}
    assert users == {"rollouts/generator.py"}
