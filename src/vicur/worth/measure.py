"""Measures the effect of a privilege on a teacher, token by token, on responses that a student wrote without
it.

The same response is scored under several conditions: the problem alone (plain), with its own cue,
rationale or answer, with that of another problem, without its image. All numbers are in nats.

Shape suffixes: N response tokens, R responses, C tokens of a block, V kept vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vicur.data.sample import TEXT_KINDS, Sample, TextKind
from vicur.data.views import Blind, Hinted, Plain, View, combined
from vicur.files import write_rows
from vicur.progress import Progress
from vicur.scoring.chunks import observed_terms
from vicur.scoring.scorer import Scorer
from vicur.scoring.term import STUDENT, Block, Scores, Term
from vicur.scoring.terms import (
    divergence_of_each,
    divergence_of_mixture,
    mixture_information,
    mixture_information_above,
    reverse_kl,
)
from vicur.worth.responses import StudentResponses
from vicur.worth.texts import others, outline, several_texts, text_of, with_text

PLAIN, BLIND = "plain", "blind"
LEARNER = "learner"
"""Name of the student's own distribution on the plain problem, if its loss is measured."""
FROM_SEVERAL = ("information", "information_above", "student_loss", "student_rest")
"""Quantities that need several texts per problem."""


def another(kind: TextKind) -> str:
    """Name of the condition that shows another problem's text."""
    return f"another_{kind}"


def blind_with(kind: TextKind) -> str:
    """Name of the condition that shows the text and no image."""
    return f"blind_{kind}"


@dataclass(frozen=True)
class PrivilegeConfig:
    """The privileges to measure, and the controls."""

    kinds: tuple[TextKind, ...] | None = None
    """Kinds to measure; None for those that every answered problem has. Problems that lack a given kind are
    left out, so that all kinds are measured on the same responses."""
    shuffled: bool = True
    """Whether to also show another problem's text of each kind."""
    blind: bool = True
    """Whether to also show the problem without its image."""
    blind_hinted: bool = True
    """Whether to also show each text without the image, which measures what the words alone are worth."""
    information: bool = True
    """Estimate information where a problem has several texts of a kind (columns `cues`, `rationales`,
    `answers`); with `shuffled`, also from as many other problems' texts."""
    seed: int = 0
    """Seed of the choice of other problems' texts, and of the bootstrap."""
    prompts_per_batch: int = 16
    """Number of problems whose hidden states are in memory together, under all conditions."""

    def __post_init__(self) -> None:
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, not {self.prompts_per_batch}.")
        for kind in self.kinds or ():
            if kind not in TEXT_KINDS:
                raise ValueError(f"A privilege is one of {', '.join(TEXT_KINDS)}, not {kind}.")
        if self.kinds is not None and not self.kinds:
            raise ValueError(f"At least one of {', '.join(TEXT_KINDS)} must be measured.")


