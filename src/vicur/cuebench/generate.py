"""CueBench as data: splits, samples, and parquet files in the geometry3k convention."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vicur.cuebench.scenes import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    PRETRAINING,
    ChordsScene,
    Scene,
    SegmentsScene,
)
from vicur.data.sample import Privilege, Sample
from vicur.files import write_rows
from vicur.settings.section import PathText, Seed, section

Family = Literal["segments", "chords"]
Split = Literal["pretrain", "train", "validation", "test", "test_ood"]

FAMILIES: tuple[Family, ...] = ("segments", "chords")
BUCKETS: dict[Split, range] = {
    "pretrain": range(0, 40),
    "train": range(40, 75),
    "validation": range(75, 82),
    "test": range(82, 91),
    "test_ood": range(91, 100),
}
"""A scene belongs to the split whose range holds its hash modulo 100: splits cannot overlap."""

MOST_PROBLEMS = 10**7
"""Maximum number of problems in a file. All of them are in memory before it is written."""


@section
class MakeSettings:
    """The settings of `vicur cuebench make`."""

    n: Annotated[int, Field(ge=1, le=MOST_PROBLEMS)]
    """Number of problems."""
    output: PathText
    """Parquet file to write."""
    family: Family = "segments"
    """Kind of scene: coloured segments with digits, or crossing chords of a circle."""
    split: Split = "train"
    """Split of the problems. Splits share no scene."""
    seed: Seed = 0
    """Seed for drawing the scenes."""
    overwrite: bool = False
    """Whether to replace an output file that exists."""


MOST_MISSES = 100_000
"""A split counts as exhausted after this many consecutive draws without a new scene."""


def scenes(family: Family, split: Split, seed: int = 0) -> Iterator[Scene]:
    """An endless stream of different scenes of one split, the same for the same seed.

    Raises:
        ValueError: there are no more new scenes (the chords family is finite).
    """
    random = np.random.default_rng([seed, *split.encode()])
    seen: set[str] = set()
    misses = 0
    while misses < MOST_MISSES:
        scene = _draw_scene(family, split, random)
        key = scene.key()
        if int(key, 16) % 100 not in BUCKETS[split] or key in seen:
            misses += 1
            continue
        misses = 0
        seen.add(key)
        yield scene
    raise ValueError(f"The {family} family has only {len(seen)} different scenes for {split}.")


def _draw_scene(family: Family, split: Split, random: np.random.Generator) -> Scene:
    if family == "segments":
        style = {"pretrain": PRETRAINING, "test_ood": OUT_OF_DOMAIN}.get(split, IN_DOMAIN)
        return SegmentsScene.sample(random, style)
    return ChordsScene.sample(random, noise=24.0 if split == "test_ood" else 6.0)


def to_sample(scene: Scene) -> Sample:
    """The scene as a problem, without going through a file."""
    content = [{"type": "image"}, {"type": "text", "text": scene.question}]
    return Sample(
        id=scene.key(),
        messages=({"role": "user", "content": content},),
        images=(scene.draw(),),
        answer=scene.answer,
        privilege=Privilege(
            answer=scene.answer,
            rationale=scene.rationale,
            cue=scene.cue,
            regions=(tuple(box.box for box in scene.cue_boxes()),),
        ),
        target_response=scene.solution,
        meta={"cue_boxes": [[b.name, b.value, *b.box] for b in scene.cue_boxes()]},
    )


def write_parquet(
    family: Family, split: Split, count: int, out: Path, *, seed: int = 0, replace: bool = True
) -> None:
    """Write problems in the geometry3k convention, with additional columns for privileges and boxes.

    Columns: `images` (list of {bytes, path}), `problem` (with `<image>`), `answer`, and `cue`,
    `rationale`, `target_response`, `id`, `cue_boxes` (JSON: name, value, left, top, right, bottom
    in pixels). The file is written completely or not at all.

    Args:
        family, split, seed: as in `scenes`.
        count: number of problems.
        out: the file.
        replace: whether a file that exists is replaced.

    Raises:
        OSError: it exists although it may not be replaced, or cannot be written.
    """
    stream = scenes(family, split, seed)
    write_rows(out, [_row(next(stream)) for _ in range(count)], replace=replace)


def _row(scene: Scene) -> dict[str, Any]:
    png = io.BytesIO()
    scene.draw().save(png, format="PNG")
    boxes = [[b.name, b.value, *b.box] for b in scene.cue_boxes()]
    return {
        "id": scene.key(),
        "images": [{"bytes": png.getvalue(), "path": None}],
        "problem": f"<image>{scene.question}",
        "answer": scene.answer,
        "cue": scene.cue,
        "rationale": scene.rationale,
        "target_response": scene.solution,
        "cue_boxes": json.dumps(boxes),
    }


def majority_baseline(train: list[Scene], test: list[Scene]) -> float:
    """Accuracy, 0-1, of guessing from the question's text alone.

    The guess is the most frequent answer in `train` to the same question, whatever its colours.
    """
    counts: dict[str, dict[str, int]] = {}
    for scene in train:
        answers = counts.setdefault(_pattern(scene), {})
        answers[scene.answer] = answers.get(scene.answer, 0) + 1
    guesses = {pattern: max(answers, key=answers.__getitem__) for pattern, answers in counts.items()}
    return sum(guesses.get(_pattern(s)) == s.answer for s in test) / len(test)


def _pattern(scene: Scene) -> str:
    return " ".join(scene.question.split()[:5])
