"""Evaluate a model on problems with answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from vicur import distributed
from vicur.bad_rows import BadRowError
from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Plain, View
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.evaluation.responses import ResponseStore, StoredResponse
from vicur.evaluation.statistics import Estimate, accuracy_interval
from vicur.evaluation.verdicts import Verdict, verdict_of
from vicur.files import ROW_GROUP, write_whole
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.progress import Progress, silent
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Rollouts

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("gold", pa.string()),
        ("response", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
        ("response_tokens", pa.int64()),
        ("excluded", pa.string()),
        ("response_ids", pa.list_(pa.int64())),
        ("digest", pa.string()),
    ]
)
"""Columns of the output: see docs/evaluation.md."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings for sampling a model's responses."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Sampling of the responses; greedy unless set otherwise."""
    prompts_per_batch: int = 32
    """Number of problems answered together."""
    seed: int = 0
    """Seed of the sampled responses."""

    def __post_init__(self) -> None:
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, not {self.prompts_per_batch}.")


@dataclass(frozen=True)
class Answer:
    """One problem, the model's response to it, and the verdict.

    Attributes:
        id: id of the problem.
        gold: its gold answer.
        stored: the response; None if the model was not asked.
        verdict: the grader's verdict.
    """

    id: str
    gold: str | None
    stored: StoredResponse | None
    verdict: Verdict

    def row(self) -> dict[str, Any]:
        """The answer as a row of the output."""
        stored = self.stored
        return {
            "id": self.id,
            "gold": self.gold,
            "response": None if stored is None else stored.response,
            "extracted": self.verdict.extracted,
            "correct": self.verdict.correct,
            "reward": self.verdict.reward,
            "finish_reason": None if stored is None else stored.finish_reason,
            "response_tokens": None if stored is None else len(stored.response_ids),
            "excluded": self.verdict.excluded,
            "response_ids": None if stored is None else stored.response_ids,
            "digest": None if stored is None else stored.digest,
        }


@dataclass(frozen=True)
class Evaluation:
    """A model's responses and their grades.

    Attributes:
        answers: the graded responses, in the order of the data.
        unasked: problems without a response, because their row is unreadable or their prompt too long.
    """

    answers: tuple[Answer, ...]
    unasked: tuple[Answer, ...] = ()

    @property
    def stored(self) -> list[StoredResponse]:
        """The responses."""
        return [answer.stored for answer in self.answers if answer.stored is not None]

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses as text."""
        return tuple(stored.response for stored in self.stored)

    @property
    def response_ids(self) -> tuple[Tensor, ...]:
        """The responses as tokens."""
        return tuple(torch.tensor(stored.response_ids) for stored in self.stored)

    @property
    def correct(self) -> tuple[bool | None, ...]:
        """Whether each response is right; None where it cannot be graded."""
        return tuple(answer.verdict.correct for answer in self.answers)

    @property
    def graded(self) -> list[bool]:
        """Whether each response that can be graded is right."""
        return [value for value in self.correct if value is not None]

    @property
    def accuracy(self) -> Estimate:
        """Accuracy in percent, with Wilson's 95 % interval.

        Raises:
            ValueError: no response could be graded.
        """
        return accuracy_interval(self.graded)

    @property
    def leakage(self) -> HintLeakage:
        """Counts of the whole word "hint" in the responses."""
        return hint_leakage(self.responses)

    @property
    def truncated(self) -> int:
        """Number of responses that were cut off at the length limit."""
        return sum(stored.finish_reason == "length" for stored in self.stored)

    @property
    def unextracted(self) -> int:
        """Number of graded responses in which no answer was found; they count as wrong."""
        return sum(answer.verdict.lacks_answer for answer in self.answers)

    @property
    def excluded(self) -> Counter[str]:
        """Number of problems left out of the accuracy, by reason."""
        kinds = (answer.verdict.kind for answer in (*self.answers, *self.unasked))
        return Counter(kind for kind in kinds if kind is not None)

    def table(self) -> pa.Table:
        """One row for each problem, with the columns of `SCHEMA`."""
        return pa.Table.from_pylist(
            [answer.row() for answer in (*self.answers, *self.unasked)], schema=SCHEMA
        )

    def write(self, path: Path) -> None:
        """Write the table as parquet."""
        import pyarrow.parquet as pq

        table = self.table()
        write_whole(path, lambda partial: pq.write_table(table, partial, row_group_size=ROW_GROUP))


def evaluate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Progress | None = None,
    view: View | None = None,
    *,
    grader: Grader | None = None,
    limits: PixelLimits | None = None,
    skip_bad_rows: bool = False,
    engine: Engine | None = None,
) -> Evaluation:
    """Let a model answer every problem once, and grade its responses. Ranks share the problems.

    Args:
        loaded: the model.
        samples: the problems.
        config: settings for sampling the responses.
        progress: progress bar; silent if not given.
        view: what the model is shown; the plain problem if not given.
        grader: grades the responses; one with default settings if not given.
        limits: pixel limits of what it is shown; the checkpoint's own if not given.
        skip_bad_rows: whether a problem with an unreadable image is left out instead of raising an error.
        engine: runs the model; PyTorch if not given.

    Raises:
        BadRowError: an image or video cannot be decoded, and such rows are not skipped.
        EngineError: an engine other than PyTorch failed.
    """
    run = _Evaluating(samples, view or Plain(), grader or Grader(), ResponseStore(None), skip_bad_rows)
    shared = range(len(samples))[distributed.share(len(samples))]
    engine = engine or make_engine(loaded, prompts_per_batch=config.prompts_per_batch)
    with engine.awake():  # ranks have different numbers of batches
        run.ask(engine, shared, config, limits, progress or silent())
    return run.joined()


