"""Repeats work in smaller batches when memory runs out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from vicur import distributed

Result = TypeVar("Result")


class OutOfMemory(ValueError):
    """Memory is exhausted, and no smaller batch can be tried."""


def halving(
    work: Callable[[int], Result], size: int, setting: str, recover: Callable[[], None]
) -> tuple[Result, int]:
    """Do something with batches of a size; if memory runs out, again with half the size.

    In a job of several processes nothing is repeated: the other ranks would wait for this one.

    Args:
        work: called with the size.
        size: size to begin with.
        setting: the setting of that size, for messages.
        recover: called before `work` is repeated, to undo what it has done so far.

    Returns:
        the result, and the size with which it was computed.

    Raises:
        OutOfMemory: memory is exhausted with a size of 1, or there are several processes.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if size == 1 or distributed.size() > 1:
                advice = f"Set {setting}={size // 2}." if size > 1 else "See docs/checkpoints.md on memory."
                reason = next(iter(str(error).splitlines()), "an allocation failed")
                raise OutOfMemory(f"Out of memory with {setting}={size}. {advice} ({reason})") from error
        # Outside the except block, because the error keeps the tensors of its frames in memory.
        sys.stderr.write(f"Out of memory with {setting}={size}; the run continues with {size // 2}.\n")
        size //= 2
        recover()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
