"""The protocol of a term, and the data it may read: distributions over the vocabulary at response tokens.

Shape suffixes: N tokens, D hidden size, W rows of the head, C tokens of a block, V words kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

STUDENT = "student"
"""The name of the distribution that is differentiated, or measured."""


@dataclass(frozen=True)
class Scores:
    """A next-token distribution at every response token, as hidden states and the head that reads them.

    Attributes:
        hidden_ND: last hidden states at the predicting positions, detached.
        head_WD: the LM head's weight, padding rows included, detached. D may differ between models.
    """

    hidden_ND: Float[Tensor, "N D"]
    head_WD: Float[Tensor, "W D"]

    def part(self, tokens: slice) -> Scores:
        """The distributions at some of the tokens."""
        return replace(self, hidden_ND=self.hidden_ND[tokens])


class Block:
    """The data that a term may read: distributions over the kept words at C tokens.

    Args:
        log_probs: (C, V) of each distribution that was announced.
        slot_C: index of each response token among the kept words.
    """

    def __init__(self, log_probs: Mapping[str, Tensor], slot_C: Tensor) -> None:
        self._log_probs, self._slot_C = log_probs, slot_C

    @property
    def log_p_CV(self) -> Tensor:
        """Log-probabilities of the student."""
        return self.distribution(STUDENT)

    @cached_property
    def log_prob_C(self) -> Tensor:
        """The student's log-probability of the response tokens themselves."""
        return self.log_prob(STUDENT)

    def distribution(self, name: str) -> Tensor:
        """Log-probabilities (C, V) of one of the distributions that the term announced."""
        return self._log_probs[name]

    def log_prob(self, name: str) -> Tensor:
        """Its log-probability (C,) of the response tokens."""
        return self._log_probs[name].gather(-1, self._slot_C[:, None])[:, 0]


TermFunction = Callable[..., Tensor]
"""(block, **inputs) -> one number for each token of the block."""


@dataclass(frozen=True)
class Term:
    """A per-token function, what multiplies it in the loss, and what it takes.

    Attributes:
        name: name under which its values are recorded.
        function: pure; gets a `Block` and the inputs by name.
        weights: detached coefficient of every token, the whole reduction included; None where the
            term is only observed.
        inputs: detached per-token numbers for the function, e.g. advantages.
        reads: the distributions it takes besides the student's.
        live: the distributions through which its gradient flows; every other one that it reads is
            detached. Each is the student's own, or the student under another view.
        stage: terms of a higher stage are differentiated after all those of a lower one, so that the
            norm of the gradient can be taken in between.
    """

    name: str
    function: TermFunction
    weights: Float[Tensor, " N"] | None = None
    inputs: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    live: tuple[str, ...] = (STUDENT,)
    stage: int = 0

    def part(self, tokens: slice, dtype: torch.dtype | None = None) -> Term:
        """The term on some of the tokens, its numbers in another type if one is given."""
        weights = None if self.weights is None else self.weights[tokens].to(dtype)
        return replace(self, weights=weights, inputs={k: v[tokens].to(dtype) for k, v in self.inputs.items()})

    def scaled(self, factor: float) -> Term:
        """The term with all weights multiplied."""
        return self if self.weights is None else replace(self, weights=factor * self.weights)
