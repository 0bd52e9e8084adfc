"""Summarises a teacher's per-token scores as the worth of each privilege, with intervals.

Every number is a ratio of sums: over tokens, or over responses. The intervals come from a
bootstrap over *problems*, because tokens of one response, and responses to one problem, are not independent.

Shape suffixes: N response tokens, S problems, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Integer

from vicur.data.sample import TextKind
from vicur.diagnostics.gap import PARTS
from vicur.evaluation.statistics import LEVEL, Estimate
from vicur.worth.measure import BLIND, PLAIN, PrivilegeTokens, another, blind_with

Shows = Literal["plain", "own", "another", "blind", "blind_hinted"]
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 250


@dataclass(frozen=True)
class Certainty:
    """A teacher's certainty of some responses, in nats.

    Attributes:
        responses: number of responses.
        level: mean log q^z(y_t) per token.
        per_token: mean log q^z(y_t) - log q(y_t) per token, where q sees the plain problem.
        per_response: the same, summed over a response.
        parts: the same per token, by part of the response: "half_1" ... "quarter_4".
    """

    responses: int
    level: Estimate
    per_token: Estimate
    per_response: Estimate
    parts: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class PositionBin:
    """The mean of a number over the tokens at positions first <= t < end of their response."""

    first: int
    end: int
    tokens: int
    estimate: Estimate


@dataclass(frozen=True)
class Shift:
    """KL(q^z || q) over the whole vocabulary, in nats per token: how far the teacher's distribution
    moves. It is not information, which needs several z (ViCuR eq. 15).

    Attributes:
        whole: mean over all tokens.
        parts: estimates by part of the response: "half_1" ... "quarter_4".
        positions: estimates by position, in bins that double: 0, 1-2, 3-6, 7-14 ...
    """

    whole: Estimate
    parts: Mapping[str, Estimate]
    positions: tuple[PositionBin, ...]


@dataclass(frozen=True)
class Information:
    """I(y_t; z | v, q, y_<t) in nats per token (ViCuR eq. 15), from n texts per problem.

    Attributes:
        estimate: mean_j KL(q^{z_j} || mean_i q^{z_i}): too low on average, less so with more texts.
        above: the same without z_j in the mixture that it is compared with: too high on average.
        bound: mean log n over the tokens, an upper bound on the estimate.
        problems: number of problems with at least two texts.
        num_texts: minimum and maximum number of texts per problem.
    """

    estimate: Estimate
    above: Estimate
    bound: float
    problems: int
    num_texts: tuple[int, int]


@dataclass(frozen=True)
class StudentLoss:
    """The loss of a student that is taught with n texts per problem, split (ViCuR eq. 18), in nats per token.

        mean_j KL(q^{z_j} || p)  =  information  +  KL(mean_j q^{z_j} || p)

    The first part is about the texts alone: no student that does not see them can reduce it.

    Attributes:
        loss: the left side.
        information: the same as the estimate of `Information`.
        rest: the second part, which a student can learn.
        share: information as a share of the loss, 0 to 1; from means over all tokens, not token by token.
    """

    loss: Estimate
    information: Estimate
    rest: Estimate
    share: Estimate


@dataclass(frozen=True)
class ConditionWorth:
    """A teacher's scores of student responses under one condition.

    Attributes:
        name: e.g. "cue", "another_cue", "blind".
        kind: the privilege shown; None for the plain and the blind view.
        shows: its own text, another problem's, none, no image, or its own text and no image.
        all: certainty of all responses. If teacher and student are one model, it cannot rise on the student's
            own samples, because its mean there is -KL(q || q^z); only the certainty of correct responses
            relative to incorrect ones can.
        correct, incorrect: certainty of the responses graded so; None if there are none.
        discrimination: certainty per token of correct responses minus that of incorrect ones.
        shift: shift from the plain view; None for the plain view itself.
        information: None if no problem has two texts.
        student_loss: None if no problem has two texts, or it was not measured.
    """

    name: str
    kind: TextKind | None
    shows: Shows
    all: Certainty
    correct: Certainty | None
    incorrect: Certainty | None
    discrimination: Estimate | None
    shift: Shift | None
    information: Information | None
    student_loss: StudentLoss | None = None


@dataclass(frozen=True)
class Comparison:
    """Certainty under one condition minus that under another, in nats per token, on the same responses.

    Attributes:
        ours, theirs: names of conditions.
        responses: the responses compared: "correct", or "all" if none is graded correct.
        difference: difference with a paired interval.
    """

    ours: str
    theirs: str
    responses: Literal["correct", "all"]
    difference: Estimate


@dataclass(frozen=True)
class PrivilegeWorth:
    """Worth of privileges and controls on the same responses.

    Attributes:
        conditions: plain first, then each kind with its controls.
        comparisons: each text compared with another problem's, and the kinds with each other.
        problems, responses: number of each that were measured.
        graded: number of graded responses, and number of correct ones among them.
        left_out: number of answered problems that lack a measured privilege.
        seed: seed of the bootstrap.
    """

    conditions: tuple[ConditionWorth, ...]
    comparisons: tuple[Comparison, ...]
    problems: int
    responses: int
    graded: int
    correct: int
    left_out: int
    seed: int

    def __getitem__(self, name: str) -> ConditionWorth:
        """A condition by its name."""
        return next(condition for condition in self.conditions if condition.name == name)

    @property
    def rankings(self) -> dict[str, list[str]]:
        """The kinds, highest first, by "certainty" (of correct responses; of all, if none is graded
        correct), "discrimination", "shift" and "information", each only if it is known for all kinds.
        Neighbours may differ by less than their intervals: see `comparisons`."""
        own_conditions = [c for c in self.conditions if c.shows == "own"]
        numbers = {
            "certainty": {c.name: (c.correct or c.all).per_token for c in own_conditions},
            "discrimination": {c.name: c.discrimination for c in own_conditions if c.discrimination},
            "shift": {c.name: c.shift.whole for c in own_conditions if c.shift},
            "information": {c.name: c.information.estimate for c in own_conditions if c.information},
        }
        return {
            name: sorted(estimates, key=lambda kind: -estimates[kind].value)
            for name, estimates in numbers.items()
            if len(estimates) == len(own_conditions)
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers for JSON."""
        return asdict(self) | {"unit": "nats", "level": LEVEL, "rankings": self.rankings}


