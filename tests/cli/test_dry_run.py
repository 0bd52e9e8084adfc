"""Every shipped recipe passes its preflight, with a tiny checkpoint in place of the real ones."""

from __future__ import annotations

import pytest

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.packaged import resolve_packaged
from vicur.run.recipe import load_recipe

RECIPES = resolve_packaged("recipes")
NAMES = sorted(
    path.relative_to(RECIPES).with_suffix("").as_posix()
    for path in RECIPES.rglob("*.yaml")
    if path.parent.name != "bases"
)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """As many as the largest rollout batch."""
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_parquet("segments", "train", 512, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_dry_runs(name, problems, tmp_path, capsys):
    recipe = load_recipe(name)
    overrides = [
        "student.model=vicur:tiny-student",
        f"data.train={problems}",
        "data.image_dir=null",
        f"training.output={tmp_path / 'run'}",
        "rollout.sampling.max_new_tokens=64",  # the tiny checkpoint knows 4,096 positions
    ]
    if name != "va_opd/geometry3k_8b/va_opd":  # one goes with its 1,024 visual tokens an image, for all
        overrides.append("data.min_pixels=null")
    if recipe.teacher.model != "self":
        overrides.append("teacher.model=vicur:tiny-teacher")
    assert main(["train", name, "--dry-run", *overrides]) == 0
    said = capsys.readouterr().out
    assert "Student's prompt" in said and "FAILED" not in said
    hints = {part for part in ("cue", "answer", "rationale") if part in recipe.teacher.privilege}
    assert ("[Hint]:" in said) == (recipe.has_teacher and bool(hints))
    assert not (tmp_path / "run").exists()
