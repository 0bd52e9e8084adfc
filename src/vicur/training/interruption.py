"""Stops a run at the end of a step when the user or a scheduler asks for it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vicur import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what Slurm, Kubernetes and torchrun send."""


class Interruption:
    """Remembers that a signal asked the run to stop.

    While `is_patient`, the first signal only sets `requested`: the step is finished and saved. A second
    Ctrl-C, or any signal while the run is not patient, raises KeyboardInterrupt at once.

    Attributes:
        requested: whether a signal came.
        is_patient: whether the first signal waits until the step is finished and saved.
    """

    def __init__(self) -> None:
        self.requested = self.is_patient = False

    @contextmanager
    def patient(self) -> Iterator[None]:
        """A context in which the first signal waits for the end of a step."""
        self.is_patient = True
        try:
            yield
        finally:
            self.is_patient = False

    def on_any_rank(self) -> bool:
        """Whether a signal reached any rank; all ranks must call this."""
        return distributed.any_rank(self.requested)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """A context in which this object handles the signals."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if not self.is_patient or (self.requested and number == signal.SIGINT):
            raise KeyboardInterrupt
        if not self.requested and distributed.is_main():
            again = " (Ctrl-C again to stop at once)" if number == signal.SIGINT else ""
            sys.stderr.write(f"\nFinishing this step, then saving a checkpoint{again}.\n")
        self.requested = True
