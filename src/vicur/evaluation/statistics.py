"""Intervals for accuracies and for differences between methods."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

Key = TypeVar("Key", bound=Hashable)

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


def mean_of_problems(correct: Sequence[Sequence[bool]], *, resamples: int = 4000, seed: int = 0) -> Estimate:
    """avg@k in percent: the mean over each problem's responses, then over problems, with a bootstrap interval
    over problems.

    With one response per problem this is the accuracy, with the bootstrap's interval instead of Wilson's. If
    all responses are right, or none is, the interval is Wilson's over the problems.

    Args:
        correct: for each problem whether each of its responses is right; at least one response each.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no problem, or one without a response.
    """
    means = problem_means(correct)
    if set(means) <= {0.0} or set(means) <= {1.0}:  # a bootstrap would claim certainty
        return accuracy_interval([bool(mean) for mean in means])
    return bootstrap_mean(100 * means, resamples=resamples, seed=seed)


def problem_means(correct: Sequence[Sequence[bool]]) -> Float[np.ndarray, " P"]:
    """Share of right responses to each problem, 0 to 1.

    Raises:
        ValueError: there is no problem, or one without a response.
    """
    if not correct or not all(correct):
        raise ValueError("An accuracy needs at least one graded response to each problem.")
    return np.array([np.mean(responses) for responses in correct], dtype=float)


def right_counts(correct: Sequence[Sequence[bool]], samples: int) -> list[int]:
    """Number of problems with 0, 1, ..., `samples` right responses, of those with that many responses."""
    complete = [sum(responses) for responses in correct if len(responses) == samples]
    return np.bincount(complete, minlength=samples + 1).tolist()


def bootstrap_mean(
    values: Sequence[float] | Float[np.ndarray, " P"], *, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Mean with the bootstrap's percentile interval.

    Args:
        values: one for each problem; they may have any unit.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("A mean needs at least one value.")
    # A resample is determined by how often each distinct value is drawn: a multinomial draw.
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.quantile(drawn @ distinct / len(values), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(float(np.mean(values)), float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """Two methods on the same problems.

    Attributes:
        points: mean difference in points, with a paired bootstrap interval over problems.
        won, lost: number of problems on which the share of right responses is higher, and lower.
        p: two-sided p-value of the exact sign test on these (with one response per problem: McNemar's exact
            test); 1 without any.
    """

    points: Estimate
    won: int
    lost: int
    p: float


def compare(
    correct: Sequence[Sequence[bool]], baseline: Sequence[Sequence[bool]], *, seed: int = 0
) -> Difference:
    """Compare two methods on the same problems.

    Args:
        correct, baseline: for each problem whether each of its responses is right.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the two differ in length, are empty, or have a problem without a response.
    """
    if len(correct) != len(baseline) or not correct:
        raise ValueError(f"Paired results must match: {len(correct)} and {len(baseline)} problems.")
    gained = problem_means(correct) - problem_means(baseline)
    won, lost = int((gained > 0).sum()), int((gained < 0).sum())
    from scipy import stats

    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Difference(bootstrap_mean(100 * gained, seed=seed), won, lost, p)


def compare_shared(
    correct: Mapping[Key, Sequence[bool]], baseline: Mapping[Key, Sequence[bool]]
) -> Difference | None:
    """Compare two methods on the problems that both have; None if there are none.

    Args:
        correct, baseline: for each problem whether each of its responses is right.
    """
    shared = [problem for problem in correct if problem in baseline]
    if not shared:
        return None
    return compare([correct[problem] for problem in shared], [baseline[problem] for problem in shared])


def paired_difference(correct: Sequence[bool], baseline: Sequence[bool], *, seed: int = 0) -> Estimate:
    """Accuracy minus that of a baseline on the same problems, in points, with a paired bootstrap.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    return compare([[value] for value in correct], [[value] for value in baseline], seed=seed).points
