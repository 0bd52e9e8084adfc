"""Geometry of gradients: norms, angles, and the scale that steering needs (VGS section 3.2 and appendix A).

A gradient is a sequence of tensors, one for each parameter. Inner products are sums over parameters, so those
of parts of a model add up to those of the whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SLICE = 2**22
"""Numbers that are converted to float64 together: a float64 copy of an embedding would be gigabytes."""


@dataclass(frozen=True)
class Gram:
    """Inner products of a few named gradients.

    Attributes:
        products: inner product of each pair of names, in both orders, and of each name with itself.
    """

    products: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, gradients: Mapping[str, Sequence[Tensor]]) -> Gram:
        """The inner products of gradients of the same parameters, in float64.

        Args:
            gradients: a tensor for each parameter, by name of the gradient.

        Raises:
            ValueError: two of them have different numbers of tensors.
        """
        products: dict[tuple[str, str], float] = {}
        for first, second in itertools.combinations_with_replacement(gradients, 2):
            product = inner_product(gradients[first], gradients[second])
            products[first, second] = products[second, first] = product
        return cls(products)

    @classmethod
    def total(cls, parts: Iterable[Gram]) -> Gram:
        """The inner products of gradients that were split by parameters; at least one part."""
        grams = list(parts)
        return cls({pair: sum(gram.products[pair] for gram in grams) for pair in grams[0].products})

    def norm(self, name: str) -> float:
        """|g|."""
        return math.sqrt(self.products[name, name])

    def angle(self, first: str, second: str) -> float | None:
        """The angle between two gradients in degrees, 0 to 180; None if one of them is zero."""
        return angle_of(self.products[first, second], self.norm(first), self.norm(second))

    def ratio(self, first: str, second: str) -> float | None:
        """|first| / |second|; None if the second is zero."""
        return self.norm(first) / self.norm(second) if self.norm(second) > 0 else None

    def steering_scale(self, standard: str, steering: str, alpha: float) -> float | None:
        """s = |g_S| / |g_S + alpha g_V| (VGS eq. 15); None if the steered gradient is zero.

        Args:
            standard: name of g_S.
            steering: name of g_V.
            alpha: steering coefficient.
        """
        # A + B + C of eq. 23; through rounding it may fall below zero where the gradients cancel.
        squared = (
            self.products[standard, standard]
            + alpha**2 * self.products[steering, steering]
            + 2 * alpha * self.products[standard, steering]
        )
        return self.norm(standard) / math.sqrt(squared) if squared > 0 else None


def angle_of(product: float, first_norm: float, second_norm: float) -> float | None:
    """The angle in degrees, 0 to 180; None if a norm is zero or not finite, where no angle is defined.

    Args:
        product: inner product of the two gradients.
        first_norm, second_norm: their norms.
    """
    size = first_norm * second_norm
    if not (0 < size < math.inf and math.isfinite(product)):
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, product / size))))


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The inner product of two gradients, in float64.

    Raises:
        ValueError: they have different numbers of tensors.
    """
    sums = [_dot(a, b) for a, b in zip(first, second, strict=True)]
    return float(torch.stack(sums).sum()) if sums else 0.0


def _dot(first: Tensor, second: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for a, b in zip(first.flatten().split(SLICE), second.flatten().split(SLICE), strict=True):
        total += torch.dot(a.double(), b.double())
    return total
