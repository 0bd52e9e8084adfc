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
    from scipy import stats  # here, as it takes time and memory that most commands do not need

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
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    from scipy import stats

    reach = spread * float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1))
    return Estimate(mean, mean - reach, mean + reach)


def paired_difference(
    ours: Sequence[bool], theirs: Sequence[bool], *, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Difference of two accuracies on the same problems, in points, with a paired bootstrap.

    Raises:
        ValueError: the two are not of the same length, or empty.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"Paired results must match: {len(ours)} and {len(theirs)} problems.")
    gained = np.array(ours, dtype=int) - np.array(theirs, dtype=int)
    # A resample is determined by the counts of problems lost, unchanged and gained: a multinomial draw.
    shares = np.bincount(gained + 1, minlength=3) / len(gained)
    counts = np.random.default_rng(seed).multinomial(len(gained), shares, size=resamples)
    means = 100.0 * (counts[:, 2] - counts[:, 0]) / len(gained)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(100.0 * float(gained.mean()), float(low), float(high))
