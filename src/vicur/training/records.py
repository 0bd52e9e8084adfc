"""Writes a run's folder: the files that plots and reports read.

recipe.yaml           the resolved recipe; `vicur train` can run it again
environment.json      versions, hardware, command
metrics.jsonl         one line per step
rollouts/*.parquet    every response with its token statistics
evaluation.jsonl      accuracy on held-out problems, if there are any: before, during and after training
evaluation/*.parquet  the responses to them
observations.jsonl    measures of responses to held-out problems (training.observe)
observations/*.parquet  the responses with their measures, token by token
tokenizer.json        the tokenizer, for the texts of tokens in reports
report.html, figures/ the report
data.json             number and source of the problems, and what was skipped
memory.json           the estimated and the measured peak
status.json           running, finished, interrupted or failed; the last step; seconds; time of writing
checkpoints/          checkpoints to resume from, and the trained model
nonfinite/            what reproduces an update that was skipped, see `vicur replay`
lock                  locked while the run writes
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from vicur import distributed
from vicur.data.sample import Sample
from vicur.evaluation.results import Evaluation
from vicur.files import RECIPE_FILE, is_still, reason_of, write_json, write_rows, write_text, write_whole
from vicur.models.devices import peak_memory
from vicur.rewards.grader import Grade
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Rollouts
from vicur.settings.reading import parse_json, read_json
from vicur.training.checkpoint import FINAL, FOLDER
from vicur.training.folder import check_run_folder, locked, remove_run
from vicur.training.state import RunState
from vicur.training.trackers import Trackers

Status = Literal["running", "finished", "interrupted", "failed"]
STEPS_PER_FILE = 20
RESPONSE_TYPES = {"correct": pa.bool_(), "reward": pa.float64(), "answer": pa.string()}
"""Types of the columns of responses that may hold only None."""


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that the numbers of a run depend on."""
    names = (
        "vicur torch torchvision transformers numpy pillow peft torchao bitsandbytes datasets math-verify av"
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names.split()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "processes_on_this_node": distributed.processes_on_this_node(),
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

    With several ranks only the main one writes; the others do nothing.

    Attributes:
        folder: the folder.
        trackers: experiment trackers that get the numbers, too; none until they are set.
        latest: the responses of the last step, as rows; empty on other ranks than the main one.

    Args:
        folder: folder to write to; it is created.
        recipe: the resolved recipe as YAML text.
        device: device of the run.
        overwrite: delete the run that the folder holds.
        resumed: state from which the run in the folder continues; its records are cut back to it.

    Raises:
        ValueError: the folder already holds a run, is being written by another, or cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        device: torch.device | None = None,
        *,
        overwrite: bool = False,
        resumed: RunState | None = None,
    ) -> None:
        self.folder, self.device = folder, device or torch.device("cpu")
        self.trackers = Trackers()
        self._writes = distributed.is_main()
        self._rollouts: list[dict[str, Any]] = []
        self.latest: list[dict[str, Any]] = []
        self._status: Status = "running"
        self._step = 0 if resumed is None else resumed.step
        self._seconds = {} if resumed is None else dict(resumed.seconds)
        self._started = time.perf_counter() - self._seconds.pop("total", 0.0)
        self._memory: dict[str, Any] = {"device": str(self.device)}
        self._open_files = ExitStack()
        distributed.main_only(lambda: self._open(recipe, overwrite, resumed))

    def _open(self, recipe: str, overwrite: bool, resumed: RunState | None) -> None:
        if resumed is None:
            check_run_folder(self.folder, overwrite=overwrite)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"Output folder {self.folder} cannot be created: {error.strerror}.") from error
        self._open_files.enter_context(locked(self.folder))
        environments = [environment(self.device)]
        if resumed is not None:
            cut_back(self.folder, resumed)
            environments = [*_environments(self.folder), {"step": resumed.step, **environments[0]}]
        elif overwrite:
            remove_run(self.folder)
        # First, as a folder without it is not that of a run, which could be resumed.
        write_text(self.folder / RECIPE_FILE, recipe)
        (self.folder / "rollouts").mkdir(exist_ok=True)
        first, *later = environments
        write_json(self.folder / "environment.json", first | ({"resumed": later} if later else {}))
        self._metrics = self._open_files.enter_context((self.folder / "metrics.jsonl").open("a"))
        self._evaluation = self._open_files.enter_context((self.folder / "evaluation.jsonl").open("a"))
        self._observations = self._open_files.enter_context((self.folder / "observations.jsonl").open("a"))
        self._write_status()

    def expect_memory(self, parts: Mapping[str, float], available: int | None) -> None:
        """Record the estimated peak memory; the measured peak is added at the end.

        Args:
            parts: bytes by purpose.
            available: bytes of the device.
        """
        self._memory |= {"estimate": sum(parts.values()), "parts": dict(parts), "available": available}
        if self._writes:
            write_json(self.folder / "memory.json", self._memory)

    def count_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time of a phase outside the steps, e.g. saving."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the run so far, `total`, and of its phases outside the steps."""
        return {"total": time.perf_counter() - self._started, **self._seconds}

    def save_tokenizer(self, tokenizer: Any) -> None:
        """Save a fast tokenizer, with which reports turn ids into the texts of tokens."""
        if self._writes:
            write_text(self.folder / "tokenizer.json", tokenizer.backend_tokenizer.to_str())

    def describe_data(self, description: Mapping[str, Any]) -> None:
        """Record where the problems come from and how many there are, JSON-serialisable."""
        if self._writes:
            write_json(self.folder / "data.json", dict(description))

    def write_evaluation(
        self, step: int, evaluation: Evaluation, samples: Sequence[Sample], sampling: SamplingConfig
    ) -> None:
        """Write the responses to held-out problems and their accuracy.

        Args:
            step: steps finished before.
            evaluation: the graded responses.
            samples: the problem of each response; outlines are enough.
            sampling: sampling of the responses, which a resumed run may have changed.
        """
        if not self._writes:
            return
        rows = [
            {
                "sample": sample.id,
                "question": _question(sample),
                "answer": sample.answer,
                "response": stored.response,
                "extracted": answer.verdict.extracted,
                "correct": answer.verdict.correct,
                "number": stored.number,
                "finish_reason": stored.finish_reason,
                "response_tokens": stored.response_tokens,
            }
            for sample, answer, stored in zip(samples, evaluation.answers, evaluation.stored, strict=True)
        ]
        types = {"correct": pa.bool_(), "answer": pa.string(), "extracted": pa.string()}
        write_rows(self.folder / "evaluation" / f"step-{step:06d}.parquet", rows, types)
        line = {"step": step, "seconds": self.seconds["total"], **_line_of(evaluation)}
        used = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
        _append(self._evaluation, line | used)
        self.trackers.log(step, "evaluate", line)

    def write_observation(
        self,
        step: int,
        summary: Mapping[str, float],
        rollouts: Rollouts,
        tokens: Mapping[str, Tensor],
        grades: Sequence[Grade | None],
    ) -> None:
        """Write responses to held-out problems with the measures of their tokens, and the means of these."""
        if not self._writes:
            return
        rows = _response_rows(step, rollouts, tokens, grades)
        write_rows(self.folder / "observations" / f"step-{step:06d}.parquet", rows, RESPONSE_TYPES)
        count = {"responses": len(rows), "tokens": sum(len(row["ids"]) for row in rows)}
        _append(self._observations, {"step": step, "seconds": self.seconds["total"], **count, **summary})
        self.trackers.log(step, "observe", summary)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line of metrics, flushed when this returns. A number that is not finite becomes null."""
        self._step = step
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append(self._metrics, {"step": step, **finite})
        self.trackers.log(step, "train", metrics)
        self._write_status()

    def write_rollouts(
        self,
        step: int,
        rollouts: Rollouts,
        tokens: Mapping[str, Tensor],
        grades: Sequence[Grade | None],
    ) -> None:
        """Record a step's responses; `tokens` are per-token numbers in the flat order."""
        if not self._writes:
            return
        self.latest = _response_rows(step, rollouts, tokens, grades)
        self._rollouts += self.latest
        if step % STEPS_PER_FILE == 0:
            self.flush()

    def flush(self) -> None:
        """Write the rollouts of the last steps; done before each checkpoint, so that a file ends there."""
        if not self._rollouts:
            return
        path = self.folder / "rollouts" / f"until-step-{self._rollouts[-1]['step']:06d}.parquet"
        write_rows(path, self._rollouts, RESPONSE_TYPES)
        self._rollouts = []

    def _write_status(self) -> None:
        status = {"status": self._status, "step": self._step, "seconds": self.seconds}
        write_json(self.folder / "status.json", status | {"updated": datetime.now(UTC).isoformat()})

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._status = "failed"
        if not self._writes:
            return
        with self._open_files:
            if is_still(self._metrics.fileno(), self.folder / "metrics.jsonl"):  # the folder was not deleted
                self._finish(kind)

    def _finish(self, kind: type[BaseException] | None) -> None:
        try:
            self.flush()
            if kind is None:
                self._status = "finished"
            elif issubclass(kind, KeyboardInterrupt):
                self._status = "interrupted"
        finally:
            self._write_status()
            write_json(self.folder / "memory.json", self._memory | {"peak": peak_memory(self.device)})

    def finish_trackers(self) -> None:
        """Close the trackers, and tell them how the run ended; after its records are closed."""
        self.trackers.finish("failed" if self._status == "running" else self._status)


