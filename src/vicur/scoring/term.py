"""Terms, and the data that they may read: distributions over the vocabulary at response tokens.

Shape suffixes: N tokens, D hidden size, W rows of the head, C tokens of a block, V kept vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STUDENT = "student"
"""Name of the student's distribution, or of that of a model that is only measured."""


@dataclass(frozen=True)
class Scores:
    """Next-token distributions at all response tokens, as hidden states and an LM head.

    Attributes:
        hidden_ND: last hidden states at the predicting positions, detached.
        head_WD: the LM head's weight, padding rows included, detached. D may differ between models.
    """

    hidden_ND: Float[Tensor, "N D"]
    head_WD: Float[Tensor, "W D"]

    def part(self, tokens: slice) -> Scores:
        """The distributions at a slice of the tokens."""
        return replace(self, hidden_ND=self.hidden_ND[tokens])


class Block:
    """The data that a term may read: distributions over the kept vocabulary entries at C tokens.

    Args:
        log_probs: log-probabilities (C, V) of each distribution in the term's `reads`.
        slot_C: index of each response token among the kept vocabulary entries.
        ends_V: which of these entries end a response; None if that is not known.
    """

    def __init__(
        self, log_probs: Mapping[str, Tensor], slot_C: Tensor, ends_V: Bool[Tensor, " V"] | None = None
    ) -> None:
        self._log_probs, self._slot_C, self.ends_V = log_probs, slot_C, ends_V

    @property
    def log_p_CV(self) -> Tensor:
        """The student's log-probabilities."""
        return self.distribution(STUDENT)

    @cached_property
    def log_prob_C(self) -> Tensor:
        """The student's log-probabilities of the response tokens."""
        return self.log_prob(STUDENT)

    def distribution(self, name: str) -> Tensor:
        """Log-probabilities (C, V) of a distribution in the term's `reads`."""
        return self._log_probs[name]

    def log_prob(self, name: str) -> Tensor:
        """Log-probabilities (C,) of the response tokens under a distribution."""
        return self._log_probs[name].gather(-1, self._slot_C[:, None])[:, 0]


TermFunction = Callable[..., Tensor]
"""(block, **inputs) -> one number for each token of the block."""


@dataclass(frozen=True)
class Term:
    """A per-token function, its weights in the loss, and its inputs.

    Attributes:
        name: name under which its values are recorded.
        function: a pure function of a `Block` and the inputs, which are passed by name.
        weights: detached coefficient of every token, which includes the whole reduction; None for a term that
            is only observed.
        inputs: detached per-token numbers for the function, e.g. advantages.
        reads: names of the distributions it reads besides the student's.
        live: names of the distributions through which its gradient flows; all others that it reads are
            detached. Each is the student's own, or the student under another view.
        stage: terms of a higher stage are differentiated after all terms of a lower one, so that the norm of
            the gradient can be measured in between.
    """

    name: str
    function: TermFunction
    weights: Float[Tensor, " N"] | None = None
    inputs: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    live: tuple[str, ...] = (STUDENT,)
    stage: int = 0

    def part(self, tokens: slice, dtype: torch.dtype | None = None) -> Term:
        """The term on a slice of the tokens, with weights and inputs in `dtype` if given."""
        weights = None if self.weights is None else self.weights[tokens].to(dtype)
        return replace(self, weights=weights, inputs={k: v[tokens].to(dtype) for k, v in self.inputs.items()})

    def scaled(self, factor: float) -> Term:
        """The term with all weights multiplied."""
        return self if self.weights is None else replace(self, weights=factor * self.weights)
