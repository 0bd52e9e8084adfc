from __future__ import annotations

import numpy as np
import pytest

from vicur.evaluation.statistics import accuracy_interval, mean_interval, paired_difference


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
