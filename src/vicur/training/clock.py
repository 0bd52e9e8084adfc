"""Measures the time of a step by phase."""

from __future__ import annotations

import time

import torch


class Clock:
    """Accumulates seconds per phase.

    Args:
        device: device of the run; work that is queued on a GPU is waited for at the end of each phase.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._phases: dict[str, float] = {}
        self._started = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap, or since the start, to a phase."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now

    def metrics(self) -> dict[str, float]:
        """Seconds since the start and seconds of each phase, by metric name."""
        phases = {f"seconds_{phase}": seconds for phase, seconds in self._phases.items()}
        return {"seconds": time.perf_counter() - self._started} | phases