def cut_back(folder: Path, state: RunState) -> None:
    """Delete what a run recorded after a state, so that it can continue from there.

    Raises:
        OSError: a file cannot be read or written.
    """
    last = {"metrics": state.step, "evaluation": state.evaluated, "observations": state.observed}
    for name, step in last.items():
        file = folder / f"{name}.jsonl"
        write_whole(file, partial(_copy_lines, file, step))
    last |= {"rollouts": state.step}
    for path in [path for name in last for path in (folder / name).glob("*")]:
        number = path.stem.rpartition("-")[2]
        most = last[path.parent.name]
        if path.suffix != ".parquet" or not number.isdigit() or int(number) > most:
            path.unlink()
    for path in (folder / "nonfinite").glob("*step-*"):
        number = path.name.split("-")[1]
        if not number.isdigit() or int(number) > state.step:
            shutil.rmtree(path)
    for name in ("summary.json", "summary.md"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER / FINAL, ignore_errors=True)


def _copy_lines(path: Path, step: int, copy: Path) -> None:
    copy.write_text("".join(_whole_lines(path, step)))


def _whole_lines(path: Path, step: int) -> Iterator[str]:
    """The lines of a file up to a step; a line that was torn by a kill is left out."""
    if not path.is_file():
        return
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            if parse_json(line, finite=False)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            return


