"""The student's responses that a teacher scores: sampled now, or read from a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.views import Plain
from vicur.media.pixels import PixelLimits
from vicur.progress import Progress
from vicur.rewards.grader import Grader
from vicur.rollouts.engines import Engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.grading import grade_response
from vicur.rollouts.processors import SamplingConfig

COLUMNS = ("step", "sample", "response", "ids", "correct")


@dataclass(frozen=True)
class StudentResponses:
    """Responses to some problems of a source, the responses to a problem together.

    Attributes:
        index: index of each answered problem in its source.
        ids: the tokens of its responses, at least one response of at least one token each.
        texts: its responses as text.
        correct: whether each response is correct; None if unknown.
    """

    index: tuple[int, ...]
    ids: tuple[tuple[Tensor, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    correct: tuple[tuple[bool | None, ...], ...]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, problems: Sequence[int]) -> StudentResponses:
        """The responses to some of the answered problems, by position."""
        return StudentResponses(
            tuple(self.index[i] for i in problems),
            tuple(self.ids[i] for i in problems),
            tuple(self.texts[i] for i in problems),
            tuple(self.correct[i] for i in problems),
        )


def sample_responses(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    group_size: int = 4,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    prompts_per_batch: int = 64,
    grader: Grader | None = None,
    limits: PixelLimits | None = None,
    progress: Progress | None = None,
) -> StudentResponses:
    """Let a student answer every problem from its own prompt, without any privilege.

    Responses depend on seed, sample and response number, not on batches or order.

    Args:
        engine: runs the student.
        samples: the problems.
        group_size: number of responses to each problem (K).
        sampling: temperature and the like; the student's own distribution if not given.
        seed: sampling seed.
        prompts_per_batch: problems answered together.
        grader: grades the responses; one with default settings if not given.
        limits: pixel limits of what the student sees; the checkpoint's own if not given.
        progress: progress bar; silent if not given.
    """
    grader = grader or Grader()
    generator = ModelGenerator(engine, sampling or SamplingConfig(), limits=limits)
    ids: list[tuple[Tensor, ...]] = []
    texts: list[tuple[str, ...]] = []
    correct: list[tuple[bool | None, ...]] = []
    starts = range(0, len(samples), prompts_per_batch)
    for start in starts if progress is None else progress.over(starts, len(starts)):
        batch = [samples[i] for i in range(start, min(start + prompts_per_batch, len(samples)))]
        rollouts = generator.generate(batch, Plain(), group_size=group_size, seed=seed)
        ids += [tuple(group) for group in rollouts.response_ids]
        texts += rollouts.texts
        correct += [
            tuple(_grade(grader, sample, text) for text in group)
            for sample, group in zip(batch, rollouts.texts, strict=True)
        ]
    return StudentResponses(tuple(range(len(samples))), tuple(ids), tuple(texts), tuple(correct))


def read_responses(
    run: Path,
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    steps: Literal["last", "all"] = "last",
) -> StudentResponses:
    """Read a training run's responses to the problems that it answered.

    Args:
        run: its folder, the folder `rollouts` in it, or one .parquet file in that.
        samples: the problems, with the same ids as in the run.
        tokenizer: tokenizer of the teacher that will score the responses; it must have the vocabulary of the
            run's student.
        steps: each problem's responses from the last step that had it, or those from all steps; early ones
            come from an earlier state of the student.

    Raises:
        ValueError: there are no such files, they lack a column, they hold no response to any of the
            problems, or the tokens are not those of the responses.
    """
    by_problem: dict[str, list[dict[str, Any]]] = {}
    for path in _files(run):
        schema = pq.read_schema(path)
        missing = [name for name in COLUMNS if name not in schema.names]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}; the rollouts of a run have {', '.join(COLUMNS)}."
            )
        for row in pq.read_table(path, columns=list(COLUMNS)).to_pylist():
            if row["ids"]:
                by_problem.setdefault(row["sample"], []).append(row)
    names = samples.column("id") if isinstance(samples, FileSource) else [s.id for s in samples]
    index = [i for i, name in enumerate(names) if name in by_problem]
    if not index:
        raise ValueError(
            f"{run} has no response to any of the {len(names)} problems; its ids look like "
            f"{next(iter(by_problem), 'nothing')}, those of the data like {names[0]}. "
            "Use the data of the run."
        )
    selected = [_of_steps(by_problem[str(names[i])], steps) for i in index]
    _check_tokens(selected[0][0], tokenizer, run)
    return StudentResponses(
        tuple(index),
        tuple(tuple(torch.tensor(row["ids"]) for row in rows) for rows in selected),
        tuple(tuple(row["response"] for row in rows) for rows in selected),
        tuple(tuple(row["correct"] for row in rows) for rows in selected),
    )


def regraded(responses: StudentResponses, samples: Sequence[Sample], grader: Grader) -> StudentResponses:
    """The same responses with the grades of another grader.

    Args:
        responses: responses to some of the samples.
        samples: the problems.
        grader: grades the responses.
    """
    correct = tuple(
        tuple(_grade(grader, samples[index], text) for text in group)
        for index, group in zip(responses.index, responses.texts, strict=True)
    )
    return replace(responses, correct=correct)


def _files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    folder = run / "rollouts" if (run / "rollouts").is_dir() else run
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{run} has no rollouts/*.parquet; it must be the folder of a training run.")
    return files


def _of_steps(rows: list[dict[str, Any]], steps: str) -> list[dict[str, Any]]:
    last = max(row["step"] for row in rows)
    return [row for row in rows if steps == "all" or row["step"] == last]


def _check_tokens(row: dict[str, Any], tokenizer: Any, run: Path) -> None:
    decoded = tokenizer.decode(row["ids"], skip_special_tokens=True)
    if decoded != row["response"]:
        raise ValueError(
            f"{run}: the tokens of a response to {row['sample']} decode to {decoded[:40]!r}, but its text is "
            f"{row['response'][:40]!r}. The run's student and this teacher have different vocabularies."
        )


def _grade(grader: Grader, sample: Sample, text: str) -> bool | None:
    grade = grade_response(grader, sample, text)
    return None if grade is None else grade.correct
