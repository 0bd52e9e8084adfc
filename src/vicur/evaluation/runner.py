"""Evaluate a model on problems with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from vicur.data.files import write_rows
from vicur.data.pixels import PixelLimits
from vicur.data.rows import PromptEncoder
from vicur.data.sample import Sample
from vicur.data.views import Plain, View
from vicur.diagnostics.leakage import HintLeakage, hint_leakage
from vicur.evaluation.statistics import Estimate, accuracy_interval
from vicur.models.load import LoadedModel
from vicur.rewards.answers import extract_answer
from vicur.rewards.grader import Grader
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.sampler import Sampler
from vicur.training.progress import Progress


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is asked."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Greedy unless set otherwise."""
    prompts_per_batch: int = 100
    """Problems answered together."""
    seed: int = 0
    """Decides the responses where sampling is not greedy."""

    def __post_init__(self) -> None:
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, not {self.prompts_per_batch}.")


@dataclass(frozen=True)
class Evaluation:
    """What a model answered.

    Attributes:
        samples: ids of the problems.
        responses: one text each.
        correct: None where the problem has no gold answer; such problems do not count.
        response_ids: their tokens.
    """

    samples: tuple[str, ...]
    responses: tuple[str, ...]
    correct: tuple[bool | None, ...]
    response_ids: tuple[Tensor, ...]

    @property
    def graded(self) -> list[bool]:
        """Of the problems with a gold answer, whether the response is right."""
        return [value for value in self.correct if value is not None]

    @property
    def accuracy(self) -> Estimate:
        """In percent, with Wilson's 95 % interval."""
        return accuracy_interval(self.graded)

    @property
    def leakage(self) -> HintLeakage:
        """The whole word "hint" in the responses."""
        return hint_leakage(self.responses)

    def write(self, path: Path) -> None:
        """One row for each problem."""
        rows: list[dict[str, Any]] = [
            {"sample": s, "response": r, "extracted": extract_answer(r), "correct": c}
            for s, r, c in zip(self.samples, self.responses, self.correct, strict=True)
        ]
        write_rows(path, rows, {"correct": pa.bool_(), "extracted": pa.string()})


def evaluate(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Progress,
    view: View | None = None,
    *,
    grader: Grader | None = None,
    limits: PixelLimits | None = None,
) -> Evaluation:
    """Let the model answer every problem once.

    Args:
        loaded: the model.
        samples: the problems.
        config: how it is asked.
        progress: shows how far it is.
        view: what it is shown; plain if not given.
        grader: of its responses; one with default settings if not given.
        limits: on the pixels of what it is shown; the checkpoint's own if not given.

    Raises:
        ValueError: no problem has a gold answer.
    """
    view, grader = view or Plain(), grader or Grader()
    encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index, limits)
    sampler = Sampler(loaded, config.sampling, config.prompts_per_batch)
    ids: list[str] = []
    texts: list[str] = []
    correct: list[bool | None] = []
    response_ids: list[Tensor] = []
    starts = range(0, len(samples), config.prompts_per_batch)
    for start in progress.over(starts, len(starts)):
        batch = [samples[i] for i in range(start, min(start + config.prompts_per_batch, len(samples)))]
        prompts = encoder.encode([view.show(sample) for sample in batch])
        responses = sampler.sample(prompts, [s.id for s in batch], seed=config.seed)
        for sample, own in zip(batch, responses, strict=True):
            text = encoder.tokenizer.decode(own[0].ids, skip_special_tokens=True)
            ids.append(sample.id)
            texts.append(text)
            response_ids.append(own[0].ids)
            grade = grader.grade(text, sample.answer, choices=sample.meta.get("choices"), meta=sample.meta)
            correct.append(None if grade is None else grade.correct)
    if all(value is None for value in correct):
        raise ValueError("No problem has a gold answer that can be graded against.")
    return Evaluation(tuple(ids), tuple(texts), tuple(correct), tuple(response_ids))
