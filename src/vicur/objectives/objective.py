"""What an objective is: views, per-token terms, and weights that are known before any gradient.

    loss = sum over terms j and response tokens t of  weight_jt * term_jt

The weights are detached and hold the whole reduction (1/N included), computed over the global batch
of an update. So the loss and its gradient do not depend on how the batch is split, padded or ordered.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.views import Blind, Degraded, Masked, Plain, View
from vicur.scoring.term import Term


@dataclass(frozen=True)
class Look:
    """Who looks, and at what.

    Attributes:
        who: which model.
        view: what it is shown; None for the view that the recipe gives the teacher.
    """

    who: Literal["student", "teacher"]
    view: View | None


OLD = "old"
"""The student at the start of the rollout batch."""
TEACHER = "teacher"
"""The teacher under the recipe's view, hinted where there is a privilege: q, or q^z."""
TEACHER_PLAIN = "teacher_plain"
"""The teacher under the student's view."""
TEACHER_DEGRADED = "teacher_degraded"
"""The teacher on degraded media: q-tilde."""
TEACHER_BLIND = "teacher_blind"
"""The teacher without media: q0."""
STUDENT_BLIND = "student_blind"
"""The student, as it is at the start of an update, without media: p0."""
STUDENT_MASKED = "student_masked"
"""The same on masked media."""


def look_of(name: str, *, degraded: float = 0.1, masked: Masked | None = None) -> Look:
    """The look that a name stands for, where some come with a setting of their own."""
    looks: dict[str, Look] = {
        OLD: Look("student", Plain()),
        TEACHER: Look("teacher", None),
        TEACHER_PLAIN: Look("teacher", Plain()),
        TEACHER_DEGRADED: Look("teacher", Degraded(degraded)),
        TEACHER_BLIND: Look("teacher", Blind()),
        STUDENT_BLIND: Look("student", Blind()),
        STUDENT_MASKED: Look("student", masked or Masked()),
    }
    return looks[name]


@dataclass(frozen=True)
class Needs:
    """What is measured for an objective before its weights, and what it asks of a run.

    Attributes:
        log_probs: looks at the sampled tokens, by name.
        distributions: looks whose whole next-token distributions a term takes, by name.
        divergences: KL(first || second) of two such distributions, needed for weights already, by
            the name of the result.
        draws: whether a uniform number for each token is needed.
        rewards: whether responses are graded against gold answers.
        siblings: the fewest responses to a prompt that make sense.
        sources: where responses may come from.
        whole_gradient: whether its scale is about the whole gradient, so that nothing may be added.
        measures_scale: whether the gradient is to be scaled by |gradient of stage 0| / |that of
            stages 0 and 1| (VGS eq. 15).
    """

    log_probs: Mapping[str, Look] = field(default_factory=dict)
    distributions: Mapping[str, Look] = field(default_factory=dict)
    divergences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    draws: bool = False
    rewards: bool = False
    siblings: int = 1
    sources: frozenset[str] = frozenset({"student", "teacher", "dataset"})
    whole_gradient: bool = False
    measures_scale: bool = False

    @property
    def looks(self) -> list[Look]:
        """All that are needed."""
        return [*self.log_probs.values(), *self.distributions.values()]

    @property
    def teacher(self) -> bool:
        """Whether a teacher is needed."""
        return any(look.who == "teacher" for look in self.looks)


@dataclass(frozen=True)
class ScoredTokens:
    """The response tokens of an update, flat, with what was measured before any gradient.

    Attributes:
        response_index: to which response each token belongs, 0 ... R - 1 in order.
        prompt_index: to which prompt each response belongs, 0 ... in order.
        log_probs: of the response tokens under each look that was asked for, in nats.
        divergences: as asked for, in nats.
        draws: uniform numbers that depend on seed, step, sample, sibling and position alone.
        rewards: of the responses.
    """

    response_index: Int[Tensor, " N"]
    prompt_index: Int[Tensor, " R"]
    log_probs: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    divergences: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    draws: Float[Tensor, " N"] | None = None
    rewards: Float[Tensor, " R"] | None = None

    def __len__(self) -> int:
        return len(self.response_index)


def check_weight(name: str, weight: float) -> None:
    """Make sure that an objective pulls, and in its own direction.

    Raises:
        ValueError: its coefficient is not above 0.
    """
    if weight <= 0:
        raise ValueError(f"{name}.weight must be above 0, not {weight}. Leave {name} out to do without it.")


@runtime_checkable
class Objective(Protocol):
    """A training objective. Objectives are frozen settings with pure methods."""

    def needs(self, step: int) -> Needs:
        """What has to be measured for it at a step of training."""
        ...

    def terms(self, scored: ScoredTokens) -> list[Term]:
        """Its terms over the whole global batch of an update, weighted and observed ones."""
        ...

    def tokens(self, scored: ScoredTokens) -> Mapping[str, Float[Tensor, " N"]]:
        """Per-token numbers behind the weights that are worth recording."""
        ...

    def metrics(self, scored: ScoredTokens) -> Mapping[str, float]:
        """Numbers about the weights themselves that are worth recording."""
        ...