def privilege_worth(tokens: PrivilegeTokens, *, seed: int = 0, resamples: int = RESAMPLES) -> PrivilegeWorth:
    """Summarise a teacher's per-token scores.

    Args:
        tokens: result of `measure_privileges`.
        seed: seed of the bootstrap.
        resamples: number of bootstrap resamples.
    """
    sums = _Sums(tokens, seed, resamples)
    present = [condition for condition in _conditions(tokens.kinds) if condition[0] in tokens.log_probs]
    conditions = tuple(_condition(tokens, sums, *condition) for condition in present)
    own_conditions = [name for name, _, shows in present if shows == "own"]
    pairs: list[tuple[str, str]] = [
        (kind, another(kind)) for kind in tokens.kinds if another(kind) in tokens.log_probs
    ]
    pairs += [(first, second) for i, first in enumerate(own_conditions) for second in own_conditions[i + 1 :]]
    return PrivilegeWorth(
        conditions=conditions,
        comparisons=tuple(_comparison(tokens, sums, first, second) for first, second in pairs),
        problems=sums.num_problems,
        responses=len(tokens.samples),
        graded=sum(value is not None for value in tokens.correct),
        correct=sum(value is True for value in tokens.correct),
        left_out=tokens.left_out,
        seed=seed,
    )


def _conditions(kinds: Sequence[TextKind]) -> list[tuple[str, TextKind | None, Shows]]:
    conditions: list[tuple[str, TextKind | None, Shows]] = [(PLAIN, None, "plain")]
    for kind in kinds:
        conditions += [(kind, kind, "own"), (another(kind), kind, "another")]
    conditions.append((BLIND, None, "blind"))
    for kind in kinds:
        conditions.append((blind_with(kind), kind, "blind_hinted"))
    return conditions


