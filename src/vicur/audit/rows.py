"""The part of each sample that an audit reads. Media are only opened if a verifier or judge needs
them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vicur.data.digests import media_digest
from vicur.data.sample import Sample, TextKind
from vicur.data.sources import FileSource
from vicur.data.views import privileged_texts


@dataclass(frozen=True)
class CueRow:
    """One cue, with what its audit needs to know.

    Attributes:
        id: the problem's id.
        text: the cue; None if the sample has none.
        question: the text of its last turn.
        answer: the gold answer.
        choices: texts of the options A, B, ..., if the data has them in a column.
        outline: returns the sample without its pixels, to read its `meta`.
        sample: returns the whole sample, for a verifier.
    """

    id: str
    text: str | None
    question: str = ""
    answer: str | None = None
    choices: tuple[str, ...] = ()
    outline: Callable[[], Sample] | None = None
    sample: Callable[[], Sample] | None = None

    def media_key(self) -> str | None:
        """A hash of all pixels; None if the media are not available."""
        return None if self.sample is None else media_digest(self.sample())


def cue_rows(source: FileSource | Iterable[Sample] | Iterable[CueRow], kind: TextKind) -> Iterator[CueRow]:
    """The rows of a source, or of samples in memory.

    Args:
        source: the samples; rows are returned unchanged.
        kind: kind of text to audit.
    """
    if isinstance(source, FileSource):
        yield from _source_rows(source, kind)
        return
    for item in source:
        yield item if isinstance(item, CueRow) else _sample_row(item, kind)


def _source_rows(source: FileSource, kind: TextKind) -> Iterator[CueRow]:
    texts, answers = source.column(kind), source.column("answer")
    has_choices = source.schema.get("choices") is not None
    identity = zip(source.column("id"), source.column("question"), strict=True)
    for index, (sample_id, question) in enumerate(identity):
        outline = functools.partial(source.outline, index)
        yield CueRow(
            id=str(sample_id),
            text=texts[index],
            question=question or "",
            answer=answers[index],
            # An outline reads the headers of the media, so it is only made if there are choices.
            choices=_choices(outline()) if has_choices else (),
            outline=outline,
            sample=functools.partial(source.__getitem__, index),
        )


def _sample_row(sample: Sample, kind: TextKind) -> CueRow:
    return CueRow(
        id=sample.id,
        text=privileged_texts(sample).get(kind),
        question="".join(part.get("text", "") for part in sample.messages[-1]["content"]),
        answer=sample.answer,
        choices=_choices(sample),
        outline=lambda: sample,
        sample=lambda: sample,
    )


def _choices(sample: Sample) -> tuple[str, ...]:
    choices = sample.meta.get("choices")
    return tuple(str(choice) for choice in choices) if isinstance(choices, list | tuple) else ()
