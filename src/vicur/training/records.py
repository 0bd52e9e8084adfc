"""A run is a folder: what was done, in files that plots and reports read.

recipe.yaml          the resolved recipe, which `vicur train` takes again
environment.json     versions, hardware, command
metrics.jsonl        one line a step
rollouts/*.parquet   every response with its token statistics
status.json          running, finished, interrupted or failed, and how far it came
checkpoints/         models
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from vicur.data.files import write_json, write_rows, write_whole
from vicur.paths import check_folder
from vicur.rewards.grader import Grade
from vicur.rollouts.rollout import Rollouts

Status = Literal["running", "finished", "interrupted", "failed"]
STEPS_PER_FILE = 20


def environment() -> dict[str, Any]:
    """Versions and hardware that the numbers of a run depend on."""
    names = "vicur torch torchvision transformers numpy pillow peft datasets math-verify av"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names.split()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    """None where an extra is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Records:
    """Writes a run's folder. A context: leaving it, however, leaves readable files.

    Args:
        folder: where; created.
        recipe: the resolved recipe as YAML text.

    Raises:
        ValueError: the folder already holds a run, or cannot be made.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.check_free(folder)
        try:
            (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"Output folder {folder} cannot be made: {error.strerror}.") from error
        write_whole(folder / "recipe.yaml", lambda partial: partial.write_text(recipe))
        write_json(folder / "environment.json", environment())
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._rollouts: list[dict[str, Any]] = []
        self._step = 0
        self._write_status("running")

    @staticmethod
    def check_free(folder: Path) -> None:
        """Make sure that a folder holds no run, and that it can be written to.

        Raises:
            ValueError: it does, or cannot.
        """
        check_folder(folder, "training.output")
        if (folder / "metrics.jsonl").exists():
            raise ValueError(f"{folder} already holds a run. Choose another output folder or remove it.")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics, on disk when this returns."""
        self._step = step
        try:
            self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise OSError(f"{self._metrics.name} cannot be written: {error.strerror}.") from error

    def write_rollouts(
        self,
        step: int,
        rollouts: Rollouts,
        tokens: Mapping[str, Tensor],
        grades: Sequence[Grade | None],
    ) -> None:
        """Keep a step's responses; `tokens` are per-token numbers in the flat order."""
        lengths = [len(response.ids) for response in rollouts.flat_responses]
        split = {name: tensor.cpu().float().split(lengths) for name, tensor in tokens.items()}
        ids = [s.id for s, own in zip(rollouts.samples, rollouts.responses, strict=True) for _ in own]
        texts = rollouts.flat_texts
        for i, response in enumerate(rollouts.flat_responses):
            grade = grades[i]
            row = {
                "step": step,
                "sample": ids[i],
                "response": texts[i],
                "finish_reason": response.finish_reason,
                "reward": None if grade is None else grade.reward,
                "correct": None if grade is None else grade.correct,
                "ids": response.ids.tolist(),
            }
            self._rollouts.append(row | {name: parts[i].tolist() for name, parts in split.items()})
        if step % STEPS_PER_FILE == 0:
            self._flush_rollouts()

    def _flush_rollouts(self) -> None:
        if not self._rollouts:
            return
        path = self.folder / "rollouts" / f"until-step-{self._rollouts[-1]['step']:06d}.parquet"
        write_rows(path, self._rollouts, {"correct": pa.bool_(), "reward": pa.float64()})
        self._rollouts = []

    def _write_status(self, status: Status) -> None:
        write_json(self.folder / "status.json", {"status": status, "step": self._step})

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._metrics.close()
        status: Status = "failed"
        try:
            self._flush_rollouts()
            if kind is None:
                status = "finished"
            elif issubclass(kind, KeyboardInterrupt):
                status = "interrupted"
        finally:
            self._write_status(status)