def _condition(
    tokens: PrivilegeTokens, sums: _Sums, name: str, kind: TextKind | None, shows: Shows
) -> ConditionWorth:
    everything = sums.certainty(name, sums.every)
    assert everything is not None, "there is no response"
    discrimination = None
    if sums.correct.any() and sums.incorrect.any():
        lift = sums.lift(name)
        discrimination = sums.difference((lift, sums.correct), (lift, sums.incorrect))
    shift = None
    if name in tokens.shifts:
        values = tokens.shifts[name].double().numpy()
        parts = {key: sums.per_token(values, mask) for key, mask in sums.parts().items()}
        bins = tuple(
            PositionBin(first, end, int(mask.sum()), sums.per_token(values, mask))
            for first, end, mask in sums.positions()
        )
        shift = Shift(sums.per_token(values, sums.every), parts, bins)
    return ConditionWorth(
        name=name,
        kind=kind,
        shows=shows,
        all=everything,
        correct=sums.certainty(name, sums.correct),
        incorrect=sums.certainty(name, sums.incorrect),
        discrimination=discrimination,
        shift=shift,
        information=_information(tokens, sums, name),
        student_loss=_student_loss(tokens, sums, name),
    )


def _information(tokens: PrivilegeTokens, sums: _Sums, name: str) -> Information | None:
    if name not in tokens.information:
        return None
    counts = tokens.num_texts[name].numpy()[sums.response]
    mask = counts > 0
    values, above = (
        by_text[name].double().numpy() for by_text in (tokens.information, tokens.information_above)
    )
    return Information(
        estimate=sums.per_token(np.where(mask, values, 0.0), mask),
        above=sums.per_token(np.where(mask, above, 0.0), mask),
        bound=float(np.log(counts[mask]).mean()),
        problems=len(np.unique(sums.problem[mask])),
        num_texts=(int(counts[mask].min()), int(counts[mask].max())),
    )


def _student_loss(tokens: PrivilegeTokens, sums: _Sums, name: str) -> StudentLoss | None:
    if name not in tokens.student_loss:
        return None
    mask = tokens.num_texts[name].numpy()[sums.response] > 0
    loss, information, rest = (
        np.where(mask, by_text[name].double().numpy(), 0.0)
        for by_text in (tokens.student_loss, tokens.information, tokens.student_rest)
    )
    return StudentLoss(
        loss=sums.per_token(loss, mask),
        information=sums.per_token(information, mask),
        rest=sums.per_token(rest, mask),
        share=sums.ratio(information, loss),
    )


def _comparison(tokens: PrivilegeTokens, sums: _Sums, first: str, second: str) -> Comparison:
    difference = (tokens.log_probs[first].double() - tokens.log_probs[second].double()).numpy()
    graded = bool(sums.correct.any())
    mask = sums.correct if graded else sums.every
    return Comparison(first, second, "correct" if graded else "all", sums.per_token(difference, mask))


