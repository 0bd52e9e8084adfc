"""Every shipped recipe passes its preflight, with a tiny checkpoint in place of the real ones."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
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


@pytest.fixture(scope="module")
def with_crops(problems):
    """The same with images for the teacher, those of another problem, and a prompt that shows them."""
    table = pq.read_table(problems)
    others = table["images"].take(pa.array([*range(1, table.num_rows), 0]))
    prompts = [f"Look: <crop>{text}" for text in table["problem"].to_pylist()]
    for column, values in (
        ("teacher_prompt", pa.array(prompts)),
        ("teacher_images", others),
        ("teacher_neg_images", table["images"]),
    ):
        table = table.append_column(column, values)
    path = problems.parent / "with_crops.parquet"
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_dry_runs(name, problems, with_crops, tmp_path, capsys):
    recipe = load_recipe(name)
    if "images(" in recipe.teacher.privilege:
        problems = with_crops
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
