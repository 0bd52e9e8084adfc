"""Repeats work in smaller batches when memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from vicur import distributed

Result = TypeVar("Result")


class OutOfMemory(ValueError):
    """Memory is exhausted, and no smaller batch can be tried."""


@dataclass
class BatchSize:
    """A number of problems per batch that is halved whenever memory runs out.

    Attributes:
        size: the present number.
        setting: the setting that it came from, for messages.
    """

    size: int
    setting: str

    def run(
        self,
        work: Callable[[int], Result],
        recover: Callable[[], None],
        *,
        most: int,
        needs_all_ranks: bool = True,
    ) -> Result:
        """Do something in batches of this size; if memory runs out, again in batches of half the size.

        Args:
            work: called with the size.
            recover: called before `work` is repeated, to undo what it has done so far.
            most: number of problems there are: no batch is larger.
            needs_all_ranks: whether the work exchanges anything with other ranks. It is then not repeated in
                a job of several processes: the other ranks would wait for this one.

        Returns:
            the result of `work`.

        Raises:
            OutOfMemory: memory is exhausted and the work cannot be repeated with a smaller batch.
        """
        is_repeatable = not needs_all_ranks or distributed.size() == 1
        while True:
            size = min(self.size, most)
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if size == 1 or not is_repeatable:
                    raise OutOfMemory(self._message(size, error)) from error
            # Outside the except block, because the error keeps the tensors of its frames in memory.
            sys.stderr.write(
                f"Out of memory with {self.setting}={size}; the run continues with {size // 2}.\n"
            )
            self.size = size // 2
            recover()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _message(self, size: int, error: BaseException) -> str:
        advice = f"Set {self.setting}={size // 2}." if size > 1 else "See docs/checkpoints.md on memory."
        reason = next(iter(str(error).splitlines()), "an allocation failed")
        return f"Out of memory with {self.setting}={size}. {advice} ({reason})"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