@dataclass(frozen=True)
class PrivilegeTokens:
    """A teacher's scores of every response token under every condition.

    The flat order is that of `Rollouts`: problems, their responses, their tokens.

    Attributes:
        kinds: kinds of privilege that were measured.
        samples: id of the problem of each response.
        response_numbers: number of each response among those to its problem.
        correct: whether each response is correct; None if unknown.
        texts: the responses.
        ids_N: tokens of the responses.
        response_index_N: index of the response that each token belongs to.
        log_probs: log q(y_t) by condition, plain among them.
        shifts: KL(q^z || q) by condition, plain left out.
        information: estimate of I(y_t; z | v, q, y_<t) by condition; NaN if a problem has fewer than
            two texts.
        information_above: its leave-one-out counterpart, which overestimates it.
        student_loss: mean_j KL(q^{z_j} || p), the student's loss over the texts that the information is
            estimated from; NaN where that is. Empty if it was not measured.
        student_rest: KL(mean_j q^{z_j} || p), which with the information sums to the loss.
        num_texts: number of texts of each response's problem that the information is estimated from; 0 for
            none.
        left_out: number of answered problems that lack a measured privilege.
    """

    kinds: tuple[TextKind, ...]
    samples: tuple[str, ...]
    response_numbers: tuple[int, ...]
    correct: tuple[bool | None, ...]
    texts: tuple[str, ...]
    ids_N: Int[Tensor, " N"]
    response_index_N: Int[Tensor, " N"]
    log_probs: Mapping[str, Float[Tensor, " N"]]
    shifts: Mapping[str, Float[Tensor, " N"]]
    information: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    information_above: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    student_loss: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    student_rest: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)
    num_texts: Mapping[str, Int[Tensor, " R"]] = field(default_factory=dict)
    left_out: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One row per response: sample, response_number, correct, response, ids, and arrays with one number
        per token: `log_prob_<condition>`, `shift_<condition>`, `information_<condition>`,
        `information_above_<condition>`, `student_loss_<condition>` and `student_rest_<condition>`; the last
        four may be None."""
        lengths = torch.bincount(self.response_index_N, minlength=len(self.samples)).tolist()
        columns = {
            f"{name}_{condition}": [part.numpy() for part in values.split(lengths)]
            for name, by_condition in (
                ("log_prob", self.log_probs),
                ("shift", self.shifts),
                ("information", self.information),
                ("information_above", self.information_above),
                ("student_loss", self.student_loss),
                ("student_rest", self.student_rest),
            )
            for condition, values in by_condition.items()
        }
        ids = self.ids_N.split(lengths)
        return [
            {
                "sample": self.samples[r],
                "response_number": self.response_numbers[r],
                "correct": self.correct[r],
                "response": self.texts[r],
                "ids": ids[r].numpy(),
            }
            | {
                name: None if name.startswith(FROM_SEVERAL) and math.isnan(parts[r][0]) else parts[r]
                for name, parts in columns.items()
            }
            for r in range(len(self.samples))
        ]

    def write(self, path: Path) -> None:
        """Write `rows` as parquet."""
        write_rows(path, self.rows(), {"correct": pa.bool_()})


def measure_privileges(
    teacher: Scorer,
    samples: Sequence[Sample],
    responses: StudentResponses,
    config: PrivilegeConfig | None = None,
    *,
    several: Mapping[TextKind, Mapping[str, Sequence[str]]] | None = None,
    student: Scorer | None = None,
    progress: Progress | None = None,
) -> PrivilegeTokens:
    """Score responses with a teacher under every condition.

    Certainty and shift need one forward pass of the teacher for each condition, information one for
    each text. Hidden states of one batch are in memory, logits of one chunk of tokens (`scoring.chunks`).

    The texts are taken as equally likely given (v, q, y_<t). That is right because the student wrote y_<t
    without any of them; it would be wrong for responses of a teacher that saw one.

    Args:
        teacher: the model that is shown the privileges.
        samples: the problems.
        responses: the student's responses to some of the problems.
        config: the conditions to measure.
        several: texts to estimate information from, by kind and sample id; they replace the data's own of
            that kind.
        student: the student, to split its loss over several texts (ViCuR eq. 18); it costs one more pass of
            the student. None to leave the loss out. Its vocabulary must be the teacher's.
        progress: progress bar; silent if not given.

    Raises:
        ValueError: no answered problem has the privileges asked for, the shuffled control is impossible, or
            the student's loss is to be split and no problem has several texts.
    """
    config = config or PrivilegeConfig()
    outlines = [outline(samples, i) for i in responses.index]
    kinds = config.kinds or _common_kinds(outlines)
    places = [i for i, s in enumerate(outlines) if all(text_of(s, k) for k in kinds)]
    if not places:
        raise ValueError(f"No answered problem has all of: {', '.join(kinds)}.")
    problems = [outlines[i] for i in places]
    texts = _Texts.of(problems, kinds, config, several)
    if student is not None and not any(texts.several):
        raise ValueError(
            "The student's loss is split by several texts per problem: the data needs a column "
            f"{' or '.join(f'{kind}s' for kind in kinds)} with a list of texts."
        )
    kept = responses.part(places)
    parts: dict[int, dict[tuple[str, str], Tensor]] = {}
    batches = list(_batches(texts.signatures, config.prompts_per_batch))
    for batch in batches if progress is None else progress.over(batches, len(batches)):
        batch_samples = [samples[kept.index[i]] for i in batch]
        part = (batch_samples, kept.part(batch), texts.part(batch))
        numbers = _measure_batch(teacher, student, *part, kinds, config)
        tokens = [sum(map(len, kept.ids[i])) for i in batch]
        for place, i in enumerate(batch):
            first = sum(tokens[:place])
            parts[i] = {name: values[first : first + tokens[place]] for name, values in numbers.items()}
    teacher.clear_cache()
    if student is not None:
        student.clear_cache()
    return _joined(problems, kept, kinds, parts, texts, len(outlines) - len(places))


def _common_kinds(outlines: Sequence[Sample]) -> tuple[TextKind, ...]:
    """The kinds of text that all problems have.

    Raises:
        ValueError: there is none.
    """
    kinds = tuple(k for k in TEXT_KINDS if all(text_of(s, k) for s in outlines))
    if not kinds:
        raise ValueError(
            f"No kind of text is present in all {len(outlines)} answered problems ("
            + ", ".join(f"{k} in {sum(text_of(s, k) is not None for s in outlines)}" for k in TEXT_KINDS)
            + "). Set kinds to measure those problems that have them."
        )
    return kinds


@dataclass(frozen=True)
class _Texts:
    """The texts shown for each problem, by kind.

    Attributes:
        another: another problem's text; empty without the shuffled control.
        several: texts that information is estimated from, by condition; none or at least two.
    """

    another: list[dict[TextKind, str]]
    several: list[dict[str, tuple[str, ...]]]

    @classmethod
    def of(
        cls,
        problems: Sequence[Sample],
        kinds: Sequence[TextKind],
        config: PrivilegeConfig,
        alternatives: Mapping[TextKind, Mapping[str, Sequence[str]]] | None,
    ) -> _Texts:
        collected = cls([{} for _ in problems], [{} for _ in problems])
        keys = [sample.id for sample in problems]
        for kind in kinds:
            own_texts = [text_of(sample, kind) or "" for sample in problems]
            if config.shuffled:
                for problem_texts, i in zip(
                    collected.another, others(keys, own_texts, config.seed), strict=True
                ):
                    problem_texts[kind] = own_texts[i]
            if config.information:
                collected._add_several(problems, kind, own_texts, config, (alternatives or {}).get(kind))
        return collected

    def _add_several(
        self,
        problems: Sequence[Sample],
        kind: TextKind,
        own_texts: Sequence[str],
        config: PrivilegeConfig,
        alternatives: Mapping[str, Sequence[str]] | None,
    ) -> None:
        for sample, problem_texts in zip(problems, self.several, strict=True):
            texts = (
                several_texts(sample, kind)
                if alternatives is None
                else tuple(alternatives.get(sample.id, ()))
            )
            if len(texts) > 1:
                problem_texts[kind] = texts
        most = max((len(problem_texts.get(kind, ())) for problem_texts in self.several), default=0)
        if not config.shuffled or not most:
            return
        keys = [sample.id for sample in problems]
        # The first draw is the text that the shuffled control shows.
        draws = [others(keys, own_texts, config.seed + draw) for draw in range(most)]
        for i, problem_texts in enumerate(self.several):
            if kind in problem_texts:
                problem_texts[another(kind)] = tuple(
                    own_texts[draw[i]] for draw in draws[: len(problem_texts[kind])]
                )

    @property
    def signatures(self) -> list[tuple[tuple[str, int], ...]]:
        """The number of texts of each problem, by kind: problems with equal ones can be measured together."""
        return [
            tuple((name, len(texts)) for name, texts in problem_texts.items())
            for problem_texts in self.several
        ]

    def part(self, places: Sequence[int]) -> _Texts:
        return _Texts([self.another[i] for i in places], [self.several[i] for i in places])


def _batches(signatures: Sequence[object], size: int) -> Iterator[list[int]]:
    groups: dict[object, list[int]] = {}
    for i, signature in enumerate(signatures):
        groups.setdefault(signature, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _measure_batch(
    teacher: Scorer,
    student: Scorer | None,
    samples: Sequence[Sample],
    responses: StudentResponses,
    texts: _Texts,
    kinds: Sequence[TextKind],
    config: PrivilegeConfig,
) -> dict[tuple[str, str], Tensor]:
    """Per-token numbers by quantity and condition."""

    def scores(problems: Sequence[Sample], view: View) -> Scores:
        return teacher.scores(problems, responses.ids, view)

    @cache
    def scores_with(kind: TextKind, replacements: tuple[str, ...]) -> Scores:
        replaced = [with_text(sample, kind, text) for sample, text in zip(samples, replacements, strict=True)]
        return scores(replaced, Hinted(kind))

    scored = {PLAIN: scores(samples, Plain())}
    if config.blind:
        scored[BLIND] = scores(samples, Blind())
    for kind in kinds:
        scored[kind] = scores(samples, Hinted(kind))
        if config.blind_hinted:
            scored[blind_with(kind)] = scores(samples, combined([Hinted(kind), Blind()]))
        if config.shuffled:
            scored[another(kind)] = scores_with(
                kind, tuple(problem_texts[kind] for problem_texts in texts.another)
            )
    terms = {("log_prob", PLAIN): Term("", partial(_log_prob, STUDENT))}
    for name in scored:
        if name != PLAIN:
            terms["log_prob", name] = Term("", partial(_log_prob, name), reads=(name,))
            terms["shift", name] = Term("", partial(_shift, name), reads=(name,))
    if student is not None and texts.several[0]:
        scored[LEARNER] = student.scores(samples, responses.ids, Plain())
    for name, alternatives in texts.several[0].items():
        names = tuple(f"{name}/{j}" for j in range(len(alternatives)))
        kind = next(kind for kind in kinds if name in (kind, another(kind)))
        for j, text_name in enumerate(names):
            scored[text_name] = scores_with(
                kind, tuple(problem_texts[name][j] for problem_texts in texts.several)
            )
        terms["information", name] = Term("", partial(_information, names), reads=names)
        terms["information_above", name] = Term("", partial(_information_above, names), reads=names)
        if student is not None:
            reads = (*names, LEARNER)
            terms["student_loss", name] = Term("", partial(_student_loss, names), reads=reads)
            terms["student_rest", name] = Term("", partial(_student_rest, names), reads=reads)
    reading = teacher.reading(torch.cat([ids for group in responses.ids for ids in group]))
    values_JN = observed_terms(scored.pop(PLAIN), reading, list(terms.values()), scored)
    return dict(zip(terms, values_JN.cpu(), strict=True))


def _log_prob(name: str, block: Block) -> Tensor:
    return block.log_prob(name)


def _shift(name: str, block: Block) -> Tensor:
    return reverse_kl(block.distribution(name), block.log_p_CV)


def _information(names: Sequence[str], block: Block) -> Tensor:
    return mixture_information([block.distribution(name) for name in names])


def _information_above(names: Sequence[str], block: Block) -> Tensor:
    return mixture_information_above([block.distribution(name) for name in names])


def _student_loss(names: Sequence[str], block: Block) -> Tensor:
    log_p = block.distribution(LEARNER)
    return divergence_of_each([block.distribution(name) for name in names], log_p)


def _student_rest(names: Sequence[str], block: Block) -> Tensor:
    log_p = block.distribution(LEARNER)
    return divergence_of_mixture([block.distribution(name) for name in names], log_p)


def _joined(
    samples: Sequence[Sample],
    responses: StudentResponses,
    kinds: tuple[TextKind, ...],
    parts: Mapping[int, Mapping[tuple[str, str], Tensor]],
    texts: _Texts,
    left_out: int,
) -> PrivilegeTokens:
    """Join the batches in the order of the problems."""
    counts = [len(group) for group in responses.ids]
    flat = [ids for group in responses.ids for ids in group]
    names = dict.fromkeys(name for numbers in parts.values() for name in numbers)
    tokens = [sum(map(len, group)) for group in responses.ids]

    def values_of(quantity: str) -> dict[str, Tensor]:
        nothing = float("nan")
        return {
            condition: torch.cat(
                [parts[i].get((quantity, condition), torch.full((n,), nothing)) for i, n in enumerate(tokens)]
            )
            for measured, condition in names
            if measured == quantity
        }

    information = values_of("information")
    num_texts = {
        name: torch.tensor(
            [
                len(problem_texts.get(name, ()))
                for i, problem_texts in enumerate(texts.several)
                for _ in range(counts[i])
            ]
        )
        for name in information
    }
    lengths = torch.tensor([len(ids) for ids in flat])
    return PrivilegeTokens(
        kinds=kinds,
        samples=tuple(s.id for s, n in zip(samples, counts, strict=True) for _ in range(n)),
        response_numbers=tuple(k for n in counts for k in range(n)),
        correct=tuple(value for group in responses.correct for value in group),
        texts=tuple(text for group in responses.texts for text in group),
        ids_N=torch.cat(flat),
        response_index_N=torch.repeat_interleave(torch.arange(len(flat)), lengths),
        log_probs=values_of("log_prob"),
        shifts=values_of("shift"),
        information=information,
        information_above=values_of("information_above"),
        student_loss=values_of("student_loss"),
        student_rest=values_of("student_rest"),
        num_texts=num_texts,
        left_out=left_out,
    )
