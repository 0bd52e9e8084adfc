"""A paper's scores beside ours: harness and judge are named, and two harnesses never share a table.

The published score of a row is in the header of its packaged recipe. Scores of different harnesses differ by
prompts, extraction and judge, often by more than methods do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicur.packaged import resolve_packaged
from vicur.reporting.runs import is_number
from vicur.settings.reading import Unreadable, read_json
from vicur.wording import listed

OURS = "vicur eval"
HARNESSES = {
    "ViCuR": ("VLMEvalKit", "the harness's own"),
    "VA-OPD": ("the benchmarks' official protocols; harness not stated", "GPT-4o"),
    "VGS": ("not stated", "not stated"),
}
"""Harness and judge of each paper's tables."""
_SCORE = re.compile(r"(?:^|[:;,(] ?|, )([A-Z][\w.+-]*(?: [\w.+-]+)*?) (\d+\.\d+)")
_ON = re.compile(r"(\d+\.\d+) accuracy in % on ([A-Z][\w-]+)")


@dataclass(frozen=True)
class Score:
    """One accuracy in percent.

    Attributes:
        benchmark: its name.
        value: the accuracy.
        interval: the 95 % interval; None if it is not known.
        problems: number of problems; None if it is not known.
    """

    benchmark: str
    value: float
    interval: tuple[float, float] | None = None
    problems: int | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one harness.

    Attributes:
        title: whose scores they are.
        harness, judge: how they were made.
        scores: the scores.
    """

    title: str
    harness: str
    judge: str
    scores: tuple[Score, ...]


def published_scores(recipe: str) -> ScoreTable | None:
    """The scores of the paper's row that a packaged recipe trains; None for any other recipe.

    Args:
        recipe: name of the recipe, e.g. "va_opd/geometry3k_8b/va_opd".
    """
    file = resolve_packaged("recipes") / f"{recipe}.yaml"
    if not file.is_file():
        return None
    header = _header(file.read_text("utf-8"))
    paper = header.get("Paper", "").split(" (")[0]
    text = header.get("Score", "")
    pairs = [(name, float(value)) for name, value in _SCORE.findall(text)]
    pairs += [(name, float(value)) for value, name in _ON.findall(text)]
    if paper not in HARNESSES or not pairs:
        return None
    harness, judge = HARNESSES[paper]
    title = f"{paper}, table {header.get('Table', '?')}, {header.get('Row', '?')} (published)"
    return ScoreTable(title, harness, judge, tuple(Score(name, value) for name, value in dict(pairs).items()))


def _header(text: str) -> dict[str, str]:
    """The labelled parts of a recipe's header."""
    parts: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = line.removeprefix("#")
        if match := re.match(r" (\w+): +(.*)", content):
            label, content = match[1], match[2]
            parts[label] = ""
        if label:
            parts[label] = f"{parts[label]} {content.strip()}".strip()
    return parts


def our_scores(run: str, results: Sequence[str]) -> list[ScoreTable]:
    """Scores of ours, one table for each harness.

    Args:
        run: name of the run.
        results: "BENCHMARK=FILE": the summary.json of `vicur eval`, or a results file of lmms-eval.

    Raises:
        ValueError: an entry is not of this form, or a file holds no scores.
    """
    tables: dict[str, list[Score]] = {}
    for entry in results:
        benchmark, equals, path = entry.partition("=")
        if not equals or not benchmark or not path:
            raise ValueError(f"against_paper takes BENCHMARK=FILE, not {entry!r}.")
        harness, score = _read(benchmark, Path(path))
        tables.setdefault(harness, []).append(score)
    judges = {OURS: "by rules (docs/grading.md)"}
    return [
        ScoreTable(run, harness, judges.get(harness, "the harness's own"), tuple(scores))
        for harness, scores in tables.items()
    ]


def _read(benchmark: str, path: Path) -> tuple[str, Score]:
    """The harness of a results file and the score in it.

    Raises:
        ValueError: it holds no scores.
    """
    try:
        content = read_json(path)
    except Unreadable as error:
        raise ValueError(f"{path} {error}") from error
    if content.get("graded_by") == "vicur":
        arms = [arm for arm in content["arms"] if arm.get("control") is None]
        if len(arms) != 1:
            raise ValueError(f"{path} has {len(arms)} models; give a file for each.")
        (arm,) = arms
        if arm["accuracy"] is None:
            raise ValueError(f"{path} has no accuracy: no response could be graded.")
        accuracy = arm["accuracy"]
        interval = (accuracy["low"], accuracy["high"])
        return OURS, Score(benchmark, accuracy["value"], interval, arm["problems"])
    return _of_lmms_eval(benchmark, path, content.get("results"))


def _of_lmms_eval(benchmark: str, path: Path, results: Any) -> tuple[str, Score]:
    """The first metric, named METRIC,FILTER, of the only task of a results file of lmms-eval.

    Raises:
        ValueError: it is no such file, it has several tasks, or its task has no metric that is a number.
    """
    if not isinstance(results, dict) or not results:
        raise ValueError(f"{path} is neither a summary.json of vicur eval nor a results file of lmms-eval.")
    if len(results) > 1:
        raise ValueError(
            f"{path} has several tasks, {listed(list(results))}; give a file for each benchmark."
        )
    (numbers,) = results.values()
    for name, value in numbers.items():
        if "," in name and "_stderr," not in name and is_number(value):
            scale = 100.0 if 0 <= value <= 1 else 1.0  # most metrics are shares, some are percentages
            return f"lmms-eval, {name}", Score(benchmark, scale * value)
    raise ValueError(f"{path} has no metric that is a number.")


def tables_against_paper(run: str, recipe: str, results: Sequence[str]) -> list[ScoreTable]:
    """Our tables, one for each harness, and the paper's.

    Args:
        run: name of the run.
        recipe: name of its recipe.
        results: as in `our_scores`.

    Raises:
        ValueError: a results file cannot be read.
    """
    tables = our_scores(run, results)
    published = published_scores(recipe)
    return [*tables, *([] if published is None else [published])]
