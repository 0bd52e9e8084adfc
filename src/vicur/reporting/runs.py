"""A run's folder as reports and diagnostics read it: no model is loaded, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vicur.paths import expand, names_of
from vicur.settings.reading import parse_json, parse_yaml, read_json


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
        return dict(parse_yaml((self.folder / "recipe.yaml").read_text("utf-8")) or {})

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

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 1."""
        return (step - 1) // self.steps_per_epoch + 1

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

    def rollouts(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The training responses with some of their columns, in the order of their steps."""
        for path in self.rollout_files:
            yield from read_columns(path, columns)

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
