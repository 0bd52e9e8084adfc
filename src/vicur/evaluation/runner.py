"""Evaluate a model on problems with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from vicur import distributed
from vicur.bad_rows import BadRowError
from vicur.data.digests import shown_digest
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Plain, View
from vicur.evaluation.controls import NoOtherMedia, OtherMedia
from vicur.evaluation.responders import ModelResponder, Responder
from vicur.evaluation.responses import ResponseStore, StoredResponse
from vicur.evaluation.results import Answer, Evaluation
from vicur.evaluation.verdicts import Verdict, verdict_of
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.progress import Progress, silent
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.processors import SamplingConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings for sampling a model's responses."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Sampling of the responses; greedy unless set otherwise."""
    prompts_per_batch: int = 32
    """Number of problems answered together."""
    seed: int = 0
    """Seed of the sampled responses."""
    samples: int = 1
    """Number of responses to each problem (k of avg@k)."""

    def __post_init__(self) -> None:
        for name, value in (("prompts_per_batch", self.prompts_per_batch), ("samples", self.samples)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        check_samples(self.samples, self.sampling)


def check_samples(samples: int, sampling: SamplingConfig) -> None:
    """Check that several responses to a problem differ.

    Raises:
        ValueError: several greedy responses are requested, which would all be the same.
    """
    if samples > 1 and sampling.temperature == 0:
        raise ValueError(
            f"samples={samples} responses to a problem are all the same at temperature 0; set "
            "sampling.temperature, or samples=1."
        )


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
    """Let a model answer every problem, and grade its responses. Ranks share the problems.

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
    run = _Evaluating(
        samples, view or Plain(), config, grader or Grader(), ResponseStore(None), skip_bad_rows
    )
    shared = range(len(samples))[distributed.share(len(samples))]
    engine = engine or make_engine(loaded, prompts_per_batch=config.prompts_per_batch)
    with engine.awake():  # ranks have different numbers of batches
        run.ask(ModelResponder(engine, config.sampling, limits), shared, progress or silent())
    return run.joined()


def resume_evaluation(
    responder: Callable[[], AbstractContextManager[Responder]],
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Progress,
    store: ResponseStore,
    view: View | None = None,
    *,
    grader: Grader | None = None,
    skip_bad_rows: bool = False,
) -> Evaluation:
    """Evaluate as `evaluate` does, but reuse the responses of a store, and add new ones to it as they come.

    Args:
        responder: opens what answers the problems; called only if a response is missing.
        samples, config, progress, view, grader, skip_bad_rows: as in `evaluate`.
        store: store for the responses.

    Raises:
        ValueError: the store holds a response to another problem of the same id.
        BadRowError: an image or video cannot be decoded, and such rows are not skipped.
        OSError: the store cannot be written.
        EngineError: an engine other than PyTorch failed.
    """
    run = _Evaluating(samples, view or Plain(), config, grader or Grader(), store, skip_bad_rows)
    missing = run.reuse(progress)
    if missing:
        with responder() as ready:
            run.ask(ready, missing, progress)
    return run.result()


class _Evaluating:
    """An evaluation in progress."""

    def __init__(
        self,
        samples: Sequence[Sample],
        view: View,
        config: EvaluationConfig,
        grader: Grader,
        store: ResponseStore,
        skip_bad_rows: bool,
    ) -> None:
        self.samples, self.view, self.config = samples, view, config
        self.grader, self.store, self.skip_bad_rows = grader, store, skip_bad_rows
        self.answers: dict[int, list[Answer]] = {}
        self.left_out: dict[int, list[Answer]] = {}

    def reuse(self, progress: Progress) -> list[int]:
        """Grade the stored responses, and return the indices of the problems that lack some."""
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
            if not stored:  # its media need not be decoded yet
                missing.append(index)
                continue
            sample = self._sample(index)
            if sample is None:
                continue
            digest = shown_digest(self.view.show(sample))
            if any(response.digest != digest for response in stored):
                self._discard(name, "has changed since")
                missing.append(index)
                continue
            numbers = {response.number for response in stored}
            if (most := max(numbers) + 1) > self.config.samples and not self.store.overwrite:
                raise ValueError(
                    f"{self.store.output} holds {most} responses per problem, and samples="
                    f"{self.config.samples} would drop some. Set samples={most}, choose another "
                    "output, or set overwrite=true."
                )
            if numbers.issuperset(range(self.config.samples)):
                self._grade(index, sample, stored)
            else:  # an endpoint may have left out any of them
                missing.append(index)
        return missing

    def _names(self) -> list[str]:
        if isinstance(self.samples, FileSource | OtherMedia):
            return [str(name) for name in self.samples.column("id")]
        return [sample.id for sample in self.samples]

    def ask(self, responder: Responder, missing: Sequence[int], progress: Progress) -> None:
        """Get, store and grade the responses to some problems."""
        size, count, seed = self.config.prompts_per_batch, self.config.samples, self.config.seed
        starts = range(0, len(missing), size)
        for start in progress.over(starts, len(starts)):
            batch = list(self._readable(missing[start : start + size]))
            if not batch:
                continue
            samples = [sample for _, sample in batch]
            present = [{response.number for response in self.store.get(sample.id)} for sample in samples]
            lacking = [[n for n in range(count) if n not in numbers] for numbers in present]
            reasons = responder.respond(samples, self.view, lacking, seed, self.store.add)
            for (index, sample), reason in zip(batch, reasons, strict=True):
                if reason is None:
                    self._grade(index, sample, self.store.get(sample.id))
                else:
                    self._leave_out(index, sample, reason)

    def joined(self) -> Evaluation:
        """All answers of all ranks in the order of the data."""
        for answers, left_out in distributed.gather((self.answers, self.left_out)):
            self.answers |= answers
            self.left_out |= left_out
        return self.result()

    def result(self) -> Evaluation:
        """All answers in the order of the data."""
        answers = [answer for _, group in sorted(self.answers.items()) for answer in group]
        left_out = [answer for _, group in sorted(self.left_out.items()) for answer in group]
        return Evaluation(tuple(answers), tuple(left_out))

    def _readable(self, indices: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        for index in indices:
            sample = self._sample(index)
            if sample is not None:
                yield index, sample

    def _sample(self, index: int) -> Sample | None:
        """A problem; None if it cannot be read, which is recorded."""
        if index in self.left_out:
            return None
        try:
            return self.samples[index]
        except NoOtherMedia as error:
            verdict = Verdict.unasked("no other media for the control", str(error))
            self.left_out[index] = [Answer(error.problem, None, None, verdict)]
            return None
        except BadRowError as error:
            if not self.skip_bad_rows:
                raise
            bad = error.bad
            verdict = Verdict.unasked("unreadable rows", str(bad))
            self.left_out[index] = [Answer(bad.id or f"row {bad.row}", None, None, verdict)]
            return None

    def _leave_out(self, index: int, sample: Sample, reason: str) -> None:
        """Keep the responses to a problem that lacks some, but do not grade them."""
        verdict = Verdict.unasked("not answered by the endpoint", reason)
        present: Sequence[StoredResponse | None] = self.store.get(sample.id) or [None]
        self.left_out[index] = [Answer(sample.id, sample.answer, stored, verdict) for stored in present]

    def _grade(self, index: int, sample: Sample, responses: Sequence[StoredResponse]) -> None:
        self.answers[index] = [
            Answer(sample.id, sample.answer, stored, verdict_of(self.grader, sample, stored.response))
            for stored in responses
            if stored.number < self.config.samples
        ]

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
