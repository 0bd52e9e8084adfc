"""What a study compares: several recipes on CueBench, and models that are not trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from vicur.cuebench.generate import MOST_PROBLEMS, Split
from vicur.data.views import teacher_view
from vicur.packaged import display_path, find_packaged, read_settings
from vicur.rewards.grader import RewardConfig
from vicur.run.recipe import Recipe, load_recipe, recipe_of
from vicur.settings.schema import Layer, schema_of
from vicur.settings.section import JsonTable, PathText, SettingsError, Text, section

Part = TypeVar("Part")
DOMAINS: dict[str, Split] = {"in_domain": "test", "out_of_domain": "test_ood"}
BASE = "base"
"""The untrained row that all others are compared with."""
DATA, EVALUATION = "data", "evaluation"
"""Folders in that of a seed, beside those of the trained rows, which have the rows' names."""
_ROW = re.compile(r"[A-Za-z0-9][\w.+ -]{0,99}", re.ASCII)


def _row_name(name: str) -> str:
    if not _ROW.fullmatch(name):
        expected = (
            "up to 100 letters without accents, digits, spaces and _ . + -, the first a letter or digit"
        )
        raise PydanticCustomError("name", expected)  # type: ignore[arg-type]
    if name.lower() in (DATA, EVALUATION):
        raise PydanticCustomError("name", "another name than those of a study's own folders")
    return name


RowName = Annotated[Text, AfterValidator(_row_name)]
"""The name of a row. Files and folders are named after it."""
Problems = Annotated[int, Field(ge=1, le=MOST_PROBLEMS)]
"""A number of problems to generate."""


@section
class Untrained:
    """A model that is only evaluated."""

    title: Text
    """Title in the table."""
    model: PathText
    """Checkpoint of the model."""
    privilege: Text = "none"
    """What it is shown at test time, as for teacher.privilege; "none" for the plain problem."""

    def __post_init__(self) -> None:
        teacher_view(self.privilege, setting="privilege")


@dataclass(frozen=True)
class Trained:
    """A recipe that is run and evaluated."""

    title: str
    recipe: Recipe


@section
class _TrainedRow:
    """A trained row of a study's file: the name of a recipe, or settings that differ from the base's."""

    title: Text
    recipe: PathText | None = None
    settings: JsonTable | None = None

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.settings is None):
            raise ValueError("a trained row needs either a recipe or settings.")


@section
class _StudyFile:
    """The file of a study; its rows are read one by one."""

    problems: Problems
    untrained: dict[RowName, JsonTable]
    trained: dict[RowName, JsonTable]
    base: JsonTable = field(default_factory=dict)
    compare: list[tuple[Text, Text]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if BASE not in self.untrained:
            raise ValueError(f"untrained must have a row {BASE!r}, with which all others are compared.")
        if twice := set(self.untrained) & set(self.trained):
            raise ValueError(f"the row {min(twice)} is both untrained and trained.")
        named = {name for pair in self.compare for name in pair}
        if unknown := named - set(self.untrained) - set(self.trained):
            raise ValueError(f"compare names {min(unknown)}, which is not a row.")


@dataclass(frozen=True)
class Study:
    """The definition of a comparison.

    Attributes:
        problems: number of problems to train on; methods that need more see them again.
        untrained, trained: the rows of the table, by name.
        compare: pairs of rows whose difference is reported besides the differences to the base.
        rewards: settings for grading the answers of all rows.
    """

    problems: int
    untrained: Mapping[str, Untrained]
    trained: Mapping[str, Trained]
    compare: tuple[tuple[str, str], ...] = ()
    rewards: RewardConfig = field(default_factory=RewardConfig)


def load_study(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study: a YAML file, or the name of a packaged one.

    The file has the number of training `problems`, `untrained` rows, `trained` rows with a `recipe` or
    with `settings` that differ from those of `base`, and pairs to `compare`. The answers of all rows are
    graded by the `rewards` of the trained rows, which must agree.

    Args:
        path: the file or the name.
        overrides: `key=value`, for every trained row.

    Raises:
        SettingsError: there is no such study, or it is not valid.
    """
    file = find_packaged(path, "studies")
    source = display_path(file)
    written = _load(_StudyFile, read_settings(file, may_be_empty=True), source)
    untrained = {name: _load(Untrained, row, f"{source}, {name}") for name, row in written.untrained.items()}
    trained = {
        name: _trained(written.base, row, overrides, f"{source}, {name}")
        for name, row in written.trained.items()
    }
    # Keyed by their text, because reward settings that hold a list cannot be hashed.
    rules = {str(row.recipe.rewards): row.recipe.rewards for row in trained.values()}
    if len(rules) > 1:
        raise SettingsError(
            f"{source}: the trained rows have different rewards; all answers must be graded alike."
        )
    rewards = next(iter(rules.values()), RewardConfig())
    return Study(written.problems, untrained, trained, tuple(written.compare), rewards)


def _trained(
    base: dict[str, Any], settings: dict[str, Any], overrides: Sequence[str], source: str
) -> Trained:
    """A trained row.

    Args:
        base: settings of the study's base.
        settings: the row as the file has it.
        overrides: as in `load_study`.
        source: the file and the row, for messages.
    """
    row = _load(_TrainedRow, settings, source)
    if row.recipe is None:
        assert row.settings is not None, "a row has a recipe or settings"
        recipe = recipe_of(base, row.settings, source=source, overrides=overrides)
    else:
        with _blaming(source):
            recipe = load_recipe(row.recipe, overrides)
    return Trained(row.title, recipe)


def _load(part: type[Part], settings: dict[str, Any], source: str) -> Part:
    with _blaming(source):
        return schema_of(part).load([Layer(source, settings)])


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Name the file and the row in errors that do not name them."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(source) else f"{source}: {error}") from error
