"""Several objectives added into one loss, and the settings that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.objective import Needs, Objective, ScoredTokens
from vicur.objectives.policy import GRPO, PAPO
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.visual_advantage import VisualAdvantageOPD
from vicur.objectives.visual_steering import VisualSteeringOPD
from vicur.scoring.term import Term

Value = TypeVar("Value")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: the sum of the objectives that are given, each times its `weight`.

    If none is given, `sampled_token` with its defaults.
    """

    sampled_token: SampledTokenOPD | None = None
    """ViCuR's sampled-token distillation."""
    divergence: DivergenceOPD | None = None
    """Standard OPD over the whole vocabulary, forward KL, JSD, off-policy KD."""
    visual_advantage: VisualAdvantageOPD | None = None
    """VA-OPD and its ablations."""
    visual_steering: VisualSteeringOPD | None = None
    """VGS, its variants and its control."""
    grpo: GRPO | None = None
    """GRPO: policy gradient on graded answers."""
    papo: PAPO | None = None
    """PAPO: GRPO plus a KL term that rewards dependence on the image."""
    supervised: SupervisedFineTuning | None = None
    """Cross-entropy on responses of the teacher or of the data (CoT-SFT)."""

    def __post_init__(self) -> None:
        if self.grpo is not None and self.papo is not None:
            raise ValueError(
                "The objective papo holds grpo already; set objective.papo.grpo, or leave one out."
            )

    @property
    def parts(self) -> dict[str, WeightedObjective]:
        """The objectives that are given, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in given.items() if v is not None} or {"sampled_token": SampledTokenOPD()}

    def written_out(self) -> ObjectiveConfig:
        """The same with the objective that acts by default, so that a printed recipe shows its settings."""
        given = any(getattr(self, f.name) is not None for f in fields(self))
        return self if given else replace(self, sampled_token=SampledTokenOPD())

    def build(self) -> Objective:
        """The one objective, or the mixture of several.

        Raises:
            ValueError: they do not go together.
        """
        parts = self.parts
        first = next(iter(parts.values()))
        return first if len(parts) == 1 and first.weight == 1 else Mixture(parts)


class WeightedObjective(Objective, Protocol):
    """An objective that says how much it counts among others."""

    @property
    def weight(self) -> float:
        """Its coefficient."""
        ...


@dataclass(frozen=True)
class Mixture:
    """sum_i weight_i * L_i, each with its own reduction (VGS eq. 22).

    Attributes:
        parts: the objectives by name. What they record is named after them, where there are several.

    Raises:
        ValueError: the objectives do not go together.
    """

    parts: Mapping[str, WeightedObjective]

    def __post_init__(self) -> None:
        needs = {name: part.needs(0) for name, part in self.parts.items()}
        if not _common_sources(needs.values()):
            wanted = "; ".join(
                f"{n} takes those of {' or '.join(sorted(x.sources))}" for n, x in needs.items()
            )
            raise ValueError(f"The objectives want different responses: {wanted}.")
        for name, need in needs.items():
            if need.whole_gradient and len(needs) > 1:
                raise ValueError(
                    f"The scale of {name} is about the whole gradient, which others add to here: set "
                    f"objective.{name}.scale to a number, 1 for none."
                )

    def needs(self, step: int) -> Needs:
        """All that any part needs."""
        needs = [part.needs(step) for part in self.parts.values()]
        return Needs(
            log_probs=_union(need.log_probs for need in needs),
            distributions=_union(need.distributions for need in needs),
            divergences=_union(need.divergences for need in needs),
            draws=any(need.draws for need in needs),
            rewards=any(need.rewards for need in needs),
            siblings=max(need.siblings for need in needs),
            sources=_common_sources(needs),
            measures_scale=any(need.measures_scale for need in needs),
        )

    def terms(self, scored: ScoredTokens) -> list[Term]:
        """The terms of all parts, their weights multiplied."""
        return [
            replace(term.scaled(part.weight), name=self._name(name, term.name))
            for name, part in self.parts.items()
            for term in part.terms(scored)
        ]

    def tokens(self, scored: ScoredTokens) -> Mapping[str, Float[Tensor, " N"]]:
        """Those of all parts."""
        return self._collect(lambda part: part.tokens(scored))

    def metrics(self, scored: ScoredTokens) -> Mapping[str, float]:
        """Those of all parts."""
        return self._collect(lambda part: part.metrics(scored))

    def _collect(self, method: Callable[[Objective], Mapping[str, Value]]) -> dict[str, Value]:
        found = {name: method(part) for name, part in self.parts.items()}
        return {self._name(name, key): value for name, own in found.items() for key, value in own.items()}

    def _name(self, part: str, own: str) -> str:
        return f"{part}/{own}" if len(self.parts) > 1 else own


def _common_sources(needs: Iterable[Needs]) -> frozenset[str]:
    return frozenset.intersection(*(need.sources for need in needs))


def _union(tables: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """One table of all; a name must mean the same in each that has it."""
    merged: dict[str, Value] = {}
    for table in tables:
        for name, value in table.items():
            if merged.setdefault(name, value) != value:
                raise ValueError(f"Two objectives need {name}, but not the same: {merged[name]} and {value}.")
    return merged
