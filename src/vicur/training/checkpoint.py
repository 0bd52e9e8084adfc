"""Checkpoints of a run: saved in the background, complete or absent, for any number of ranks.

A checkpoint is a folder:

checkpoints/step-000020/
    shard-*.safetensors   what each rank held: trained weights, optimizer states, an EMA teacher's weights
    state.json            where the run was, and the size of every file

The tensors are written by `torch.distributed.checkpoint` in the background, while the next step runs, into
a folder with another name, which is renamed when all of it is on disk. So a kill at any moment leaves the
previous checkpoint. Tensors are stored with their place in the whole, so a run may be resumed with another
number of ranks. There are only safetensors and JSON: loading executes nothing.
"""

from __future__ import annotations

import gc
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from vicur import distributed
from vicur.files import flush, write_json
from vicur.models.sharding import local
from vicur.settings.reading import read_json
from vicur.settings.section import Count, section
from vicur.training.state import RunState

FOLDER = "checkpoints"
FINAL = "final"
"""Folder of the model after the last step, beside the checkpoints."""
STATE = "state.json"
PARTIAL, DELETED, DAMAGED = ".partial", ".deleted", ".damaged"
_NAME = re.compile(r"step-(\d{6,})")
FORMAT = 2
"""Version of the layout, stored with each checkpoint."""


@section
class CheckpointConfig:
    """Checkpoints, from which `vicur train --resume` continues a run."""

    every: Count | None = 50
    """Number of rollout steps between checkpoints; the last step has one too. null for none, except when the
    run is stopped by a signal."""
    keep: Count | None = 1
    """Number of checkpoints to keep; null for all."""
    by: Literal["step", "accuracy"] = "step"
    """Which checkpoints to keep: the newest, or those with the highest accuracy on the held-out problems
    (training.evaluate.every). The newest is kept in any case, to resume from."""


Tensors = Callable[[], Mapping[str, Tensor]]
"""Looks up the tensors to save and to load in place, by name."""


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        state: where the run was.
    """

    path: Path
    state: RunState


class CheckpointError(ValueError):
    """A checkpoint cannot be used."""


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing or is not what was written."""


@dataclass
class _Pending:
    """A checkpoint that is being written in the background.

    Attributes:
        path: its folder.
        state: where the run was.
        score: held-out accuracy in percent; None if it was not measured.
        is_done: set when the checkpoint is complete and has its name, or with the error. On other ranks than
            the main one, when this rank's part is written.
    """

    path: Path
    state: dict[str, Any]
    score: float | None
    is_done: Future[None]


class Checkpoints:
    """Saves and finds the checkpoints of a run.

    Args:
        folder: the run's folder.
        config: when to save and what to keep.
        tensors: looks up the tensors to save; all ranks have the same names.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, tensors: Tensors) -> None:
        self.folder, self.config, self.tensors = folder / FOLDER, config, tensors
        self._pending: _Pending | None = None
        self._group = distributed.background_group()
        self._saved_step = -1

    def resume_from(self, saved: Saved) -> None:
        """Load a checkpoint, in place.

        Raises:
            CheckpointError: it lacks a tensor, or one has another shape.
        """
        load_tensors(saved.path, self.tensors())
        self._saved_step = saved.state.step

    def is_due(self, step: int, last: int) -> bool:
        """Whether a checkpoint is due after a step.

        Args:
            step: the step.
            last: the last step of the run, which always has one if there are any.
        """
        return self.config.every is not None and (step % self.config.every == 0 or step == last)

    def save(self, state: RunState) -> None:
        """Begin to save a checkpoint; `finish` makes sure that it is on disk.

        Raises:
            FloatingPointError: a weight is not finite.
            OSError: this checkpoint or the one before cannot be written.
        """
        if state.step == self._saved_step:
            return
        self.finish()
        tensors = dict(self.tensors())
        check_finite(tensors)
        path = self.folder / f"step-{state.step:06d}"
        partial = path.with_name(path.name + PARTIAL)
        distributed.main_only(lambda: _make_empty(partial))
        with _quiet():
            future: Any = async_save(
                tensors,
                storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
                process_group=self._group,
            )
        pending = _Pending(path, state.to_json(), state.scores.get(state.step), Future())
        # The main rank's future is done when the parts of all ranks are on disk.
        future.add_done_callback(lambda written: self._complete(pending, written))
        self._pending, self._saved_step = pending, state.step

    def poll(self) -> None:
        """Raise the error of a checkpoint that could not be written, if all ranks know by now."""
        if self._pending is not None and not distributed.any_rank(not self._pending.is_done.done()):
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being saved is on disk and those that are not kept are deleted.

        Raises:
            OSError: it cannot be written; the previous checkpoint is whole.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        distributed.agree(pending.is_done.result)
        gc.collect()  # torch keeps the copy of the tensors in a reference cycle

    def _complete(self, pending: _Pending, written: Any) -> None:
        """Give a checkpoint its name when its tensors are written; called in the background."""
        try:
            _check_written(pending.path, written)
            if distributed.is_main():
                self._publish(pending)
        except BaseException as error:
            pending.is_done.set_exception(error)
        else:
            pending.is_done.set_result(None)

    def _publish(self, pending: _Pending) -> None:
        partial = pending.path.with_name(pending.path.name + PARTIAL)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        content = {"format": FORMAT, "run": pending.state, "accuracy": pending.score, "files": sizes}
        write_json(partial / STATE, content)
        partial.replace(pending.path)
        flush(pending.path.parent)
        self._prune()

    def _prune(self) -> None:
        """Delete the checkpoints that are not to be kept."""
        if self.config.keep is None:
            return
        paths = step_folders(self.folder)  # the newest first
        ranked = paths if self.config.by == "step" else _by_accuracy(paths)
        kept = {*ranked[: self.config.keep], *paths[:1]}
        for path in paths:
            if path not in kept:
                _delete(path)


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first, whether whole or damaged."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def newest_whole(run: Path, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint of a run that is whole; None if the run has no checkpoint.

    Args:
        run: the run's folder.
        say: called with a sentence about each damaged checkpoint.

    Raises:
        CheckpointError: all are damaged, or the newest cannot be used for another reason.
    """
    paths = step_folders(run / FOLDER)
    for path in paths:
        try:
            return read_checkpoint(path)
        except DamagedError as error:
            say(str(error))
    if paths:
        raise CheckpointError(
            f"All checkpoints in {run / FOLDER} are damaged. To start again from the first step, delete the "
            "folders step-* in it."
        )
    return None


