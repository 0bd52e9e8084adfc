"""What an objective is: views, per-token terms, and weights that are known before any gradient.

    loss = sum over response tokens t of  weight_t * term_t

The weights are detached and hold the whole reduction (1/N included), computed over the global
batch. So the loss and its gradient do not depend on how the batch is split, padded or ordered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.views import View


@dataclass(frozen=True)
class ScoredTokens:
    """The response tokens of a rollout batch, flat, with what was measured before any gradient.

    Attributes:
        response_index: to which response each token belongs.
        old_log_probs: under the student at the start of the rollout batch, in nats.
        teacher_log_probs: under the teacher's view, in nats.
    """

    response_index: Int[Tensor, " N"]
    old_log_probs: Float[Tensor, " N"]
    teacher_log_probs: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.response_index)

    def part(self, tokens: slice) -> ScoredTokens:
        """The measurements on some of the tokens."""
        return replace(self, **{f.name: getattr(self, f.name)[tokens] for f in fields(self)})


@runtime_checkable
class Objective(Protocol):
    """A training objective."""

    @property
    def student_view(self) -> View:
        """What the student is shown when it answers and when it is updated."""
        ...

    def weigh(self, scored: ScoredTokens) -> Float[Tensor, " N"]:
        """The detached weight of each token, from the whole global batch."""
        ...

    def terms(self, log_probs: Float[Tensor, " N"], scored: ScoredTokens) -> Float[Tensor, " N"]:
        """The term of each token of a micro-batch; the gradient flows through `log_probs`."""
        ...

    def metrics(
        self, log_probs: Float[Tensor, " N"], scored: ScoredTokens
    ) -> Mapping[str, Float[Tensor, " N"]]:
        """Detached per-token numbers whose mean over the batch is worth recording."""
        ...
