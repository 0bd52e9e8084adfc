"""The responses that a report shows: token by token, with the image, the hint and the verdict.

Responses to held-out problems (`training.observe`) come first: all runs answer the same ones, before and
after training. Then come those to the training problems of the last step.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from vicur.data.sample import Sample
from vicur.data.views import privileged_texts
from vicur.media.pixels import within
from vicur.reporting.runs import RecordedRun
from vicur.rollouts.pieces import Decoder, pieces_of, read_tokenizer

Split = Literal["held-out", "training"]
Lookup = Callable[[str, Split], Sample | None]
"""Finds a problem by its id among those of a split; None if it cannot be read any more."""

SHOWN_PIXELS = 320 * 320
"""Maximum number of pixels of an image in a report."""
MOST_IMAGES = 4
"""Maximum number of images and frames of a problem in a report."""
DIGITS = 3
"""Significant digits of a token's numbers in a report."""


@dataclass(frozen=True)
class Measured:
    """A number of every token that a report can colour by.

    Attributes:
        title: name in the report.
        unit: its unit.
        signed: whether 0 is in the middle of its scale.
    """

    title: str
    unit: str = "nats"
    signed: bool = False


MEASURES = {
    "gap": Measured("Gap (teacher - student)", signed=True),
    "privilege_gap": Measured("Gap from the privilege", signed=True),
    "capability_gap": Measured("Gap from the teacher's capability", signed=True),
    "visual_advantage": Measured("Visual advantage"),
    "vds": Measured("Visual dependency (VDS)"),
    "token_loss": Measured("Loss", "", signed=True),
    "language_kl": Measured("Language KL"),
    "visual_kl": Measured("Visual KL"),
    "standard_kl": Measured("KL to the teacher"),
    "entropy": Measured("Entropy of the student"),
}
"""What a report can colour tokens by, in this order, as far as a run has recorded it."""
_COLUMNS = ("step", "sample", "question", "answer", "response", "finish_reason", "correct", "ids")


@dataclass
class ShownProblem:
    """A problem with the responses to it.

    Attributes:
        id, question, answer: the problem.
        split: "held-out" or "training".
        hint: what the teacher was shown beyond the problem, by kind.
        images: indices of its images in the report.
        responses: the responses, ready for JSON.
    """

    id: str
    question: str
    answer: str | None
    split: Split
    hint: dict[str, str] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)
    responses: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ShownResponses:
    """All responses of a report.

    Attributes:
        problems: the problems.
        images: images as data URIs.
        measures: what tokens can be coloured by, among `MEASURES`.
        notes: what could not be shown, in sentences.
    """

    problems: list[ShownProblem] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self, runs: Sequence[RecordedRun]) -> dict[str, Any]:
        """As the page's script reads them."""
        return {
            "runs": [run.name for run in runs],
            "measures": [{"key": key, **vars(MEASURES[key])} for key in self.measures],
            "images": self.images,
            "problems": [vars(problem) for problem in self.problems],
        }


def collect_responses(
    runs: Sequence[RecordedRun], lookups: Mapping[str, Lookup], most: int
) -> ShownResponses:
    """The responses of several runs, those to one problem together.

    Args:
        runs: the runs.
        lookups: finds the problems of each run, by its name.
        most: maximum number of responses of each run.
    """
    collected = ShownResponses()
    problems: dict[tuple[str, ...], ShownProblem] = {}
    for number, run in enumerate(runs):
        decoder = read_tokenizer(run.folder)
        if decoder is None:
            collected.notes.append(f"{run.name} has no tokenizer.json: its responses are shown as one piece.")
        for split, row in _rows(run, most):
            # Data sets of different runs may share their ids.
            key = (split, row["sample"], row["question"], str(row["answer"]))
            problem = problems.get(key)
            if problem is None:
                problem = ShownProblem(row["sample"], row["question"], row["answer"], split)
                problems[key] = problem
                _add_media(collected, problem, lookups.get(run.name))
            problem.responses.append(_response(row, number, decoder))
    collected.problems = list(problems.values())
    present = {name for problem in collected.problems for r in problem.responses for name in r["values"]}
    collected.measures = [name for name in MEASURES if name in present]
    return collected


def _rows(run: RecordedRun, most: int) -> Iterator[tuple[Split, dict[str, Any]]]:
    """The rows to show, with their split: observed before and after training, then the last step's."""
    observed = run.observation_files
    ends = list(dict.fromkeys([*observed[:1], *observed[-1:]]))
    share = most // (len(ends) + 1)
    for path in ends:
        for row in _read(path, share):
            yield "held-out", row
    if run.rollout_files:
        for row in _read(run.rollout_files[-1], most - share * len(ends)):
            yield "training", row


def _read(path: Path, most: int) -> list[dict[str, Any]]:
    """The first rows of a file's last step; no others become Python objects."""
    names = set(pq.read_schema(path).names)
    columns = [name for name in (*_COLUMNS, *MEASURES) if name in names]
    table: pa.Table = pq.read_table(path, columns=columns)
    last = pc.max(table.column("step"))
    return table.filter(pc.equal(table.column("step"), last)).slice(0, most).to_pylist()


def _response(row: Mapping[str, Any], run: int, decoder: Decoder | None) -> dict[str, Any]:
    """A response as the page's script reads it."""
    ids = row["ids"]
    pieces = [row["response"]] if decoder is None else pieces_of(ids, decoder)
    values = {
        name: [_rounded(value) for value in row[name]]
        for name in MEASURES
        if row.get(name) is not None and len(row[name]) == len(pieces)
    }
    return {
        "run": run,
        "step": row["step"],
        "correct": row["correct"],
        "truncated": row["finish_reason"] == "length",
        "pieces": pieces,
        "values": values,
    }


def _rounded(value: float | None) -> float | None:
    """A number of a token; None if it is not finite, as in an update that was skipped."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _add_media(collected: ShownResponses, problem: ShownProblem, lookup: Lookup | None) -> None:
    """Add the images and the hints of a problem, if it can be found."""
    sample = None if lookup is None else lookup(problem.id, problem.split)
    if sample is None:
        return
    problem.hint = {kind: text for kind, text in privileged_texts(sample).items() if kind != "answer"}
    frames = [video.frames[len(video.frames) // 2] for video in sample.videos if video.frames]
    for image in [*sample.images, *frames][:MOST_IMAGES]:
        problem.images.append(len(collected.images))
        collected.images.append(data_uri(image))


def data_uri(image: Image.Image) -> str:
    """An image, scaled down, as a data URI: PNG if it is small, JPEG otherwise."""
    smaller = within(image, SHOWN_PIXELS).convert("RGB")
    buffer = io.BytesIO()
    is_small = smaller.width * smaller.height <= 128 * 128
    smaller.save(buffer, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 80}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
