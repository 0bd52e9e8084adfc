"""Angles, norms and the scale of steering, against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vicur.diagnostics.geometry import Gram, angle_of, inner_product


def gram(standard, visual, language=(0.0, 0.0)):
    """Two parameters, each a tensor of its own."""
    vectors = {"standard": standard, "visual": visual, "language": language}
    return Gram.of({name: [torch.tensor([x]), torch.tensor([[y]])] for name, (x, y) in vectors.items()})


def test_a_case_in_two_parameters():
    """S = (2, 0), V = (1, 1): |V| = sqrt 2, 45 degrees; S + 2 V = (4, 2), so s = 2 / sqrt 20."""
    case = gram((2.0, 0.0), (1.0, 1.0), (0.0, -3.0))
    assert case.norm("standard") == 2.0 and case.norm("visual") == pytest.approx(2**0.5)
    assert case.angle("standard", "visual") == pytest.approx(45.0)
    assert case.angle("visual", "standard") == pytest.approx(45.0)
    assert case.angle("standard", "language") == pytest.approx(90.0)
    assert case.angle("visual", "language") == pytest.approx(135.0)
    assert case.angle("visual", "visual") == pytest.approx(0.0, abs=1e-5)
    assert case.ratio("visual", "standard") == pytest.approx(2**0.5 / 2)
    assert case.steering_scale("standard", "visual", 2.0) == pytest.approx(2 / 20**0.5)
    assert case.steering_scale("standard", "visual", 0.0) == 1.0
    # A + B + C of eq. 23
    a, b = 4.0, 4 * 2.0
    c = 2 * 2 * 2.0 * 2**0.5 * math.cos(math.radians(45))
    assert case.steering_scale("standard", "visual", 2.0) == pytest.approx((a / (a + b + c)) ** 0.5)


def test_a_zero_gradient_has_no_angle():
    case = gram((2.0, 0.0), (0.0, 0.0))
    assert case.angle("standard", "visual") is None and case.angle("visual", "visual") is None
    assert case.ratio("standard", "visual") is None and case.ratio("visual", "standard") == 0.0
    assert case.steering_scale("standard", "visual", 2.0) == 1.0
    opposite = gram((2.0, 0.0), (-1.0, 0.0))
    assert opposite.angle("standard", "visual") == 180.0
    assert opposite.steering_scale("standard", "visual", 2.0) is None  # the steered gradient is zero
    assert angle_of(1.0, 1.0, math.inf) is None and angle_of(math.nan, 1.0, 1.0) is None


def test_parts_of_a_model_add_up():
    torch.manual_seed(0)
    names = ("standard", "visual")
    whole = {name: [torch.randn(7), torch.randn(3, 4), torch.randn(5)] for name in names}
    parts = [Gram.of({n: whole[n][:1] for n in names}), Gram.of({n: whole[n][1:] for n in names})]
    assert Gram.total(parts).products == pytest.approx(Gram.of(whole).products)
    flat = {n: torch.cat([t.flatten() for t in whole[n]]).double() for n in names}
    assert Gram.of(whole).products["standard", "visual"] == pytest.approx(
        float(flat["standard"] @ flat["visual"])
    )


def test_sums_are_in_float64():
    """In float32, 2^24 ones and one more are 2^24."""
    ones = torch.ones(2**24 + 1)
    assert inner_product([ones], [ones]) == 2**24 + 1
    with pytest.raises(ValueError):
        inner_product([ones], [])
