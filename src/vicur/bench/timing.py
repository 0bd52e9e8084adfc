"""Repeated measurements: their medians, and how far they spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vicur.training.records import environment


@dataclass(frozen=True)
class Spread:
    """Several measurements of the same thing, in their unit.

    Attributes:
        median: their median.
        low, high: the smallest and the largest.
        count: their number.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some measurements; at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}-{self.high:.3g}]"

    def as_dict(self) -> dict[str, Any]:
        """The numbers for JSON."""
        return asdict(self)


def synchronise(device: torch.device) -> None:
    """Wait for the work that is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> dict[str, Any]:
    """Device, threads and versions that times depend on."""
    everything = environment(device)
    return {name: everything[name] for name in ("device", "threads", "platform", "python", "packages")}


def in_turns(count: int, turn: int) -> list[int]:
    """The order in which `count` things are measured in a turn: forwards and backwards alternately, so that
    none is always first."""
    order = list(range(count))
    return order if turn % 2 == 0 else order[::-1]
