"""Writes a run's folder: the files that plots and reports read.

recipe.yaml           the resolved recipe; `vicur train` can run it again
environment.json      versions, hardware, command
metrics.jsonl         one line per step
rollouts/*.parquet    every response with its token statistics
validation/*.parquet  responses to held-out problems before and after training, if there are any
memory.json           the estimated and the measured peak
status.json           running, finished, interrupted or failed; the last step; seconds by phase
checkpoints/          models
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from vicur.data.sample import Sample
from vicur.files import write_json, write_rows, write_whole
from vicur.models.devices import peak_memory
from vicur.rewards.grader import Grade
from vicur.rollouts.rollout import Rollouts
from vicur.training.folder import check_run_folder, remove_run

Status = Literal["running", "finished", "interrupted", "failed"]
STEPS_PER_FILE = 20


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that the numbers of a run depend on."""
    names = "vicur torch torchvision transformers numpy pillow peft datasets math-verify av"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names.split()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Records:
    """Writes a run's folder. As a context manager it leaves complete files, even after an exception.

    Args:
        folder: folder to write to; it is created.
        recipe: the resolved recipe as YAML text.
        device: device of the run.
        overwrite: delete the run that the folder holds.

    Raises:
        ValueError: the folder already holds a run, or cannot be created.
    """

    def __init__(
        self, folder: Path, recipe: str, device: torch.device | None = None, *, overwrite: bool = False
    ) -> None:
        self.folder, self.device = folder, device or torch.device("cpu")
        check_run_folder(folder, overwrite=overwrite)
        if overwrite:
            remove_run(folder)
        try:
            (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"Output folder {folder} cannot be created: {error.strerror}.") from error
        write_whole(folder / "recipe.yaml", lambda partial: partial.write_text(recipe))
        write_json(folder / "environment.json", environment(self.device))
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._rollouts: list[dict[str, Any]] = []
        self._step = 0
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, Any] = {"device": str(self.device)}
        self._write_status("running")

    def expect_memory(self, parts: Mapping[str, float], available: int | None) -> None:
        """Record the estimated peak memory; the measured peak is added at the end.

        Args:
            parts: bytes by purpose.
            available: bytes of the device.
        """
        self._memory |= {"estimate": sum(parts.values()), "parts": dict(parts), "available": available}
        write_json(self.folder / "memory.json", self._memory)

    def count_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time of a phase outside the steps, e.g. saving."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def write_validation(
        self,
        name: Literal["before", "after"],
        samples: Sequence[Sample],
        responses: Sequence[str],
        correct: Sequence[bool | None],
    ) -> None:
        """Write the responses to held-out problems.

        Args:
            name: name of the file.
            samples: the problems; outlines are enough.
            responses, correct: one entry for each problem.
        """
        rows = [
            {
                "sample": sample.id,
                "question": _question(sample),
                "answer": sample.answer,
                "response": response,
                "correct": is_correct,
            }
            for sample, response, is_correct in zip(samples, responses, correct, strict=True)
        ]
        types = {"correct": pa.bool_(), "answer": pa.string()}
        write_rows(self.folder / "validation" / f"{name}.parquet", rows, types)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line of metrics, flushed when this returns."""
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
        """Record a step's responses; `tokens` are per-token numbers in the flat order."""
        lengths = [len(response.ids) for response in rollouts.flat_responses]
        split = {name: tensor.cpu().float().split(lengths) for name, tensor in tokens.items()}
        samples = [s for s, group in zip(rollouts.samples, rollouts.responses, strict=True) for _ in group]
        texts = rollouts.flat_texts
        for i, response in enumerate(rollouts.flat_responses):
            grade = grades[i]
            row = {
                "step": step,
                "sample": samples[i].id,
                "question": _question(samples[i]),
                "answer": samples[i].answer,
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
        types = {"correct": pa.bool_(), "reward": pa.float64(), "answer": pa.string()}
        write_rows(path, self._rollouts, types)
        self._rollouts = []

    def _write_status(self, status: Status) -> None:
        seconds = {"total": time.perf_counter() - self._started, **self._seconds}
        write_json(self.folder / "status.json", {"status": status, "step": self._step, "seconds": seconds})

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
            peak = peak_memory(self.device)
            write_json(self.folder / "memory.json", self._memory | {"peak": peak})


def _question(sample: Sample) -> str:
    """The text of the last message that the student is shown."""
    return " ".join(part["text"] for part in sample.messages[-1]["content"] if part["type"] == "text").strip()
