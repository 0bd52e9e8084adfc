"""Statistics of a source, for checking the data before training. Nothing is printed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vicur.bad_rows import BadRow, BadRowError, RowProblem, reasons
from vicur.data.responses import answer_in_response
from vicur.data.sample import Sample
from vicur.data.sources import DataConfig, FileSource, skipping_bad_rows
from vicur.data.views import PRIVILEGED, Plain, Shown, View, teacher_view, view_of
from vicur.encoding.lengths import prompt_length
from vicur.encoding.prompts import PromptEncoder
from vicur.settings.section import PathText, Text, section
from vicur.wording import counted


@section
class InspectSettings:
    """The settings of `vicur data inspect`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The data; `data.train` is the file, folder or hub id."""
    model: PathText | None = None
    """Checkpoint whose chat template and tokenizer are used for prompts and lengths; null for neither."""
    privilege: Text = "cue"
    """What the teacher is shown, as for teacher.privilege: none, or a view, e.g. "crop + cue"."""
    example: Annotated[int, Field(ge=0)] = 0
    """Index of the problem to print, from 0."""

    def __post_init__(self) -> None:
        teacher_view(self.privilege, setting="privilege")


@dataclass(frozen=True)
class Spread:
    """Spread of a quantity over problems or images.

    Attributes:
        low, high: the smallest and the largest.
        p5, p50, p95: percentiles.
    """

    low: float
    p5: float
    p50: float
    p95: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | int]) -> Spread | None:
        """The spread of the values; None if there are none."""
        if not values:
            return None
        return cls(*(float(value) for value in np.percentile(values, [0, 5, 50, 95, 100])))


@dataclass(frozen=True)
class Inspection:
    """The statistics of a source.

    Attributes:
        name: name of the source.
        schema: fields of a problem, and the columns they are read from, as text; only fields with a column.
        unused: columns that no field is read from; their values are in `meta`.
        notes: sentences to read before training on this source.
        rows: number of rows in the table, bad ones included.
        problems: number of usable problems.
        bad_rows: number of bad rows, by kind.
        first_bad_rows: the first bad row of each kind, as text.
        images: number of sound images, those for the teacher and in bad rows included.
        decoded_images: how many of these were decoded; only the header of the others was read.
        repeated_ids: rows with the id of an earlier row; they got a new id.
        duplicates: how many of these equal the earlier row in every column.
        without_answer: problems without a gold answer.
        answers_in_responses: how many of these have a response that ends in an answer.
        with_target_response: problems with a response to learn from.
        with_choices: problems with options in columns of their own.
        images_per_problem, videos_per_problem: number of problems by their number of media.
        image_width, image_height: size of the images in pixels, as in the files, upright.
        image_megapixels: size of the images in millions of pixels.
        video_frames: number of frames taken from each video.
        prompt_tokens: length of the student's prompt, media included; None without an encoder.
        teacher_prompt_tokens: length of the teacher's prompt, likewise.
        privileges: number of problems with each privilege, by the view that shows it.
        example_id: id of the rendered problem; None if there is none.
        student_sees, teacher_sees: its prompt as text with placeholders for media; with an encoder, rendered
            with the model's chat template.
    """

    name: str
    schema: dict[str, str]
    unused: list[str]
    notes: list[str]
    rows: int
    problems: int
    bad_rows: dict[str, int]
    first_bad_rows: dict[str, str]
    images: int
    decoded_images: int
    repeated_ids: int
    duplicates: int
    without_answer: int
    answers_in_responses: int
    with_target_response: int
    with_choices: int
    images_per_problem: dict[int, int]
    videos_per_problem: dict[int, int]
    image_width: Spread | None
    image_height: Spread | None
    image_megapixels: Spread | None
    video_frames: Spread | None
    prompt_tokens: Spread | None
    teacher_prompt_tokens: Spread | None
    privileges: dict[str, int]
    example_id: str | None
    student_sees: str
    teacher_sees: str

    def as_dict(self) -> dict[str, Any]:
        """The statistics as plain types, for JSON."""
        return asdict(self)


def inspect_source(
    source: FileSource,
    encoder: PromptEncoder | None = None,
    teacher_view: View | None = None,
    *,
    example: int = 0,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> Inspection:
    """Compute the statistics of a source, and render one of its problems.

    Args:
        source: open it with `bad_rows="skip"` and `may_be_empty=True`; otherwise bad rows, or a source of
            only bad rows, raise an error before they are counted.
        encoder: for lengths, and to render prompts with the model's chat template.
        teacher_view: what the teacher is shown; by default the plain problem.
        example: number of the problem to render; if it cannot be read, the next one that can.
        progress: shows the progress.

    Raises:
        ValueError: there is no problem `example`.
    """
    if example < 0 or (len(source) and example >= len(source)):
        raise ValueError(f"{source.name} has no problem {example}; it has {len(source)}.")
    view = teacher_view or Plain()
    read = _read(source, encoder, view, example, progress)
    samples, example_problem = read.samples, read.example
    sizes = [image.size for sample in samples for image in sample.images]
    render = _plain_text if encoder is None else encoder.render
    bad_reasons = reasons(read.bad)
    unanswered = [sample for sample in samples if sample.answer is None]
    in_responses = sum(
        sample.target_response is not None and answer_in_response(sample.target_response) is not None
        for sample in unanswered
    )
    return Inspection(
        name=source.name,
        schema={ours: " or ".join(columns) for ours in source.schema if (columns := source.columns_of(ours))},
        unused=source.unused,
        notes=[*source.notes, *_notes(source, in_responses)],
        rows=source.num_rows,
        problems=len(samples),
        bad_rows={kind: reason.count for kind, reason in bad_reasons.items()},
        first_bad_rows={kind: str(reason.first) for kind, reason in bad_reasons.items()},
        images=source.checked,
        decoded_images=source.decoded,
        repeated_ids=source.repeated_ids,
        duplicates=source.duplicates,
        without_answer=len(unanswered),
        answers_in_responses=in_responses,
        with_target_response=sum(sample.target_response is not None for sample in samples),
        with_choices=sum("choices" in sample.meta for sample in samples),
        images_per_problem=_counts(len(sample.images) for sample in samples),
        videos_per_problem=_counts(len(sample.videos) for sample in samples),
        image_width=Spread.of([width for width, _ in sizes]),
        image_height=Spread.of([height for _, height in sizes]),
        image_megapixels=Spread.of([width * height / 1e6 for width, height in sizes]),
        video_frames=Spread.of([len(video.frames) for sample in samples for video in sample.videos]),
        prompt_tokens=Spread.of(read.prompt_lengths),
        teacher_prompt_tokens=Spread.of(read.teacher_prompt_lengths),
        privileges={name: sum(map(view_of(name).applies, samples)) for name in PRIVILEGED},
        example_id=None if example_problem is None else example_problem.id,
        student_sees="" if example_problem is None else render(Plain().show(example_problem)),
        teacher_sees="" if example_problem is None else render(view.show(example_problem)),
    )


@dataclass
class _Read:
    """The rows of a source, read once.

    Attributes:
        bad: the rows that cannot be used.
        samples: the problems, in order.
        prompt_lengths, teacher_prompt_lengths: in tokens, by problem; empty without an encoder.
        example: the problem that is rendered; None if there is none.
    """

    bad: list[BadRow]
    samples: list[Sample] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    teacher_prompt_lengths: list[int] = field(default_factory=list)
    example: Sample | None = None


def _read(
    source: FileSource,
    encoder: PromptEncoder | None,
    teacher_view: View,
    example: int,
    progress: Callable[[Iterable[int], int], Iterable[int]] | None,
) -> _Read:
    read = _Read(list(source.bad_rows))
    numbers: Iterable[int] = range(len(source))
    for index in numbers if progress is None else progress(numbers, len(source)):
        try:
            sample = source.outline(index)
            prompts = (Plain().show(sample), teacher_view.show(sample))
            lengths = () if encoder is None else tuple(prompt_length(encoder, prompt) for prompt in prompts)
        except BadRowError as error:
            read.bad.append(error.bad)
            continue
        except RowProblem as problem:  # the teacher's view or the chat template refuses it
            read.bad.append(source.bad_row(index, problem))
            continue
        read.samples.append(sample)
        if lengths:
            read.prompt_lengths.append(lengths[0])
            read.teacher_prompt_lengths.append(lengths[1])
        if index >= example and read.example is None:
            read.example = sample
    read.example = read.example or next(iter(read.samples), None)
    return read


def _notes(source: FileSource, in_responses: int) -> list[str]:
    notes = []
    unused = source.unused_media()
    if unused is not None:
        notes.append(unused)
    if in_responses:
        notes.append(
            f"{counted(in_responses, 'problem')} without a gold answer, but with a target response that ends "
            "in one; data.answer_from_response=true uses it."
        )
    if source.repeated_ids:
        same = f" ({source.duplicates} repeat the whole row)" if source.duplicates else ""
        notes.append(
            f"{counted(source.repeated_ids, 'row')} with the id of an earlier row; #2, #3, ... is appended "
            f"to the id{same}."
        )
    return notes


def _counts(numbers: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(numbers).items()))


def _plain_text(prompt: Shown) -> str:
    """A prompt as text, without a model's chat template."""
    turns = (
        "".join(part.get("text", f"<{part['type']}>") for part in message["content"])
        for message in prompt.messages
    )
    return "\n\n".join(f"{m['role']}: {text}" for m, text in zip(prompt.messages, turns, strict=True))
