"""A run's folder as reports and diagnostics read it: no model is loaded, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.files import RECIPE_FILE
from vicur.packaged import read_settings
from vicur.paths import expand, names_of
from vicur.settings.reading import parse_json, read_json

Graded = dict[tuple[str, str, str], list[bool]]
"""Whether each response is right, by id, question and gold answer of its problem: data sets of different runs
may share their ids."""


@dataclass(frozen=True)
class RecordedRun:
    """A training run, read from its folder while it runs or afterwards.

    Attributes:
        folder: the folder.
        name: name in tables and figures.

    Raises:
        ValueError: it is not the folder of a run.
    """

    folder: Path
    name: str

    def __post_init__(self) -> None:
        if not (self.folder / "status.json").is_file():
            raise ValueError(f"{self.folder} is not the folder of a run: it has no status.json.")

    @cached_property
    def status(self) -> dict[str, Any]:
        """`status`, `step`, `seconds` by phase, and when it was written."""
        return read_json(self.folder / "status.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every step; null where a number was not finite."""
        return self._lines("metrics.jsonl")

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The accuracies on held-out problems, by step."""
        return self._lines("evaluation.jsonl")

    @cached_property
    def observations(self) -> list[dict[str, Any]]:
        """The measures of `training.observe` on held-out problems, by step."""
        return self._lines("observations.jsonl")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as nested settings."""
        return read_settings(self.folder / RECIPE_FILE)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware and command."""
        return self._json("environment.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        """Number and source of the problems, and what was skipped."""
        return self._json("data.json")

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in which every problem is used once."""
        problems = self.data.get("problems")
        per_step = self.recipe["training"]["prompts_per_step"]
        return max(1, problems // per_step) if problems else len(self.metrics)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, without steps that lack it or where it is not finite."""
        points = [(line["step"], line[name]) for line in self.metrics if is_number(line.get(name))]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def rollout_files(self) -> list[Path]:
        """The files of the training responses, in the order of their steps."""
        return sorted((self.folder / "rollouts").glob("*.parquet"))

    @property
    def evaluation_files(self) -> list[Path]:
        """The responses to held-out problems, in the order of their steps."""
        return sorted((self.folder / "evaluation").glob("step-*.parquet"))

    @property
    def observation_files(self) -> list[Path]:
        """The observed responses to held-out problems, in the order of their steps."""
        return sorted((self.folder / "observations").glob("step-*.parquet"))

    @cached_property
    def graded_before(self) -> Graded:
        """Which responses to held-out problems were right at the first evaluation."""
        files = self.evaluation_files
        return graded(files[0]) if files else {}

    @cached_property
    def graded_after(self) -> Graded:
        """Which were right at the last evaluation; empty if there was only one."""
        files = self.evaluation_files
        return graded(files[-1]) if len(files) > 1 else {}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.is_file():
            return []
        text = path.read_text("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]  # the run may be writing the next one
        return [parse_json(line, finite=False) for line in whole.splitlines()]

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json(path) if path.is_file() else {}


def read_columns(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a parquet file with those of the columns that it has."""
    present = set(pq.read_schema(path).names)
    table: pa.Table = pq.read_table(path, columns=[name for name in columns if name in present])
    return table.to_pylist()


def graded(path: Path) -> Graded:
    """Whether each response of a file that could be graded is right, by problem."""
    problems: Graded = {}
    for row in read_columns(path, ["sample", "question", "answer", "correct"]):
        if row["correct"] is not None:
            key = (row["sample"], row["question"], str(row["answer"]))
            problems.setdefault(key, []).append(row["correct"])
    return problems


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def open_runs(folders: Sequence[str], names: Sequence[str] = ()) -> list[RecordedRun]:
    """Several runs under different names.

    Args:
        folders: their folders.
        names: a name for each; by default the end of its path by which it differs from the others.

    Raises:
        ValueError: a folder is not that of a run, or the names do not fit.
    """
    paths = [Path(expand(folder)) for folder in folders]
    return [RecordedRun(path, name) for path, name in zip(paths, names_of(folders, names), strict=True)]
