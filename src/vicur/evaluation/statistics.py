"""Intervals for accuracies and for differences between methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, all in the same unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def accuracy_interval(correct: Sequence[bool]) -> Estimate:
    """Accuracy in percent with Wilson's interval: the uncertainty from drawing the problems.

    Raises:
        ValueError: there is no problem.
    """
    if not correct:
        raise ValueError("An accuracy needs at least one graded problem.")
    from scipy import stats  # imported here: it is slow, and most commands do not need it

    result = stats.binomtest(int(sum(correct)), len(correct))
    interval = result.proportion_ci(LEVEL, method="wilson")
    return Estimate(100 * sum(correct) / len(correct), 100 * interval.low, 100 * interval.high)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("An interval over seeds needs at least two seeds.")
    mean = float(np.mean(values))
    standard_error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    from scipy import stats

    half_width = standard_error * float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1))
    return Estimate(mean, mean - half_width, mean + half_width)


def paired_difference(
    correct: Sequence[bool], baseline: Sequence[bool], *, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Accuracy minus that of a baseline on the same problems, in points, with a paired bootstrap.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(correct) != len(baseline) or not correct:
        raise ValueError(f"Paired results must match: {len(correct)} and {len(baseline)} problems.")
    gained = np.array(correct, dtype=int) - np.array(baseline, dtype=int)
    # A resample is determined by the counts of problems lost, unchanged and gained: a multinomial draw.
    shares = np.bincount(gained + 1, minlength=3) / len(gained)
    counts = np.random.default_rng(seed).multinomial(len(gained), shares, size=resamples)
    means = 100.0 * (counts[:, 2] - counts[:, 0]) / len(gained)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(100.0 * float(gained.mean()), float(low), float(high))
