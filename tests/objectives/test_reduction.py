"""Means and statistics within groups, on numbers small enough to see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.objectives.reduction import (
    above_quantile,
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
    result = standardised(values, INDEX, ddof=1, epsilon=0.0)
    assert result.tolist() == [-1.0, 0.0, 1.0, 0.0]
    result = standardised(values, INDEX, ddof=0, epsilon=0.0)
    assert result.tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5, 0.0])


def test_equal_values_have_no_deviation_at_all():
    """0.1 three times has a mean that is not 0.1 in floating point."""
    result = standardised(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long), ddof=0, epsilon=0.0)
    assert result.tolist() == [0.0, 0.0, 0.0]


def test_softmax_within_groups():
    result = group_softmax(torch.tensor([0.0, 2.0, 3.0]).exp().log(), torch.tensor([0, 1, 1]))
    assert result[0] == 1.0 and result[1:].sum().item() == pytest.approx(1.0)
    assert (result[2] / result[1]).item() == pytest.approx(2.718281828)


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


def test_above_a_quantile_is_strict():
    values = torch.arange(91, dtype=torch.float64).flip(0)
    assert int(above_quantile(values, 0.7).sum()) == 27
    assert above_quantile(torch.tensor([3.0, 1.0, 2.0]), 0.5).tolist() == [True, False, False]
    assert not above_quantile(torch.tensor([7.0]), 0.7).any()
    assert not above_quantile(torch.full((5,), 0.1), 0.0).any()


def test_values_that_tie_with_the_quantile_up_to_rounding_are_not_above_it():
    """Position 0.7 * 4 = 2.8: the sorted value is 2. Above it: more than 2 + 1e-6 + 2e-4."""
    values = torch.tensor([1.0, 1.0, 2.0, 2.0002, 3.0], dtype=torch.float64)
    assert above_quantile(values, 0.7).tolist() == [False, False, False, False, True]
    values[3] = 2.00021
    assert above_quantile(values, 0.7).tolist() == [False, False, False, True, True]
    # Near 0 the absolute part counts: 1e-6 nats are below what float32 resolves.
    tiny = torch.tensor([0.0, 0.0, 0.0, 9e-7, 2e-6])
    assert above_quantile(tiny, 0.5).tolist() == [False, False, False, False, True]


GAP = st.one_of(st.just(0.0), st.floats(1e-3, 3.0))


@given(
    st.lists(GAP, min_size=1, max_size=60),
    st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.7, 0.9, 1.0]),
    st.integers(0, 2**31),
)
def test_rounding_moves_no_value_across_a_quantile(gaps, q, seed):
    """Exact ties, and values at least a thousandth apart: each a millionth up or down, in any order."""
    torch.manual_seed(seed)
    values = torch.tensor(gaps, dtype=torch.float64).exp().cumprod(0)
    order = torch.randperm(len(values))
    rounded = values * (1 + 1e-6 * (2 * torch.rand(len(values)).double() - 1))
    expected = above_quantile(values, q)
    assert torch.equal(above_quantile(rounded[order], q), expected[order])
    assert torch.equal(expected, values > quantile(values, q)), "as an exact comparison"
    exact = rounded > quantile(rounded, q)
    assert exact.sum() >= expected.sum()  # which rounding may move


def test_an_exact_comparison_would_let_rounding_decide():
    """The control: half of a tie at the quantile changes sides."""
    values = torch.ones(10, dtype=torch.float64)
    rounded = values * (1 + 1e-6 * torch.linspace(-1, 1, 10).double())
    assert int((rounded > quantile(rounded, 0.7)).sum()) == 3
    assert not above_quantile(rounded, 0.7).any()
