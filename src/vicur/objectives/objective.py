"""The protocol of an objective: the looks it needs, and per-token terms whose weights are known before any
gradient.

    loss = sum over terms j and response tokens t of  weight_jt * term_jt

The weights are detached and include the whole reduction (also 1/N), computed over the global batch of an
update. So the loss and its gradient do not depend on how the batch is split, padded or ordered.

An objective is a frozen dataclass of settings with two methods, `needs` and `weigh`.
`examples/own_objective.py` is an example from outside the package.

Shape suffixes: N response tokens, R responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vicur.data.views import OrPlain, View, on_top
from vicur.scoring.term import Term


@dataclass(frozen=True)
class Look:
    """One scoring pass: a model reads the responses under a view.

    Attributes:
        who: the model: "student", "teacher", or the name of another teacher of the recipe.
        view: what it is shown; None for its own view in the recipe, "student" for what the student is shown.
            A student's look with a view adds it to what the student is shown.
    """

    who: str
    view: View | Literal["student"] | None = None

    def resolved(self, views: Mapping[str, View]) -> View:
        """The view of this look.

        Args:
            views: the view of each model in the recipe.
        """
        if self.view is None:
            return views[self.who]
        if isinstance(self.view, str):
            return views["student"]
        if isinstance(self.view, OrPlain) and self.view.view == views.get(self.who):
            return views[self.who]  # one pass serves both
        return on_top(views["student"], self.view) if self.who == "student" else self.view


OLD = "old"
"""Name of the student's look at its own prompt, at the start of the rollout batch."""
TEACHER = "teacher"
"""Name of the teacher's look under the recipe's view, with a hint if there is a privilege: q, or q^z."""
TEACHER_PLAIN = "teacher_plain"
"""Name of the teacher's look at the plain problem: q."""
REFERENCE = "reference"
"""Name of the reference policy's look, which is the teacher's at the student's prompt."""
UNPRIVILEGED = "unprivileged"
"""Name of the teacher's look at the student's prompt, for the split of the gap."""

Summary = Literal["mean", "parts", "top_mass", "quantiles", "none"]
"""Reduction of per-token numbers to metrics: "none", they are only recorded with the rollouts; "mean";
"parts", the means over whole responses, halves and quarters; "top_mass", the mean and the share of the sum in
the top 10 % of tokens; "quantiles", the mean and quantiles."""


@dataclass(frozen=True)
class Needs:
    """What an objective must have measured before it can weigh tokens, and its requirements on a run.

    Attributes:
        log_probs: looks whose log-probs of the response tokens are needed, by name.
        distributions: looks whose full next-token distributions a term reads, by name.
        divergences: names (first, second) of two such distributions, by the name under which
            KL(first || second) is passed to `weigh`.
        draws: whether a uniform number for each token is needed.
        segments: patterns of the text of responses by the name of the segment that they match.
        rewards: whether responses are graded against gold answers.
        group_size: minimum number of responses to a problem.
        sources: allowed sources of responses.
        only_imitates: whether the loss is minimal once the student agrees with the teacher. Then a
            self-teacher with the student's prompt has nothing to teach.
        whole_gradient: whether the objective's scale refers to the whole gradient, so that no other objective
            may be added.
        measures_scale: whether the gradient is scaled by |gradient of stage 0| / |gradient of stages 0
            and 1| (VGS eq. 15).
    """

    log_probs: Mapping[str, Look] = field(default_factory=dict)
    distributions: Mapping[str, Look] = field(default_factory=dict)
    divergences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    draws: bool = False
    segments: Mapping[str, str] = field(default_factory=dict)
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
    def models(self) -> set[str]:
        """The models that score the responses, by name."""
        return {look.who for look in self.looks}


@dataclass(frozen=True)
class ScoredTokens:
    """The response tokens of an update in the flat order, with the measurements made before any gradient.

    Attributes:
        response_index: index of each token's response, 0 ... R - 1 in order.
        prompt_index: index of each response's prompt, 0, 1, ... in order.
        log_probs: log-probs of the response tokens by `Needs.log_probs`, in nats.
        divergences: KL at each token by `Needs.divergences`, in nats.
        draws: uniform numbers that depend only on seed, step, sample, response number and position.
        segments: whether each token is in a segment, by the segment's name.
        lacking: whether each response's problem lacks what a look of `log_probs` shows, so that the look
            showed the plain problem, by the look's name.
        rewards: reward of each response; None if one of them cannot be graded.
    """

    response_index: Int[Tensor, " N"]
    prompt_index: Int[Tensor, " R"]
    log_probs: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    divergences: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    draws: Float[Tensor, " N"] | None = None
    segments: Mapping[str, Bool[Tensor, " N"]] = field(default_factory=dict)
    lacking: Mapping[str, Bool[Tensor, " R"]] = field(default_factory=dict)
    rewards: Float[Tensor, " R"] | None = None

    def __len__(self) -> int:
        return len(self.response_index)


@dataclass(frozen=True)
class Weighed:
    """An objective's loss over the tokens of an update, and what it records.

    Attributes:
        terms: weighted terms, whose sum is the loss, and observed ones, which are only recorded.
        tokens: per-token numbers from which the weights follow, recorded with the rollouts.
        metrics: numbers about the weights.
        summaries: reduction of `terms` and `tokens` to metrics, by name; "mean" if not listed.
    """

    terms: Sequence[Term]
    tokens: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)

    def times(self, factors: Float[Tensor, " N"] | None, name: str) -> Weighed:
        """The same with every weight multiplied by a factor for its token, which is recorded.

        Args:
            factors: the factors; None for 1.
            name: name under which they are recorded.
        """
        if factors is None:
            return self
        terms = [
            term if term.weights is None else replace(term, weights=term.weights * factors)
            for term in self.terms
        ]
        return replace(self, terms=terms, tokens={**self.tokens, name: factors})


def check_weight(name: str, weight: float) -> None:
    """Check that an objective's coefficient in a mixture is positive.

    Raises:
        ValueError: the coefficient is not above 0.
    """
    if weight <= 0:
        raise ValueError(
            f"{name}.weight must be above 0, not {weight}. To train without {name}, leave it out."
        )


@runtime_checkable
class Objective(Protocol):
    """A training objective. Objectives are frozen settings with pure methods."""

    def needs(self, step: int) -> Needs:
        """The measurements that the objective needs at a rollout step."""
        ...

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """The terms and their weights over the global batch of an update. Called once per update."""
        ...


class WeightedObjective(Objective, Protocol):
    """An objective with a coefficient for sums of several."""

    @property
    def weight(self) -> float:
        """Coefficient in the sum of several objectives."""
        ...
