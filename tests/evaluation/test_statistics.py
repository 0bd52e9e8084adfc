from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.evaluation.statistics import (
    accuracy_interval,
    bootstrap_mean,
    compare,
    mean_interval,
    mean_of_problems,
    paired_difference,
    right_counts,
)


def test_wilson_interval_worked():
    """8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10), with z = 1.959964."""
    z = 1.959964
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    reach = z / (1 + z * z / 10) * (0.8 * 0.2 / 10 + z * z / 400) ** 0.5
    found = accuracy_interval([True] * 8 + [False] * 2)
    assert found.value == 80.0
    assert found.low == pytest.approx(100 * (centre - reach), abs=1e-3)
    assert found.high == pytest.approx(100 * (centre + reach), abs=1e-3)


def test_t_interval_worked():
    """1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.value, found.high - 2) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-5))
    assert found.low == pytest.approx(4 - found.high)


def test_paired_bootstrap_covers_like_the_normal_interval():
    random = np.random.default_rng(0)
    ours, theirs = random.random(600) < 0.6, random.random(600) < 0.5
    found = paired_difference(ours.tolist(), theirs.tolist())
    difference = 100.0 * (ours.astype(float) - theirs.astype(float))
    error = difference.std(ddof=1) / 600**0.5
    assert found.value == pytest.approx(difference.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_nothing_to_estimate():
    for call in (lambda: accuracy_interval([]), lambda: mean_interval([1.0])):
        with pytest.raises(ValueError, match="at least"):
            call()
    with pytest.raises(ValueError, match="must match: 1 and 2"):
        paired_difference([True], [True, False])


def resampled_interval(values, resamples=4000, seed=1):
    """Percentile bootstrap by drawing indices: independent of the multinomial draws of the package."""
    values = np.asarray(values, dtype=float)
    index = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return np.quantile(values[index].mean(1), [0.025, 0.975])


def test_avg_at_k_worked():
    """Problems with 2 of 2, 1 of 2 and 0 of 2 right: (1 + 0.5 + 0) / 3 = 50 %."""
    correct = [[True, True], [True, False], [False, False]]
    estimate = mean_of_problems(correct)
    assert estimate.value == 50.0 and estimate.low == 0.0 and estimate.high == 100.0
    assert right_counts(correct, 2) == [1, 1, 1]
    # A problem with fewer graded responses has the mean of those, and no place among the counts.
    assert mean_of_problems([[True], [True, False]]).value == 75.0
    assert right_counts([[True], [True, False]], 2) == [0, 1, 0]


def test_the_bootstrap_agrees_with_drawing_indices():
    random = np.random.default_rng(0)
    correct = [(random.random(8) < rate).tolist() for rate in random.random(300)]
    means = [100 * np.mean(responses) for responses in correct]
    estimate = mean_of_problems(correct)
    low, high = resampled_interval(means)
    assert estimate.value == pytest.approx(np.mean(means))
    assert estimate.low == pytest.approx(low, abs=0.4) and estimate.high == pytest.approx(high, abs=0.4)


def test_a_comparison_worked():
    """Six problems, two responses each: ahead on three by 0.5, 1 and 0.5, behind on one by 0.5, equal on two:
    (0.5 + 1 + 0.5 - 0.5) / 6 = 25 points. The sign test of 3 against 1: 2 (C(4,0) + C(4,1)) / 2^4 = 0.625."""
    ours = [[1, 1], [1, 1], [1, 0], [0, 0], [1, 1], [0, 0]]
    theirs = [[1, 0], [0, 0], [0, 0], [1, 0], [1, 1], [0, 0]]
    as_bools = [[[bool(x) for x in responses] for responses in method] for method in (ours, theirs)]
    difference = compare(*as_bools)
    assert difference.points.value == pytest.approx(25.0)
    assert (difference.won, difference.lost) == (3, 1)
    assert difference.p == pytest.approx(0.625)
    assert compare(as_bools[0], as_bools[0]).p == 1.0


def test_mcnemar_is_the_sign_test_of_single_responses():
    """12 discordant pairs, 10 to 2: p = 2 sum_{i<=2} C(12, i) / 2^12 = 2 (1 + 12 + 66) / 4096."""
    ours = [[True]] * 10 + [[False]] * 2 + [[True]] * 20
    theirs = [[False]] * 10 + [[True]] * 2 + [[True]] * 20
    assert compare(ours, theirs).p == pytest.approx(2 * 79 / 4096)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=30))
def test_an_interval_holds_its_mean(correct):
    estimate = mean_of_problems(correct)
    assert 0 <= estimate.low <= estimate.value + 1e-9 and estimate.value <= estimate.high + 1e-9 <= 100 + 1e-9
    difference = compare(correct, [[not value for value in responses] for responses in correct])
    assert difference.points.value == pytest.approx(2 * estimate.value - 100)
    assert difference.won + difference.lost <= len(correct) and 0 < difference.p <= 1


def test_equal_values_have_no_interval():
    estimate = bootstrap_mean([3.0] * 5)
    assert (estimate.low, estimate.value, estimate.high) == (3.0, 3.0, 3.0)
    for call in (lambda: bootstrap_mean([]), lambda: mean_of_problems([]), lambda: mean_of_problems([[]])):
        with pytest.raises(ValueError, match="at least one"):
            call()