def resume_evaluation(
    load: Callable[[], Engine],
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Progress,
    store: ResponseStore,
    *,
    grader: Grader | None = None,
    limits: PixelLimits | None = None,
    skip_bad_rows: bool = False,
) -> Evaluation:
    """Evaluate as `evaluate` does, but reuse the responses of a store, and add new ones to it as they come.

    Args:
        load: loads the model into an engine; called only if a response is missing.
        samples, config, progress, grader, limits, skip_bad_rows: as in `evaluate`.
        store: store for the responses.

    Raises:
        ValueError: the store holds a response to another problem of the same id.
        BadRowError: an image or video cannot be decoded, and such rows are not skipped.
        OSError: the store cannot be written.
        EngineError: an engine other than PyTorch failed.
    """
    run = _Evaluating(samples, Plain(), grader or Grader(), store, skip_bad_rows)
    missing = run.reuse(progress)
    if missing:
        with closing(load()) as engine, engine.awake():
            run.ask(engine, missing, config, limits, progress)
    return run.result()


class _Evaluating:
    """An evaluation in progress."""

    def __init__(
        self,
        samples: Sequence[Sample],
        view: View,
        grader: Grader,
        store: ResponseStore,
        skip_bad_rows: bool,
    ) -> None:
        self.samples, self.view, self.grader, self.store = samples, view, grader, store
        self.skip_bad_rows = skip_bad_rows
        self.answers: dict[int, Answer] = {}
        self.unasked: dict[int, Answer] = {}

    def reuse(self, progress: Progress) -> list[int]:
        """Grade the stored responses, and return the indices of the problems without one."""
        if not len(self.store):
            return list(range(len(self.samples)))
        names = self._names()
        known = set(names)
        for problem_id in [problem_id for problem_id in self.store if problem_id not in known]:
            self._discard(problem_id, "is not among the problems to evaluate now")
        missing: list[int] = []
        bar = Progress("checking stored responses", progress.console, transient=True)
        for index, name in bar.over(enumerate(names), len(names)):
            stored = self.store.get(name)
            if stored is None:  # its media need not be decoded yet
                missing.append(index)
                continue
            sample = self._sample(index)
            if sample is None:
                continue
            if stored.digest == shown_digest(self.view.show(sample)):
                self._grade(index, sample, stored)
            else:
                self._discard(name, "has changed since")
                missing.append(index)
        return missing

    def _names(self) -> list[str]:
        if isinstance(self.samples, FileSource):
            return [str(name) for name in self.samples.column("id")]
        return [sample.id for sample in self.samples]

    def ask(
        self,
        engine: Engine,
        missing: Sequence[int],
        config: EvaluationConfig,
        limits: PixelLimits | None,
        progress: Progress,
    ) -> None:
        """Sample, store and grade a response to each of some problems."""
        size = config.prompts_per_batch
        generator = ModelGenerator(engine, config.sampling, limits=limits)
        starts = range(0, len(missing), size)
        for start in progress.over(starts, len(starts)):
            batch = list(self._readable(missing[start : start + size]))
            if not batch:
                continue
            rollouts = generator.generate([sample for _, sample in batch], self.view, seed=config.seed)
            stored = self._stored(rollouts)
            self.store.add(stored)
            for (index, sample), response in zip(batch, stored, strict=True):
                self._grade(index, sample, response)

    def _stored(self, rollouts: Rollouts) -> list[StoredResponse]:
        """The response to each problem, in the form that is stored."""
        triples = zip(rollouts.samples, rollouts.flat_texts, rollouts.flat_responses, strict=True)
        return [
            StoredResponse(
                sample.id,
                shown_digest(self.view.show(sample)),
                text,
                response.ids.tolist(),
                response.finish_reason,
            )
            for sample, text, response in triples
        ]

    def joined(self) -> Evaluation:
        """All answers of all ranks in the order of the data."""
        for answers, unasked in distributed.gather((self.answers, self.unasked)):
            self.answers |= answers
            self.unasked |= unasked
        return self.result()

    def result(self) -> Evaluation:
        """All answers in the order of the data."""
        ordered = [dict(sorted(answers.items())).values() for answers in (self.answers, self.unasked)]
        return Evaluation(tuple(ordered[0]), tuple(ordered[1]))

    def _readable(self, indices: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        for index in indices:
            sample = self._sample(index)
            if sample is not None:
                yield index, sample

    def _sample(self, index: int) -> Sample | None:
        """A problem; None if it cannot be read, which is recorded."""
        if index in self.unasked:
            return None
        try:
            return self.samples[index]
        except BadRowError as error:
            if not self.skip_bad_rows:
                raise
            bad = error.bad
            verdict = Verdict.unasked("unreadable rows", str(bad))
            self.unasked[index] = Answer(bad.id or f"row {bad.row}", None, None, verdict)
            return None

    def _grade(self, index: int, sample: Sample, stored: StoredResponse) -> None:
        verdict = verdict_of(self.grader, sample, stored.response)
        self.answers[index] = Answer(sample.id, sample.answer, stored, verdict)

    def _discard(self, problem: str, reason: str) -> None:
        if not self.store.overwrite:
            raise ValueError(
                f"{self.store.output} holds a response to problem {problem}, which {reason}. Choose another "
                "output, or set overwrite=true to discard it."
            )
        self.store.discard(problem)


def unasked(
    ids: Sequence[tuple[str, str]], kind: Literal["unreadable rows", "prompts too long"]
) -> list[Answer]:
    """Answers for problems that are not asked.

    Args:
        ids: id and reason of each.
        kind: kind of reason, for counting.
    """
    return [Answer(problem_id, None, None, Verdict.unasked(kind, reason)) for problem_id, reason in ids]
