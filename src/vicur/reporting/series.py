"""Series of numbers over the steps of a run: smoothed, and their means at the start and the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 10
"""First and last values are means over a tenth of the steps, so no single batch decides them."""


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and its neighbours: `width` values, fewer at the ends."""
    array = np.asarray(values, dtype=float)
    before, after = (width - 1) // 2, width // 2
    return [float(array[max(0, index - before) : index + after + 1].mean()) for index in range(len(array))]


def window_of(values: Sequence[object]) -> int:
    """Number of values that the first and the last mean are over."""
    return max(1, len(values) // WINDOW)


def ends(values: Sequence[float], window: int | None = None) -> tuple[float | None, float | None]:
    """Means over the first and the last values; None without values.

    Args:
        values: the values.
        window: number of values at each end; by default a tenth of them.
    """
    if not values:
        return None, None
    window = window or window_of(values)
    return float(np.mean(values[:window])), float(np.mean(values[-window:]))
