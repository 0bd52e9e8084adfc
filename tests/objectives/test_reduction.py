"""Means and statistics within groups, on numbers small enough to see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.objectives.reduction import (
    group_ranks,
    group_softmax,
    in_top_fraction,
    mean_weights,
    quantile,
    standardised,
)

INDEX = torch.tensor([0, 0, 0, 1])


def test_token_and_sequence_means():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert (mean_weights(INDEX, "token") * values).sum().item() == pytest.approx(4.0)
    assert (mean_weights(INDEX, "sequence") * values).sum().item() == pytest.approx(6.0)


def test_standardised_by_population_and_by_sample():
    """1, 2, 3: deviations -1, 0, 1; population variance 2/3, sample variance 1. One alone gives 0."""
    values = torch.tensor([1.0, 2.0, 3.0, 9.0])
    found = standardised(values, INDEX, ddof=1, epsilon=0.0)
    assert found.tolist() == [-1.0, 0.0, 1.0, 0.0]
    found = standardised(values, INDEX, ddof=0, epsilon=0.0)
    assert found.tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5, 0.0])


def test_equal_values_have_no_deviation_at_all():
    """0.1 three times has a mean that is not 0.1 in floating point."""
    found = standardised(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long), ddof=0, epsilon=0.0)
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_softmax_within_groups():
    found = group_softmax(torch.tensor([0.0, 2.0, 3.0]).exp().log(), torch.tensor([0, 1, 1]))
    assert found[0] == 1.0 and found[1:].sum().item() == pytest.approx(1.0)
    assert (found[2] / found[1]).item() == pytest.approx(2.718281828)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4), st.booleans())
def test_ranks_are_those_of_a_stable_sort(groups, descending):
    values = torch.tensor([float(v) for group in groups for v in group])
    index = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    expected = []
    for group in groups:
        order = sorted(range(len(group)), key=lambda i, g=group: (-g[i] if descending else g[i], i))
        expected += [order.index(i) for i in range(len(group))]
    assert group_ranks(values, index, descending=descending).tolist() == expected


@pytest.mark.parametrize(
    "fraction, size, count",
    [(0.2, 5, 1), (0.2, 6, 2), (0.1, 10, 1), (0.07, 100, 7), (0.0, 4, 0), (1.0, 4, 4)],
)
def test_a_fraction_is_rounded_up(fraction, size, count):
    index = torch.zeros(size, dtype=torch.long)
    assert int(in_top_fraction(torch.rand(size), index, fraction).sum()) == count
    assert int(in_top_fraction(torch.rand(size), index, fraction, at_least=1).sum()) == max(1, count)


def test_quantiles_hit_values_exactly():
    values = torch.arange(91, dtype=torch.float64).flip(0)
    assert quantile(values, 0.7) == 63.0  # 0.7 * 90 is 62.99... in floats
    assert int((values > quantile(values, 0.7)).sum()) == 27
    assert quantile(torch.tensor([0.0, 10.0]), 0.4).item() == pytest.approx(4.0)
    assert quantile(torch.tensor([7.0]), 0.7) == 7.0
    assert quantile(torch.tensor([1.0, 2.0]), 1.0) == 2.0
