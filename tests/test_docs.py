"""What the documentation names exists."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from vicur.cli.settings_doc import page
from vicur.cues.settings import BuildConfig
from vicur.run.recipe import Recipe, load_recipe
from vicur.settings.reference import Setting, in_words, settings_of
from vicur.settings.schema import setting_types

ROOT = Path(__file__).parent.parent
ROOMS = (
    "models|data|media|encoding|rollouts|scoring|objectives|training|diagnostics|evaluation|worth|run"
    "|student|teacher|objective|rollout"
)


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


NUMBERED = {"ViCuR": 35, "VA-OPD": 6, "VGS": 25}


@pytest.mark.parametrize("paper", NUMBERED)
def test_every_numbered_equation_has_a_line_in_its_papers_table(paper):
    text = (ROOT / "docs/method.md").read_text().split(f"## {paper}\n")[1].split("\n## ")[0]
    found = set()
    for cell in re.findall(r"^\| eq\. ([\d, to]+)", text, flags=re.MULTILINE):
        for part in cell.split(","):
            first, _, last = part.partition(" to ")
            if first.strip():
                found |= set(range(int(first), int(last or first) + 1))
    assert found == set(range(1, NUMBERED[paper] + 1))


@pytest.mark.parametrize("path", named("docs/method.md", r"`(tests/[\w/]+\.py)`"))
def test_every_test_that_the_method_table_names_is_there(path):
    assert (ROOT / path).is_file()


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


CORE = ["models", "rewards", "data", "encoding", "rollouts", "scoring", "objectives", "training", "run"]


@pytest.mark.parametrize("room", CORE)
def test_the_readme_has_a_line_for_every_file_of_the_core(room):
    (block,) = re.findall(
        rf"^    {room}/ *\n((?:      .*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    listed = re.findall(r"^      (\w+\.py) ", block, flags=re.MULTILINE)
    folder = ROOT / "src" / "vicur" / room
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")


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
    needs_group_size = [] if "rollout:" in text else ["rollout.group_size=4"]
    assert load_recipe(str(path), needs_group_size).objective.parts


README = (ROOT / "README.md").read_text().split("## Your own images")[1].split("\n## ")[0]


def test_the_readmes_folder_of_images_loads(tmp_path):
    """The line of metadata.jsonl, and the recipe as it stands there."""
    (line,) = re.findall(r"```json\n(.*?)\n```", README)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (96, 64), "white").save(folder / "000.jpg")
    (folder / "metadata.jsonl").write_text(line + "\n")
    (tmp_path / "photos.yaml").write_text(recipe)
    found = load_recipe(str(tmp_path / "photos.yaml"), [f"data.train={folder}"])
    (sample,) = found.data.open()
    assert (sample.answer, len(sample.images)) == ("5", 1)
    assert sample.privilege.cue == json.loads(line)["cue"]
    assert found.training.name == "photos" and "runs/photos/checkpoints/final" in README


def test_the_page_of_settings_is_up_to_date():
    assert (ROOT / "docs/settings.md").read_text() == page(), "run `make docs`"


def test_every_setting_of_both_commands_is_on_it():
    named = re.findall(r"^- \*\*`([\w.]+)`\*\*", page(), flags=re.MULTILINE)
    named = [name for name in named if ".NAME." not in name]  # sections of tables
    assert sorted(named) == sorted({*setting_types(Recipe), *setting_types(BuildConfig)})


@dataclass(frozen=True)
class Inner:
    """Inner things.

    More about them."""

    share: float = 0.5
    """Share of
    the whole."""


@dataclass(frozen=True)
class Outer:
    """Outer things."""

    inner: Inner = field(default_factory=lambda: Inner(share=0.25))
    maybe: Inner | None = None
    """Other things."""
    kind: Literal["a", "b"] | int = "a"
    """Which."""
    sizes: tuple[int, int] = (1, 2)
    """How large."""


def test_settings_have_the_defaults_of_the_component_that_holds_them():
    assert list(settings_of(Outer, "x.")) == [
        Setting("x.inner.share", "number", "`0.25`", "Share of the whole."),
        Setting("x.maybe", "section or null", "`null`", "Other things."),
        Setting("x.maybe.share", "number", "`0.5`", "Share of the whole."),
        Setting("x.kind", "`a`, `b` or integer", "`a`", "Which."),
        Setting("x.sizes", "list of integers", "`[1, 2]`", "How large."),
    ]


def test_a_setting_without_a_docstring_is_refused():
    @dataclass(frozen=True)
    class Silent:
        """One that says nothing."""

        size: int = 1

    with pytest.raises(ValueError, match=r"Silent\.size has no docstring under it"):
        list(settings_of(Silent))
    with pytest.raises(ValueError, match="has no description"):
        in_words(complex)
