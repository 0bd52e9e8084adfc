"""What the documentation names exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from vicur.recipe import Recipe, load_recipe
from vicur.settings import setting_types

ROOT = Path(__file__).parent.parent
ROOMS = "models|data|rollouts|scoring|objectives|training|diagnostics|student|teacher|objective|rollout"


def named(path, pattern):
    return sorted(set(re.findall(pattern, (ROOT / path).read_text())))


@pytest.mark.parametrize("name", named("docs/method.md", rf"`((?:{ROOMS})\.[\w.]+)`"))
def test_every_name_of_the_method_table_is_there(name):
    """A setting, or a module, or something in one."""
    if name in setting_types(Recipe):
        return
    parts = ["vicur", *name.split(".")]
    modules = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    depth = max(i for i, module in enumerate(modules) if is_module(module))
    found = importlib.import_module(modules[depth])
    for part in parts[depth + 1 :]:
        found = getattr(found, part)


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_linked_file_is_there(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / path).read_text()):
        assert (ROOT / path).parent.joinpath(target).exists(), target


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/objectives.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_a_recipe(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    needs_siblings = [] if "rollout:" in text else ["rollout.siblings=4"]
    assert load_recipe(str(path), needs_siblings).objective.parts