def _environments(folder: Path) -> list[dict[str, Any]]:
    """The environments in which a run has run so far."""
    path = folder / "environment.json"
    if not path.is_file():
        return []
    first = read_json(path)
    return [{key: value for key, value in first.items() if key != "resumed"}, *first.get("resumed", [])]


def _append(file: IO[str], line: Mapping[str, Any]) -> None:
    """Append a line of JSON.

    Raises:
        OSError: it cannot be written, or the file was deleted during the run.
    """
    try:
        file.write(json.dumps(line) + "\n")
        file.flush()
    except OSError as error:
        raise OSError(f"{file.name} cannot be written: {reason_of(error)}.") from error
    if not is_still(file.fileno(), Path(file.name)):
        raise OSError(f"{file.name} was deleted during the run.")


def _line_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation in numbers; without an accuracy if no response could be graded."""
    line = evaluation.numbers()
    if evaluation.by_problem:
        accuracy = evaluation.accuracy
        line |= {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
    return line


def _response_rows(
    step: int, rollouts: Rollouts, tokens: Mapping[str, Tensor], grades: Sequence[Grade | None]
) -> list[dict[str, Any]]:
    """A row for each response; `tokens` are per-token numbers in the flat order."""
    lengths = [len(response.ids) for response in rollouts.flat_responses]
    split = {name: tensor.cpu().float().split(lengths) for name, tensor in tokens.items()}
    samples = [s for s, group in zip(rollouts.samples, rollouts.responses, strict=True) for _ in group]
    texts, rows = rollouts.flat_texts, []
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
        rows.append(row | {name: parts[i].tolist() for name, parts in split.items()})
    return rows


def _question(sample: Sample) -> str:
    """The text of the last message that the student is shown."""
    return " ".join(part["text"] for part in sample.messages[-1]["content"] if part["type"] == "text").strip()
