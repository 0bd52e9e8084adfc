"""Alarms: curves of a run that need a look.

The rules compare the first and the last tenth of the steps; their thresholds are below. An alarm is a hint,
not a verdict, and changes nothing in the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vicur.reporting.runs import is_number
from vicur.reporting.series import ends

Kind = Literal["leakage", "length", "truncation", "repetition", "engine", "accuracy", "skipped"]

FEWEST_STEPS = 10
"""Number of steps below which curves are not judged."""
LEAKAGE, LEAKAGE_RISE = 0.02, 2.0
"""Hint leakage: at least this share of the responses in the last tenth, and this many times the first's."""
LENGTH = 1.5
"""Length: the last tenth is longer or shorter than the first by more than this factor."""
TRUNCATED = 0.1
"""Truncation: more than this share of the last tenth was cut off, and more than in the first."""
REPEATED = 0.3
"""Repetition: the share of repeated 4-grams in the last tenth is above this, and above the first's."""
ENGINE_RISE = 3.0
"""Engine: its mean difference from the trainer grew by more than this factor."""
ACCURACY, GAP = 2.0, 0.9
"""Accuracy: it fell by more than this many points while the mean absolute gap fell below this share of its
first value: the student agrees more with a teacher that does not help it."""


@dataclass(frozen=True)
class Alarm:
    """A curve of a run that needs a look.

    Attributes:
        kind: what it is about.
        step: the last step that it was judged by.
        text: a sentence.
    """

    kind: Kind
    step: int
    text: str


def alarms_of(
    metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], responses_per_step: int
) -> list[Alarm]:
    """The alarms of a run.

    Args:
        metrics: the metrics of every step so far.
        evaluations: the evaluations on held-out problems so far.
        responses_per_step: number of responses in a step.
    """
    if len(metrics) < FEWEST_STEPS:
        return list(_skipped(metrics))
    step = int(metrics[-1]["step"])
    all_ends = {name: ends([line[name] for line in metrics if is_number(line.get(name))]) for name in _NAMES}
    curves = {name: (first, last) for name, (first, last) in all_ends.items() if first is not None}
    sentences = [
        *_leakage(curves, responses_per_step),
        *_drift(curves),
        *_engine(curves),
        *_accuracy(curves, evaluations),
    ]
    return [*_skipped(metrics), *(Alarm(kind, step, text) for kind, text in sentences)]


_NAMES = (
    *("hint_samples", "response_tokens", "truncated", "repetition", "engine_difference"),
    *("gap_absolute_whole", "rollout_accuracy"),
)
_Ends = Mapping[str, tuple[Any, Any]]
_Sentences = Iterator[tuple[Kind, str]]


def _skipped(metrics: Sequence[Mapping[str, Any]]) -> Iterator[Alarm]:
    steps = [line["step"] for line in metrics if line.get("skipped_updates")]
    if steps:
        text = f"Updates were skipped in {len(steps)} step(s), because loss or gradient was not finite."
        yield Alarm("skipped", int(steps[-1]), text)


def _leakage(curves: _Ends, responses: int) -> _Sentences:
    first, last = (count / responses for count in curves.get("hint_samples", (0.0, 0.0)))
    if last >= LEAKAGE and last > LEAKAGE_RISE * first:
        yield (
            "leakage",
            f'The word "hint" is in {100 * last:.1f} % of the responses, at first in {100 * first:.1f} %: '
            "the student imitates the teacher's hint.",
        )


def _drift(curves: _Ends) -> _Sentences:
    if "response_tokens" in curves:
        first, last = curves["response_tokens"]
        if first > 0 and not 1 / LENGTH <= last / first <= LENGTH:
            yield "length", f"Responses went from {first:.0f} to {last:.0f} tokens."
    shares: tuple[tuple[Kind, str, float, str], ...] = (
        ("truncation", "truncated", TRUNCATED, "of the responses are cut off"),
        ("repetition", "repetition", REPEATED, "of the 4-grams are repeated"),
    )
    for kind, name, bound, what in shares:
        first, last = curves.get(name, (0.0, 0.0))
        if last > max(bound, first):
            yield kind, f"{100 * last:.0f} % {what}, at first {100 * first:.0f} %."


def _engine(curves: _Ends) -> _Sentences:
    if "engine_difference" in curves:
        first, last = curves["engine_difference"]
        if first > 0 and last > ENGINE_RISE * first:
            yield (
                "engine",
                f"The engine's log-probs differ from the trainer's by {last:.2g} nats, at first {first:.2g}.",
            )


def _accuracy(curves: _Ends, evaluations: Sequence[Mapping[str, Any]]) -> _Sentences:
    if "gap_absolute_whole" not in curves:
        return
    first_gap, last_gap = curves["gap_absolute_whole"]
    measured = [line["accuracy"] for line in evaluations if is_number(line.get("accuracy"))]
    what, ends_of = "training", curves.get("rollout_accuracy")
    if len(measured) > 1:
        what, ends_of = "held-out", (measured[0], measured[-1])
    if ends_of is None or last_gap > GAP * first_gap:
        return
    first, last = ends_of
    if last < first - ACCURACY:
        yield (
            "accuracy",
            f"The {what} accuracy fell from {first:.1f} to {last:.1f} % while the mean absolute gap fell "
            f"from {first_gap:.3f} to {last_gap:.3f} nats: agreeing with this teacher does not help.",
        )
