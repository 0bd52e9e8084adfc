"""The sum of several objectives as one loss, and the settings that select them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TypeVar

from vicur.objectives.custom import load_objective
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.objective import Needs, Objective, ScoredTokens, Weighed, WeightedObjective
from vicur.objectives.policy import GRPO, PAPO
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.target import TargetOPD
from vicur.objectives.visual_advantage import VisualAdvantageOPD
from vicur.objectives.visual_steering import VisualSteeringOPD
from vicur.settings.section import JsonTable, section

Value = TypeVar("Value")


@section
class ObjectiveConfig:
    """The loss to minimise: the sum of the objectives that are named, each times its `weight`.

    If none is named, `sampled_token` with its defaults.
    """

    sampled_token: SampledTokenOPD | None = None
    """ViCuR's sampled-token distillation."""
    divergence: DivergenceOPD | None = None
    """Divergence over the whole vocabulary: Standard OPD, forward KL, JSD, off-policy KD."""
    target: TargetOPD | None = None
    """Divergence from a target that is made of several distributions: contrasts, mixtures, projections,
    several teachers, segments."""
    visual_advantage: VisualAdvantageOPD | None = None
    """VA-OPD (visual advantage) and its ablations."""
    visual_steering: VisualSteeringOPD | None = None
    """VGS (visual gradient steering), its variants and its control."""
    grpo: GRPO | None = None
    """GRPO: policy gradient on graded answers."""
    papo: PAPO | None = None
    """PAPO: GRPO plus a KL term that rewards dependence on the image."""
    supervised: SupervisedFineTuning | None = None
    """Cross-entropy on responses of the teacher or of the data (CoT-SFT)."""
    custom: JsonTable = field(default_factory=dict)
    """Your own objective: `path` (`path/to/file.py:Class` or `package.module:Class`) and the settings of that
    class. docs/objectives.md has an example."""

    def __post_init__(self) -> None:
        if self.grpo is not None and self.papo is not None:
            raise ValueError(
                "The objective papo already contains grpo; set objective.papo.grpo, or remove one of the two."
            )
        assert self.parts  # loads a custom objective now, so that its errors show at once

    @cached_property
    def parts(self) -> dict[str, WeightedObjective]:
        """The objectives of the sum, by name.

        Raises:
            ValueError: a custom objective cannot be loaded, or its settings are invalid.
        """
        return self._named_parts or {"sampled_token": SampledTokenOPD()}

    @cached_property
    def _named_parts(self) -> dict[str, WeightedObjective]:
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "custom"}
        parts = {name: part for name, part in named.items() if part is not None}
        return parts | ({"custom": load_objective(self.custom)} if self.custom else {})

    def written_out(self) -> ObjectiveConfig:
        """The same with the default objective named, so that a printed recipe shows its settings."""
        return self if self._named_parts else replace(self, sampled_token=SampledTokenOPD())

    def build(self) -> Objective:
        """The objective if there is only one, otherwise the mixture.

        Raises:
            ValueError: the objectives cannot be combined.
        """
        parts = self.parts
        first = next(iter(parts.values()))
        return first if len(parts) == 1 and first.weight == 1 else Mixture(parts)


@dataclass(frozen=True)
class Mixture:
    """sum_i weight_i * L_i, each with its own reduction (VGS eq. 22).

    Attributes:
        parts: the objectives by name. If there are several, the names of their records start with theirs.

    Raises:
        ValueError: the objectives cannot be combined.
    """

    parts: Mapping[str, WeightedObjective]

    def __post_init__(self) -> None:
        needs = {name: part.needs(0) for name, part in self.parts.items()}
        if not _common_sources(needs.values()):
            takes = "; ".join(
                f"{n} needs responses of {' or '.join(sorted(x.sources))}" for n, x in needs.items()
            )
            raise ValueError(f"The objectives cannot share a source of responses: {takes}.")
        for name, need in needs.items():
            if need.whole_gradient and len(needs) > 1:
                raise ValueError(
                    f"The scale of {name} refers to the whole gradient, to which other objectives contribute "
                    f"here: set objective.{name}.scale to a number, 1 for no scaling."
                )

    def needs(self, step: int) -> Needs:
        """The union of the needs of all parts."""
        needs = [part.needs(step) for part in self.parts.values()]
        return Needs(
            log_probs=_union(need.log_probs for need in needs),
            distributions=_union(need.distributions for need in needs),
            divergences=_union(need.divergences for need in needs),
            draws=any(need.draws for need in needs),
            segments=_union(need.segments for need in needs),
            rewards=any(need.rewards for need in needs),
            group_size=max(need.group_size for need in needs),
            sources=_common_sources(needs),
            only_imitates=all(need.only_imitates for need in needs),
            measures_scale=any(need.measures_scale for need in needs),
        )

    def weigh(self, scored: ScoredTokens) -> Weighed:
        """Weigh all parts and multiply their weights by their coefficients."""
        weighed = {name: part.weigh(scored) for name, part in self.parts.items()}
        return Weighed(
            terms=[
                replace(term.scaled(self.parts[name].weight), name=self._name(name, term.name))
                for name, part in weighed.items()
                for term in part.terms
            ],
            tokens=self._named({name: part.tokens for name, part in weighed.items()}),
            metrics=self._named({name: part.metrics for name, part in weighed.items()}),
            summaries=self._named({name: part.summaries for name, part in weighed.items()}),
        )

    def _named(self, tables: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
        """One table of all parts' tables; names start with that of the part."""
        return {
            self._name(part, key): value for part, table in tables.items() for key, value in table.items()
        }

    def _name(self, part: str, name: str) -> str:
        return f"{part}/{name}" if len(self.parts) > 1 else name


def _common_sources(needs: Iterable[Needs]) -> frozenset[str]:
    return frozenset.intersection(*(need.sources for need in needs))


def _union(tables: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """Merge tables; a name must have the same value in all tables that have it."""
    merged: dict[str, Value] = {}
    for table in tables:
        for name, value in table.items():
            if merged.setdefault(name, value) != value:
                raise ValueError(f"Two objectives define {name} differently: {merged[name]} and {value}.")
    return merged
