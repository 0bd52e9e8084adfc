"""From files to samples.

A source is a sequence: `source[i]` decodes and returns one `Sample`. What a name stands for is up to
`tables`, the conventions of its columns to `columns`, images and videos to `media`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from vicur.data.bad_rows import BadRow, BadRowError, RowProblem
from vicur.data.columns import Columns, Fields
from vicur.data.media import PIL_LIMIT, MediaReader, SizeOnly, VideoConfig, is_frame
from vicur.data.pixels import PixelLimits
from vicur.data.sample import Privilege, Sample, Video
from vicur.data.tables import Row, Table, open_table
from vicur.data.views import View

PEEKED = 20
"""Rows that are looked at to see what a column holds."""

Item = TypeVar("Item")
Progress = Callable[[Iterable[Row], int], Iterable[Row]]
"""Goes through so many rows and shows how far it is; `training.progress.Progress.over` is one."""


@dataclass(frozen=True)
class DataConfig:
    """The training problems."""

    train: str = "train.parquet"
    """A .parquet, .json or .jsonl file, a folder (also of `save_to_disk`), or a data set on the hub, with
    `@split` behind it if it has several splits."""
    system_prompt: str | None = None
    """Put before every problem, in the place of a system message of the data; None for the data's own. A
    ready-made `teacher_prompt` that has a system message keeps it."""
    image_dir: str | None = None
    """Folder that paths of images and videos start from, and may not leave; None for the data's own."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field to the column that holds it, where the usual names do not fit: `answer: label.text`. A dot
    leads into an object; "" leaves a field out."""
    text_only: bool = False
    """Whether problems without any image or video are meant. Else a run on such data is refused: most often
    its images are in a column that was not recognised."""
    bad_rows: Literal["error", "skip"] = "error"
    """What a row is that cannot become a problem: the end, or left out and counted."""
    min_pixels: int | None = None
    """Of an image as the model sees it; None for the checkpoint's own bound."""
    max_pixels: int | None = None
    """Of an image as the model sees it; None for the checkpoint's own bound."""
    max_raw_pixels: int = PIL_LIMIT
    """Of an image as the file has it; a row with a larger one is bad: it may be a decompression bomb."""
    video: VideoConfig = field(default_factory=VideoConfig)
    max_prompt_tokens: int | None = None
    """Of the student's prompt; None for no limit."""
    max_teacher_prompt_tokens: int | None = None
    """Of the teacher's; None: it may be as much longer as its hint makes it."""
    overlong: Literal["error", "drop"] = "drop"
    """What a problem with a longer prompt is: the end, or left out and counted. Nothing is ever cut."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_teacher_prompt_tokens", "max_raw_pixels"):
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"data.{name} must be at least 1, not {bound}.")
        if self.max_raw_pixels > 2 * PIL_LIMIT:  # there Pillow refuses by itself
            raise ValueError(
                f"data.max_raw_pixels may be {2 * PIL_LIMIT} at most, not {self.max_raw_pixels}."
            )
        self.pixel_limits()

    def pixel_limits(self) -> PixelLimits:
        """For the encoder of prompts.

        Raises:
            ValueError: a lower bound is above the upper one.
        """
        return PixelLimits(self.min_pixels, self.max_pixels, self.video.min_pixels, self.video.max_pixels)

    def open(
        self, path: str | Path | None = None, only_for: View | None = None, progress: Progress | None = None
    ) -> FileSource:
        """The problems of `path`, read as these settings say.

        Args:
            path: another name than `train`.
            only_for, progress: as of `FileSource`.

        Raises:
            ValueError: as `FileSource`.
        """
        return FileSource(
            self.train if path is None else path,
            self.system_prompt,
            only_for,
            image_dir=self.image_dir,
            columns=self.columns,
            bad_rows=self.bad_rows,
            video=self.video,
            max_raw_pixels=self.max_raw_pixels,
            progress=progress,
        )


class FileSource(Sequence[Sample]):
    """The problems of a file, a folder or a data set on the hub.

    Every row is checked as it is opened: text, placeholders, ids, and the headers of its media. What
    shows only in decoding, a truncated image, raises a `BadRowError` where the problem is asked for.

    Args:
        path: its name, as `tables.open_table` takes it, or a table.
        system_prompt: put before every problem, in the place of a system message of the data.
        only_for: keep only samples that have what this view shows.
        image_dir: folder that paths of media start from; that of the data if not given.
        columns: our field to their column, before the alias table.
        bad_rows: whether a bad row is an error or left out.
        video: how frames are taken.
        max_raw_pixels: of an image; one with more makes a bad row.
        progress: shows how far the check of the rows is.

    Attributes:
        path: as given.
        name: short, for messages.
        schema: our fields, and the columns they are read from.
        bad_rows: the rows that were left out.
        skips_bad_rows: whether such rows are left out, or an error.
        inapplicable: how many problems were left out because `only_for` does not apply to them.

    Raises:
        ValueError: there is no such data, it cannot be read, it has no question column, a row is bad and
            bad rows are errors, or no problem is left.
    """

    def __init__(
        self,
        path: str | Path | Table,
        system_prompt: str | None = None,
        only_for: View | None = None,
        *,
        image_dir: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        bad_rows: Literal["error", "skip"] = "error",
        video: VideoConfig | None = None,
        max_raw_pixels: int = PIL_LIMIT,
        progress: Progress | None = None,
    ) -> None:
        self._table = open_table(path) if isinstance(path, str | Path) else path
        self.path = Path(path) if isinstance(path, str | Path) else Path(path.name)
        self.name = str(path) if isinstance(path, str | Path) else path.name
        if image_dir is not None and not Path(image_dir).is_dir():
            raise ValueError(f"image_dir {image_dir} is not a folder.")
        folders = self._table.folders if image_dir is None else (Path(image_dir),)
        self._columns = Columns(self._table.columns, columns, system_prompt, self.name)
        self._media = MediaReader(folders, video or VideoConfig(), max_raw_pixels)
        self.schema = dict(self._columns.schema)
        self.bad_rows: list[BadRow] = []
        self.skips_bad_rows = bad_rows == "skip"
        self.inapplicable = 0
        self._shows_media = False
        self._rows = self._check(only_for, progress)
        if self.bad_rows and not self.skips_bad_rows:
            raise ValueError(self._complaint())
        if not self._rows:
            missing = f"; {len(self.bad_rows)} rows are bad" if self.bad_rows else ""
            wanted = f" that {only_for.name} applies to" if only_for is not None else ""
            raise ValueError(f"{self.name} has no problem to train or evaluate on{wanted}{missing}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """A problem, or several by a slice.

        Raises:
            BadRowError: an image or video cannot be decoded.
        """
        if isinstance(index, slice):
            return [self._sample(row) for row in self._rows[index]]
        return self._sample(self._rows[index])

    def __iter__(self) -> Iterator[Sample]:
        # Sequence's own would take an IndexError from deep inside for the end.
        return (self._sample(row) for row in self._rows)

    def outline(self, index: int) -> Sample:
        """A problem with media of which only the size is known: enough for its text and its length.

        Raises:
            BadRowError: a video has no frame that can be decoded.
        """
        return self._read(
            self._rows[index],
            lambda entry: SizeOnly(self._media.image_size(entry)),
            self._media.outline_video,
        )

    def outlines(self) -> Iterator[Sample]:
        """All problems in order, as `outline` gives them."""
        return (self.outline(index) for index in range(len(self)))

    @property
    def unused(self) -> list[str]:
        """Columns that no field is read from."""
        used = {column.partition(".")[0] for column in self.schema.values() if column is not None}
        return [name for name in self._table.columns if "." not in name and name not in used]

    def unused_media(self) -> str | None:
        """A sentence where no problem shows an image or a video, though a column of the data holds some.

        Evaluation and training call it before anything is loaded: a model would answer without seeing.
        """
        if self._shows_media:
            return None
        first = [self._table[row] for row in self._rows[:PEEKED]]
        columns = [name for name in self._media_columns(first) if name not in self.schema.values()]
        if not columns:
            return None
        return (
            f"No problem of {self.name} shows an image or a video, but the column {columns[0]} holds some; "
            f"name it with columns.images={columns[0]}."
        )

    @staticmethod
    def _media_columns(rows: Sequence[Row]) -> list[str]:
        names = dict.fromkeys(name for row in rows for name in row)
        return [name for name in names if any(is_frame(row.get(name)) for row in rows)]

    @property
    def num_rows(self) -> int:
        """Rows of the table, bad ones included."""
        return len(self._table)

    def row_number(self, index: int) -> int:
        """The number of the row, from 0, that a problem was read from."""
        return self._rows[index]

    def select(self, indices: Iterable[int]) -> FileSource:
        """The same source with some of its problems, in the order given.

        Raises:
            ValueError: there are none.
        """
        chosen = copy.copy(self)
        chosen._rows = [self._rows[index] for index in indices]
        if not chosen._rows:
            raise ValueError(f"Of {self.name} no problem is left.")
        return chosen

    def applies(self, view: View) -> list[bool]:
        """For each problem whether it has what a view shows, without opening a medium."""
        return self._each(
            lambda number, row: view.applies(self._without_media(number, self._columns.read(row)))
        )

    def column(self, name: str) -> list[str | None]:
        """One text field of all problems, without opening a medium.

        Args:
            name: "question" (its last turn), "answer", "cue", "rationale", "target_response" or "id".

        Raises:
            ValueError: there is no such field.
        """
        columns = self._columns
        if name == "question":
            return self._each(lambda _, row: _last_text(columns.read(row)))
        readers: dict[str, Callable[[Row], str | None]] = {
            "answer": columns.answer,
            "cue": lambda row: columns.text(row, "cue"),
            "rationale": lambda row: columns.text(row, "rationale"),
            "target_response": columns.target_response,
        }
        if name == "id":
            return self._each(lambda number, row: self._id(number, columns.id(row)), columns.text_columns())
        if name not in readers:
            raise ValueError(f"A source has no text field {name}; it has question, id, {', '.join(readers)}.")
        return self._each(lambda _, row: readers[name](row), columns.text_columns())

    def _each(self, read: Callable[[int, Row], Item], columns: list[str] | None = None) -> list[Item]:
        """Something of every problem, in one pass over the table."""
        kept = set(self._rows)
        found = {
            number: read(number, row)
            for number, row in enumerate(self._table.rows(columns))
            if number in kept
        }
        return [found[row] for row in self._rows]

    def _check(self, only_for: View | None, progress: Progress | None) -> list[int]:
        """The rows that are problems; the others go to `bad_rows`."""
        good: list[int] = []
        seen: dict[str, int] = {}
        rows: Iterable[Row] = self._table.rows()
        if progress is not None:
            rows = progress(rows, len(self._table))
        for number, row in enumerate(rows):
            try:
                fields = self._columns.read(row)
                for entry in fields.images:
                    self._media.check_image(entry)
                for entry in fields.videos:
                    self._media.check_video(entry)
                own = self._id(number, fields.id)
                if own in seen:
                    # Random numbers are keyed by the id: such problems would not be independent.
                    raise RowProblem("repeated_id", f"the id {own} is that of row {seen[own]} already")
                seen[own] = number
                self._shows_media |= bool(fields.images or fields.videos)
            except RowProblem as problem:
                self.bad_rows.append(self._bad(number, row, problem))
                continue
            if only_for is None or only_for.applies(self._without_media(number, fields)):
                good.append(number)
            else:
                self.inapplicable += 1
        return good

    def _complaint(self) -> str:
        first, *others = self.bad_rows
        more = f" {len(others)} more row(s) are bad, the next: {others[0]}." if others else ""
        mend = "Mend the data, or leave such rows out with bad_rows=skip (data.bad_rows in a recipe)."
        return f"{self.name}, {first}.{more} {mend}"

    def _bad(self, number: int, row: Row, problem: RowProblem) -> BadRow:
        return BadRow(number, self._columns.id(row), problem.kind, problem.reason)

    def _sample(self, row: int) -> Sample:
        return self._read(row, self._media.read_image, self._media.read_video)

    def _read(
        self, row: int, read_image: Callable[[Any], Image.Image], read_video: Callable[[Any], Video]
    ) -> Sample:
        values = self._table[row]
        try:
            fields = self._columns.read(values)
            images = tuple(read_image(entry) for entry in fields.images)
            videos = tuple(read_video(entry) for entry in fields.videos)
        except RowProblem as problem:
            raise BadRowError(self.name, self._bad(row, values, problem)) from problem
        return self._build(row, fields, images, videos)

    def _without_media(self, row: int, fields: Fields) -> Sample:
        """For questions that only concern text."""
        nothing = SizeOnly((1, 1))
        images = (nothing,) * len(fields.images)
        return self._build(row, fields, images, (Video((nothing,), 1.0),) * len(fields.videos))

    def _id(self, row: int, stated: str | None) -> str:
        return f"{self._table.name}:{row}" if stated is None else stated

    def _build(
        self, row: int, fields: Fields, images: tuple[Image.Image, ...], videos: tuple[Video, ...]
    ) -> Sample:
        return Sample(
            id=self._id(row, fields.id),
            messages=fields.messages,
            images=images,
            videos=videos,
            answer=fields.answer,
            privilege=Privilege(
                answer=fields.answer,
                rationale=fields.rationale,
                cue=fields.cue,
                teacher_prompt=fields.teacher_prompt,
            ),
            target_response=fields.target_response,
            meta=fields.meta,
        )


def _last_text(fields: Fields) -> str:
    """The words of the last turn, which asks for the answer."""
    return "".join(part.get("text", "") for part in fields.messages[-1]["content"])


def cue_boxes(sample: Sample) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """Name, value and (left, top, right, bottom) in pixels of what a sample's cue names, if known."""
    raw = sample.meta.get("cue_boxes")
    entries = json.loads(raw) if isinstance(raw, str) else raw or []
    return [(name, value, (left, top, right, bottom)) for name, value, left, top, right, bottom in entries]