def best(run: Path) -> Saved | None:
    """The checkpoint with the highest held-out accuracy; None if none has one."""
    ranked = _by_accuracy(step_folders(run / FOLDER))
    return read_checkpoint(ranked[0]) if ranked else None


def _by_accuracy(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints that have a held-out accuracy, the best first and of equal ones the newest.

    A damaged checkpoint whose state cannot be read has none.
    """
    scores: dict[Path, float] = {}
    for path in paths:
        with suppress(OSError, ValueError, KeyError):
            score = read_json(path / STATE)["accuracy"]
            if score is not None:
                scores[path] = score
    return sorted(scores, key=lambda path: -scores[path])


def read_checkpoint(path: Path) -> Saved:
    """Check that a checkpoint is whole, and read where the run was.

    Raises:
        DamagedError: a file is missing or has another size than was written.
        CheckpointError: another version of this package has written it.
        OSError: its state cannot be read at the moment.
    """
    try:
        content = read_json(path / STATE)
        version = content["format"]
        if version == FORMAT:
            files, state = dict(content["files"]), RunState.of_json(content["run"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"Checkpoint {path} is damaged: its {STATE} cannot be read.") from error
    if version != FORMAT:
        raise CheckpointError(f"Checkpoint {path} has format {version}; this version reads {FORMAT}.")
    for name, size in files.items():
        size_now = (path / name).stat().st_size if (path / name).is_file() else None
        if size_now != size:
            what = "is missing" if size_now is None else f"has {size_now:,} bytes instead of {size:,}"
            raise DamagedError(f"Checkpoint {path} is damaged: its file {name} {what}.")
    return Saved(path, state)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors now, in the format of a checkpoint. All ranks must call this.

    Raises:
        OSError: they cannot be written.
    """
    distributed.main_only(lambda: path.mkdir(parents=True, exist_ok=True))
    group = distributed.background_group()
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        with _quiet():
            save(dict(tensors), storage_writer=writer, process_group=group)
    except (Exception, CheckpointException) as error:
        raise _unwritten(path, error) from error


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's tensors in place.

    Args:
        path: the checkpoint.
        tensors: the tensors to fill, sharded as they are now.

    Raises:
        CheckpointError: it lacks a tensor, or one has another shape.
    """
    group = distributed.background_group()
    try:
        with _quiet():
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), process_group=group)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"Checkpoint {path} cannot be loaded: {_reason(error)}") from error


def clean(run: Path, step: int) -> None:
    """Delete what a killed process left incomplete, and rename the checkpoints after a step to *.damaged.

    Checkpoints after that step were skipped as damaged. Under their names, pruning would keep them as the
    newest and delete new ones.

    Args:
        run: the run's folder.
        step: the step after which the run continues.
    """
    folder = run / FOLDER
    for path in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{DELETED}")]:
        shutil.rmtree(path)
    for path in step_folders(folder):
        if int(path.name.removeprefix("step-")) > step:
            damaged = path.with_name(path.name + DAMAGED)
            shutil.rmtree(damaged, ignore_errors=True)
            path.replace(damaged)


def _check_written(path: Path, written: Any) -> None:
    try:
        written.result()
    except (Exception, CheckpointException) as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: BaseException) -> OSError:
    return OSError(f"Checkpoint {path} cannot be written: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The reason in an error of torch, which is that of the first rank that failed.

    `CheckpointException` holds the errors of the ranks; it is no `Exception`.
    """
    if isinstance(error, CheckpointException) and error.failures:
        error = min(error.failures.items())[1][0]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # Safetensors and torch say first what they were doing and last what went wrong.
    return lines[-1] if isinstance(error, OSError | RuntimeError) else lines[0]


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Make sure that no rank saves a number that is not finite.

    Raises:
        FloatingPointError: there is one; the message names its tensor.
    """
    bad = [name for name, tensor in tensors.items() if not bool(local(tensor).isfinite().all())]
    names = distributed.gather_list(bad)
    if names:
        raise FloatingPointError(f"{names[0]} has numbers that are not finite, so no checkpoint is saved.")


def _make_empty(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _delete(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill does not leave half of it under its name."""
    doomed = path.with_name(path.name + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of torch about its own interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
