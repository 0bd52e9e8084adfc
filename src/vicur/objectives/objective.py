"""The protocol of an objective: the looks it needs, and per-token terms whose weights are known before any
gradient.

    loss = sum over terms j and response tokens t of  weight_jt * term_jt

The weights are detached and hold the whole reduction (1/N included), computed over the global batch
of an update. So the loss and its gradient do not depend on how the batch is split, padded or ordered.

An objective is a frozen dataclass of settings with two methods, `needs` and `weigh`.
`examples/own_objective.py` is one from outside the package.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.views import View
from vicur.scoring.term import Term


@dataclass(frozen=True)
class Look:
    """A model reading the responses under a view.

    Attributes:
        who: the model that is run.
        view: the view of that model; None for the view that the recipe gives the teacher.
    """

    who: Literal["student", "teacher"]
    view: View | None = None


OLD = "old"
"""Name of the look of the student, on its own prompt, at the start of the rollout batch."""
TEACHER = "teacher"
"""Name of the look of the teacher under the recipe's view, hinted where there is a privilege: q, or q^z."""
TEACHER_PLAIN = "teacher_plain"
"""Name of the look of the teacher on the student's prompt."""

Summary = Literal["mean", "parts", "top_mass", "quantiles"]
"""Reduction of per-token numbers to metrics: their mean; the means over wholes, halves and quarters of
responses; the mean and the share of the sum that the top 10 % of tokens hold; or the mean and quantiles."""


@dataclass(frozen=True)
class Needs:
    """The measurements that an objective needs before its weights, and its requirements on a run.

    Attributes:
        log_probs: looks whose log-probs of the sampled tokens are needed, by name.
        distributions: looks whose whole next-token distributions a term reads, by name.
        divergences: names (first, second) of two such distributions, by the name under which
            KL(first || second) is passed to `weigh`.
        draws: whether a uniform number for each token is needed.
        rewards: whether responses are graded against gold answers.
        group_size: minimum number of responses to a problem.
        sources: allowed sources of responses.
        only_imitates: whether the loss is at its minimum once the student agrees with the teacher, so
            that a teacher that is the student itself, on the same prompt, has nothing to teach.
        whole_gradient: whether its scale refers to the whole gradient, so that no other objective may be
            added.
        measures_scale: whether the gradient is scaled by |gradient of stage 0| / |gradient of stages 0
            and 1| (VGS eq. 15).
    """

    log_probs: Mapping[str, Look] = field(default_factory=dict)
    distributions: Mapping[str, Look] = field(default_factory=dict)
    divergences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    draws: bool = False
    rewards: bool = False
    group_size: int = 1
    sources: frozenset[str] = frozenset({"student", "teacher", "dataset"})
    only_imitates: bool = False
    whole_gradient: bool = False
    measures_scale: bool = False

    @property
    def looks(self) -> list[Look]:
        """All looks that are needed."""
        return [*self.log_probs.values(), *self.distributions.values()]

    @property
    def teacher(self) -> bool:
        """Whether a teacher is needed."""
        return any(look.who == "teacher" for look in self.looks)


@dataclass(frozen=True)
class ScoredTokens:
    """The response tokens of an update, flat, with what was measured before any gradient.

    Attributes:
        response_index: index of each token's response, 0 ... R - 1 in order.
        prompt_index: index of each response's prompt, 0 ... in order.
        log_probs: log-probs of the response tokens by `Needs.log_probs`, in nats.
        divergences: KL at each token by `Needs.divergences`, in nats.
        draws: uniform numbers that depend on seed, step, sample, response number and position alone.
        rewards: reward of each response.
    """

    response_index: Int[Tensor, " N"]
    prompt_index: Int[Tensor, " R"]
    log_probs: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    divergences: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    draws: Float[Tensor, " N"] | None = None
    rewards: Float[Tensor, " R"] | None = None

    def __len__(self) -> int:
        return len(self.response_index)


@dataclass(frozen=True)
class Weighed:
    """An objective's loss over the tokens of an update, and what it records.

    Attributes:
        terms: weighted terms, whose sum is the loss, and observed ones, which are only recorded.
        tokens: per-token numbers behind the weights, recorded with the rollouts.
        metrics: numbers about the weights.
        summaries: how numbers of `terms` and `tokens` become metrics, by name; "mean" if not listed.
    """

    terms: Sequence[Term]
    tokens: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)


def check_weight(name: str, weight: float) -> None:
    """Check that an objective's coefficient in a mixture is positive.

    Raises:
        ValueError: the coefficient is not above 0.
    """
    if weight <= 0:
        raise ValueError(f"{name}.weight must be above 0, not {weight}. Leave {name} out to do without it.")


@runtime_checkable
class Objective(Protocol):
    """A training objective. Objectives are frozen settings with pure methods."""

    def needs(self, step: int) -> Needs:
        """The measurements needed at a rollout step."""
        ...

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Its terms and their weights over the whole global batch of an update. Called once per update."""
        ...


class WeightedObjective(Objective, Protocol):
    """An objective with a coefficient for sums of several."""

    @property
    def weight(self) -> float:
        """Coefficient in the sum of several objectives."""
        ...