class _Sums:
    """Sums over tokens by problem, and ratios of such sums with their intervals.

    Problems are numbered by id, so that the bootstrap's resamples do not depend on their order.
    """

    def __init__(self, tokens: PrivilegeTokens, seed: int, resamples: int) -> None:
        self.tokens, self.seed, self.resamples = tokens, seed, resamples
        numbers = {name: i for i, name in enumerate(sorted(set(tokens.samples)))}
        self.num_problems = len(numbers)
        of_response = np.array([numbers[name] for name in tokens.samples])
        self.response: Integer[np.ndarray, " N"] = tokens.response_index_N.numpy()
        self.problem: Integer[np.ndarray, " N"] = of_response[self.response]
        self.lengths = np.bincount(self.response)
        starts = np.cumsum(self.lengths) - self.lengths
        self.position: Integer[np.ndarray, " N"] = np.arange(len(self.response)) - starts[self.response]
        self.every: Bool[np.ndarray, " N"] = np.ones(len(self.response), dtype=bool)
        self.correct = np.array([value is True for value in tokens.correct])[self.response]
        self.incorrect = np.array([value is False for value in tokens.correct])[self.response]

    def parts(self) -> dict[str, Bool[np.ndarray, " N"]]:
        """Masks of the tokens in each half and quarter; parts that no response reaches are left out.

        Cut as in `gap.means_by_part`: a response of T tokens at ceil(iT / parts).
        """
        masks: dict[str, Bool[np.ndarray, " N"]] = {}
        for name, parts in PARTS.items():
            part = self.position * parts // self.lengths[self.response]
            masks |= {f"{name}_{i + 1}": part == i for i in range(parts) if parts > 1 and (part == i).any()}
        return masks

    def positions(self) -> list[tuple[int, int, Bool[np.ndarray, " N"]]]:
        """Bins 0, 1-2, 3-6, 7-14, ... with the tokens in them."""
        bins, first = [], 0
        while first <= self.position.max():
            end = 2 * first + 1
            bins.append((first, end, (self.position >= first) & (self.position < end)))
            first = end
        return bins

    def lift(self, name: str) -> Float[np.ndarray, " N"]:
        """log q^z(y_t) - log q(y_t)."""
        return (self.tokens.log_probs[name].double() - self.tokens.log_probs[PLAIN].double()).numpy()

    def certainty(self, name: str, mask: Bool[np.ndarray, " N"]) -> Certainty | None:
        """Certainty over the tokens in `mask`; None if there are none."""
        if not mask.any():
            return None
        lift = self.lift(name)
        is_first = mask & (self.position == 0)
        parts = {
            key: self.per_token(lift, mask & part)
            for key, part in self.parts().items()
            if (mask & part).any()
        }
        return Certainty(
            responses=int(is_first.sum()),
            level=self.per_token(self.tokens.log_probs[name].double().numpy(), mask),
            per_token=self.per_token(lift, mask),
            per_response=self._ratio(self._by_problem(lift * mask), self._by_problem(is_first)),
            parts=parts,
        )

    def per_token(self, values: Float[np.ndarray, " N"], mask: Bool[np.ndarray, " N"]) -> Estimate:
        """Mean of the values over the tokens in `mask`."""
        return self._ratio(self._by_problem(values * mask), self._by_problem(mask))

    def ratio(self, numerator: Float[np.ndarray, " N"], denominator: Float[np.ndarray, " N"]) -> Estimate:
        """The sum of some numbers over that of others, e.g. a share of a loss."""
        return self._ratio(self._by_problem(numerator), self._by_problem(denominator))

    def difference(
        self,
        first: tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]],
        second: tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]],
    ) -> Estimate:
        """The mean over some tokens minus that over others, from the same resamples of the problems."""
        pairs = [(self._by_problem(v * mask), self._by_problem(mask)) for v, mask in (first, second)]
        some = (pairs[0][1] > 0) | (pairs[1][1] > 0)
        draws, values = [], []
        counts = _draws(int(some.sum()), self.resamples, self.seed)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have no correct response
            for numerator, denominator in pairs:
                draws.append(_product(counts, numerator[some]) / _product(counts, denominator[some]))
                values.append(numerator.sum() / denominator.sum())
        return _interval(float(values[0] - values[1]), draws[0] - draws[1])

    def _by_problem(self, values: Any) -> Float[np.ndarray, " S"]:
        return np.bincount(self.problem, values.astype(np.float64), self.num_problems)

    def _ratio(self, numerator: Float[np.ndarray, " S"], denominator: Float[np.ndarray, " S"]) -> Estimate:
        # Only problems that contribute to the number are resampled, so that every resample has some.
        some = denominator > 0
        counts = _draws(int(some.sum()), self.resamples, self.seed)
        draws = _product(counts, numerator[some]) / _product(counts, denominator[some])
        return _interval(float(numerator.sum() / denominator.sum()), draws)


def _interval(value: float, draws: Float[np.ndarray, " B"]) -> Estimate:
    finite = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]) if len(finite) else (value, value)
    return Estimate(value, float(low), float(high))


@lru_cache(maxsize=4)
def _draws(count: int, resamples: int, seed: int) -> Integer[np.ndarray, "B S"]:
    """How often each problem occurs in each resample of the bootstrap. Cached, because all numbers about the
    same problems must come from the same resamples."""
    random = np.random.default_rng(seed)
    counts = np.empty((resamples, count), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(random.integers(count, size=count), minlength=count)
    return counts


def _product(counts: Integer[np.ndarray, "B S"], values: Float[np.ndarray, " S"]) -> Float[np.ndarray, " B"]:
    # A few resamples at a time: all of them as floats would be gigabytes for thousands of problems.
    rows = range(0, len(counts), RESAMPLES_AT_ONCE)
    return np.concatenate([counts[i : i + RESAMPLES_AT_ONCE].astype(np.float64) @ values for i in rows])
