"""The problems of a run: every row of the data is read once before the first step."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from vicur.cuebench.generate import write_parquet
from vicur.data.columns import Columns
from vicur.media.images import ImageReader
from vicur.preflight.checks import PROBLEMS
from vicur.run.build import build
from vicur.run.recipe import load_recipe

ROWS = 12


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """Counts rows that are parsed and images that are decoded."""
    counts: Counter[str] = Counter()

    def counted(name, function):
        def call(self, *args):
            counts[name] += 1
            return function(self, *args)

        return call

    monkeypatch.setattr(Columns, "read", counted("parsed rows", Columns.read))
    monkeypatch.setattr(ImageReader, "read", counted("decoded images", ImageReader.read))
    return counts


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.max_prompt_tokens=4000", "data.max_teacher_prompt_tokens=4000"],
        ["objective.grpo={}", "rollout.group_size=2"],
    ],
    ids=["sizes", "limits", "rewards"],
)
def test_every_row_is_parsed_once_before_the_first_step(tmp_path, base_folder, reads, overrides):
    path = tmp_path / "train.parquet"
    write_parquet("segments", "train", ROWS, path)
    settings = [f"student.model={base_folder}", f"data.train={path}", "training.prompts_per_step=4"]
    run = build(load_recipe("cuebench/opsd_cue", [*settings, "data.check_images=3", *overrides]))
    assert reads == {"parsed rows": ROWS, "decoded images": 3}
    run.preflight(run.plan())
    assert reads == {"parsed rows": ROWS + PROBLEMS, "decoded images": 3 + PROBLEMS}


def test_the_preflight_looks_at_problems_with_an_image_first(tmp_path, base_folder):
    rows = [{"problem": "What is 2 + 2?", "answer": "4", "cue": f"There are {i} dots."} for i in range(3)]
    images = tmp_path / "images.parquet"
    write_parquet("segments", "train", 1, images)
    (tmp_path / "text.json").write_text(json.dumps(rows))
    settings = [
        f"student.model={base_folder}",
        f"data.train=[{tmp_path / 'text.json'}, {images}]",
        "training.prompts_per_step=4",
    ]
    run = build(load_recipe("cuebench/opsd_cue", settings))
    assert run.data.with_media == (3,)
    assert "<|image_pad|>" in run.preflight(run.plan()).student_prompt


@pytest.mark.parametrize("train", ["gone.parquet", "gone-*.parquet"])
def test_data_that_do_not_exist(tmp_path, base_folder, monkeypatch, train):
    """Whoever has named none is told how to make some."""
    monkeypatch.chdir(tmp_path)
    settings = [f"student.model={base_folder}"]
    with pytest.raises(ValueError, match=r"gone.*data\.train=FILE\.$"):
        build(load_recipe("cuebench/opsd_cue", [*settings, f"data.train={train}"]))
    with pytest.raises(
        ValueError, match=r"train\.parquet.*data\.train=FILE\..*vicur cuebench make --family segments"
    ):
        build(load_recipe("cuebench/opsd_cue", settings))
