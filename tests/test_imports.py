"""Imports point one way: every package imports only packages that stand before it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vicur"
PACKAGES = [
    *(
        "registration",
        "wording",
        "tables",
        "paths",
        "isolated",
        "compat",
        "files",
        "consoles",
        "progress",
        "bad_rows",
        "settings",
    ),
    *("packaged", "user_code", "distributed"),
    *(
        "models",
        "media",
        "rewards",
        "data",
        "encoding",
        "endpoints",
        "vllm",
        "rollouts",
        "scoring",
        "objectives",
        "diagnostics",
    ),
    *("evaluation", "reporting", "preflight", "training", "run"),
    *("cuebench", "cues", "audit", "worth", "diagnose", "bench", "studies", "integrations", "cli"),
]
FILES = [path for path in sorted(ROOT.rglob("*.py")) if not path.relative_to(ROOT).parts[0].startswith("__")]


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_packages(path: Path) -> set[str]:
    """The packages that a file imports, inside functions too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("vicur.")}


def test_every_package_is_listed():
    assert {package_of(path) for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    here = PACKAGES.index(package_of(path))
    later = {package for package in imported_packages(path) if PACKAGES.index(package) > here}
    assert not later, (
        f"{path.relative_to(ROOT)} imports {sorted(later)}, which stand after {package_of(path)}"
    )


def test_engines_are_made_in_one_place():
    """Encode, sample and decode is written once: whoever has an engine's class could write it again."""
    names = ("rollouts.torch_engine", "rollouts.vllm_engine")
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(f"from vicur.{name} " in path.read_text() for name in names)
    }
    assert users == {"rollouts/engines.py"}
