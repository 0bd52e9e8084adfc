"""The state of a run between two steps, apart from weights and optimizer states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vicur.diagnostics.leakage import HintLeakage
from vicur.training.batches import Position


@dataclass
class RunState:
    """Where a run is.

    Random numbers are not part of it: all of them are keyed by the seed and the step.

    Attributes:
        step: finished rollout steps.
        updates: finished updates, counting those that were skipped, for the learning-rate schedule.
        position: position in the problems.
        leakage: hint leakage of all rollouts.
        skipped_in_a_row: the last updates that were skipped because a number was not finite.
        seconds: seconds of phases outside the steps, e.g. evaluation, and of the whole run.
        scores: held-out accuracy in percent, by the step at which it was measured.
        evaluated: the step of the last evaluation on held-out problems; -1 before the first.
        observed: the step of the last observation; -1 before the first.
        data: number of problems and a digest of their ids; empty before the first step.
    """

    step: int = 0
    updates: int = 0
    position: Position = field(default_factory=Position)
    leakage: HintLeakage = field(default_factory=HintLeakage)
    skipped_in_a_row: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    evaluated: int = -1
    observed: int = -1
    data: str = ""

    def count(self, was_taken: bool) -> None:
        """Count an update."""
        self.updates += 1
        self.skipped_in_a_row = 0 if was_taken else self.skipped_in_a_row + 1

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> RunState:
        """The inverse of `to_json`."""
        return cls(
            **{
                **values,
                "position": Position(**values["position"]),
                "leakage": HintLeakage(**values["leakage"]),
                "scores": {int(step): score for step, score in values["scores"].items()},
            }
        )
