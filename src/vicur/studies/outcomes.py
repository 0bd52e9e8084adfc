"""The outcomes of a study's rows, and their summary with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vicur.diagnostics.leakage import HintLeakage
from vicur.evaluation.results import Evaluation
from vicur.evaluation.statistics import Estimate, mean_interval, paired_difference
from vicur.studies.study import BASE, DOMAINS, Study, Trained, Untrained


@dataclass(frozen=True)
class Outcome:
    """The result of one row with one seed.

    Attributes:
        in_domain, out_of_domain: evaluations on the two test sets.
        visual_advantage: mean over the tokens of its in-domain answers, in nats, as scored by the larger
            teacher and by the model itself.
        leakage: hint leakage in its training rollouts; for an untrained model, in its answers.
        seconds: training time; for an untrained model, the time of its evaluation.
    """

    in_domain: Evaluation
    out_of_domain: Evaluation
    visual_advantage: dict[str, float]
    leakage: HintLeakage
    seconds: float

    @classmethod
    def of(cls, evaluations: Mapping[str, Evaluation], numbers: Mapping[str, Any]) -> Outcome:
        """An outcome from its evaluations by domain and `numbers`.

        Raises:
            KeyError, TypeError, ValueError: the numbers are of something else.
        """
        leakage = HintLeakage(**numbers["hint_leakage"])
        advantage = {who: float(value) for who, value in dict(numbers["visual_advantage"]).items()}
        return cls(
            **evaluations, visual_advantage=advantage, leakage=leakage, seconds=float(numbers["seconds"])
        )

    def numbers(self) -> dict[str, Any]:
        """The outcome without its evaluations, for JSON."""
        return {
            "visual_advantage": self.visual_advantage,
            "hint_leakage": asdict(self.leakage),
            "seconds": self.seconds,
        }


def summarise(study: Study, outcomes: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    """Accuracies in percent, differences in points, each with a 95 % interval.

    With one seed, the intervals give the uncertainty from sampling the test problems; with several,
    Student's t over the seeds gives that of the whole experiment.
    """
    rows: dict[str, Untrained | Trained] = {**study.untrained, **study.trained}
    titles = {name: row.title for name, row in rows.items()}
    methods: dict[str, Any] = {}
    for name, runs in outcomes.items():
        advantages = [run.visual_advantage for run in runs]
        methods[name] = {
            "title": titles[name],
            "in_domain": _named(_accuracy([run.in_domain for run in runs])),
            "out_of_domain": _named(_accuracy([run.out_of_domain for run in runs])),
            "visual_advantage": {who: sum(a[who] for a in advantages) / len(runs) for who in advantages[0]},
            "hint_leakage": asdict(sum((run.leakage for run in runs), HintLeakage())),
            "seconds": sum(run.seconds for run in runs) / len(runs),
        }
    seeds = len(outcomes[BASE])
    done = [name for name in outcomes if len(outcomes[name]) == seeds]
    pairs = [(name, BASE) for name in study.trained if name in done]
    pairs += [(a, b) for a, b in study.compare if a in done and b in done]
    differences = [
        {"ours": first, "theirs": second}
        | {d: asdict(_difference(outcomes[first], outcomes[second], d)) for d in DOMAINS}
        for first, second in pairs
    ]
    return {"seeds": seeds, "methods": methods, "differences": differences}


def _named(estimate: Estimate) -> dict[str, float]:
    return {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}


def _accuracy(runs: list[Evaluation]) -> Estimate:
    if len(runs) == 1:
        return runs[0].accuracy
    return mean_interval([run.accuracy.value for run in runs])


def _difference(first: list[Outcome], second: list[Outcome], domain: str) -> Estimate:
    pairs = [(getattr(a, domain), getattr(b, domain)) for a, b in zip(first, second, strict=True)]
    if len(pairs) == 1:
        return paired_difference(pairs[0][0].graded, pairs[0][1].graded)
    return mean_interval([a.accuracy.value - b.accuracy.value for a, b in pairs])
