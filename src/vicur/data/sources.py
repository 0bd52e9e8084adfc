"""Reads samples from files.

A source is a sequence: `source[i]` decodes and returns one `Sample`. `tables` opens the data that a name
refers to, `columns` handles the conventions of columns, `media` reads images and videos.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from pydantic import Field

from vicur.bad_rows import BadRow, BadRowError, RowProblem, reasons_in_words
from vicur.data.choices import LETTERS, check_format
from vicur.data.columns import HINTS, MEDIA, PLACES, Columns, Fields, value_at
from vicur.data.media import MediaReader
from vicur.data.privileged import scaled_regions
from vicur.data.readers import Row
from vicur.data.regions import BoxConfig
from vicur.data.sample import Box, Privilege, Sample
from vicur.data.tables import JoinedTable, Table, name_of, open_table
from vicur.data.views import View
from vicur.data.views.replaced import in_order
from vicur.data.written import parse_if_written
from vicur.media.images import KEPT_PIXELS, PIL_LIMIT, SizeOnly, is_picture
from vicur.media.pixels import PixelLimits
from vicur.media.video import Video
from vicur.media.videos import VideoConfig
from vicur.settings.section import Count, PathText, Text, section
from vicur.wording import counted, listed

PEEKED = 20
"""Number of rows that are read to see what a column holds."""
CHECKED = 1000
"""Default number of images that are decoded when a source is opened."""

Item = TypeVar("Item")
Progress = Callable[[Iterable[Row], int], Iterable[Row]]
"""Yields the rows and shows the progress, given their number, as `vicur.progress.Progress.over` does."""
Observer = Callable[[int, Sample], None]
"""Called with the row number and the outline of a problem."""


@section
class DataConfig:
    """The training problems."""

    train: PathText | list[PathText] = "train.parquet"
    """A .parquet, .json, .jsonl, .csv or .tsv file; a folder of such files, of `save_to_disk`, or of images
    with a metadata file; a pattern such as part-*.parquet; several of these as a list or separated by commas;
    or a data set on the hub. Append `@split` to a folder or hub id to choose a split."""
    system_prompt: Text | None = None
    """System prompt of every problem; it replaces system messages in the data, except that of a
    `teacher_prompt`. null keeps the data's own."""
    image_dir: PathText | None = None
    """Folder that paths of images and videos are relative to; paths may not leave it. null for the folder of
    the data file."""
    columns: dict[Text, Text] = field(default_factory=dict)
    """Column of each field whose column has an unusual name, e.g. `answer: label.text`. A dot reads a key of
    an object; "" ignores the field."""
    boxes: BoxConfig = field(default_factory=BoxConfig)
    """The boxes of `regions`, for the views crop and erased."""
    order: Literal["as_is", "image_first", "question_first"] = "as_is"
    """Order of the media and the text of each of the user's turns, for all models and also in evaluations: as
    in the data, media first, or text first. A ready-made `teacher_prompt` stays as it is."""
    options: Text | None = "letters"
    """Format in which options that are in separate columns are appended to the question, one per line, unless
    it lists them already: `letters` ("A. 3 cm"), or a format with {letter}, {number} and {text}, such as
    "({letter}) {text}"; null to append none."""
    answer_from_response: bool = False
    """Whether to take a missing gold answer from the target response, if that ends in a `\\boxed{}`, an
    `<answer>` or "answer is", or has at most three words."""
    text_only: bool = False
    """Whether data without any image or video is intended. If false, a run on such data is refused, because
    the usual reason is an image column that was not recognised."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read as a problem: stop, or skip and count them."""
    check_images: Annotated[int, Field(ge=0)] | None = CHECKED
    """Number of images to decode before the run, to find broken ones; null for all, 0 for none. For the rest
    only the header is checked; one that cannot be decoded later is treated as a bad row then."""
    min_pixels: Count | None = None
    """Lower bound on pixels per image after resizing; null for the checkpoint's own."""
    max_pixels: Count | None = None
    """Upper bound on pixels per image after resizing; null for the checkpoint's own."""
    max_raw_pixels: Annotated[int, Field(ge=1, le=2 * PIL_LIMIT)] = PIL_LIMIT
    """Upper bound on pixels of an image file. A row with a larger image, possibly a decompression bomb, is a
    bad row."""
    video: VideoConfig = field(default_factory=VideoConfig)
    max_prompt_tokens: Count | None = None
    """Upper bound on tokens of the student's prompt, visual tokens included; null for no limit."""
    max_teacher_prompt_tokens: Count | None = None
    """Upper bound on tokens of the teacher's prompt; null for no limit."""
    overlong: Literal["error", "drop"] = "drop"
    """What to do with problems whose prompt is too long: stop, or drop and count them."""

    def __post_init__(self) -> None:
        option_format(self.options)
        self.pixel_limits()

    def pixel_limits(self) -> PixelLimits:
        """Pixel limits for the prompt encoder.

        Raises:
            ValueError: a lower bound is above the upper one.
        """
        return PixelLimits(self.min_pixels, self.max_pixels, self.video.min_pixels, self.video.max_pixels)

    @property
    def kept_pixels(self) -> int:
        """The number of pixels to which larger images are shrunk when they are read.

        It is no less than the model sees. If the model sees few pixels, it is 16 times as many: where each
        side shrinks to a quarter or less, doing so in two steps does not show.
        """
        if self.max_pixels is None:
            return KEPT_PIXELS
        return min(max(KEPT_PIXELS, self.max_pixels), 16 * self.max_pixels)

    def open(
        self,
        path: str | Path | Sequence[str] | Table | None = None,
        only_for: Sequence[View] = (),
        progress: Progress | None = None,
        *,
        observe: Observer | None = None,
        may_be_empty: bool = False,
    ) -> FileSource:
        """The problems of `path`, read as these settings say.

        Args:
            path: another name than `train`, or rows that are open already.
            only_for, progress, observe, may_be_empty: as in `FileSource`.

        Raises:
            ValueError: as in `FileSource`.
        """
        return FileSource(
            self.train if path is None else path,
            self.system_prompt,
            only_for,
            image_dir=self.image_dir,
            columns=self.columns,
            boxes=self.boxes,
            order=self.order,
            options=self.options,
            answer_from_response=self.answer_from_response,
            bad_rows=self.bad_rows,
            check_images=self.check_images,
            video=self.video,
            max_raw_pixels=self.max_raw_pixels,
            kept_pixels=self.kept_pixels,
            progress=progress,
            observe=observe,
            may_be_empty=may_be_empty,
        )


def skipping_bad_rows() -> DataConfig:
    """Data settings with which bad rows are skipped and counted by default."""
    return DataConfig(bad_rows="skip")


def option_format(options: str | None) -> str | None:
    """The format of an option's line that a setting selects; None for no lines.

    Raises:
        ValueError: it is not a valid format.
    """
    if options in (None, "", "off", "none"):
        return None
    if options == "letters":
        return LETTERS
    assert options is not None
    check_format(options)
    return options


class FileSource(Sequence[Sample]):
    """The problems of files, a folder or a data set on the hub.

    Every row is checked when the source is opened: text, placeholders, and the headers of its media. The
    first images are also decoded. Errors that show only later, such as a truncated image further down, raise
    a `BadRowError` when the problem is read.

    Args:
        path: one or more names, as in `tables.open_table`, or a table.
        system_prompt: put before every problem, in place of a system message of the data.
        only_for: keep only samples that have what these views show.
        image_dir: folder that paths of media start from; that of the data if not given.
        columns: field of a problem -> its column, instead of the alias table.
        boxes: meaning of the numbers of a box.
        order: order of the media and the text of each of the user's turns.
        options: format of options with columns of their own after a question, as `DataConfig.options`.
        answer_from_response: whether a missing gold answer is read from the response to learn from.
        bad_rows: whether a bad row is an error or is left out.
        check_images: number of images to decode in the check; None for all.
        video: settings for taking frames.
        max_raw_pixels: maximum number of pixels in an image file; a larger image makes a bad row.
        kept_pixels: number of pixels to which larger images are shrunk.
        progress: shows the progress of the check.
        observe: called for every problem during the check, so that callers that need to see every problem
            do not read the data again. With it, one frame of every video is decoded. A `RowProblem` that it
            raises makes the row a bad row.
        may_be_empty: whether a source without any problem is allowed, instead of an error.

    Attributes:
        path: path of the data, as the user wrote it.
        name: short name, for messages.
        schema: fields of a problem, and the columns that they are read from.
        notes: sentences for the user on how the columns were read.
        bad_rows: the rows that were left out.
        skips_bad_rows: whether bad rows are left out; otherwise they are an error.
        inapplicable: number of problems left out because a view of `only_for` does not apply to them.
        num_seeing: number of problems in the files with an image or a video.
        checked: number of images that were found sound, those for the teacher and in bad rows included.
        decoded: how many of these were decoded; only the header of the others was read.
        repeated_ids: number of rows with the id of an earlier row; a number was appended to their ids.
        duplicates: number of these that equal the earlier row in every column.

    Raises:
        ValueError: there is no such data, it cannot be read, it is empty, it has no question column, a row is
            bad and bad rows are errors, or no problem is left.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str] | Table,
        system_prompt: str | None = None,
        only_for: Sequence[View] = (),
        *,
        image_dir: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        boxes: BoxConfig | None = None,
        order: Literal["as_is", "image_first", "question_first"] = "as_is",
        options: str | None = "letters",
        answer_from_response: bool = False,
        bad_rows: Literal["error", "skip"] = "error",
        check_images: int | None = CHECKED,
        video: VideoConfig | None = None,
        max_raw_pixels: int = PIL_LIMIT,
        kept_pixels: int = KEPT_PIXELS,
        progress: Progress | None = None,
        observe: Observer | None = None,
        may_be_empty: bool = False,
    ) -> None:
        named = isinstance(path, str | Path | list | tuple)
        self._table: Table = open_table(path) if named else path  # type: ignore[arg-type, assignment]
        self.name = name_of(path) if named else self._table.name  # type: ignore[arg-type]
        self.path = Path(self.name)
        if not len(self._table):
            raise ValueError(f"{self.name} is empty: it has no rows.")
        home = None if image_dir is None else Path(image_dir).expanduser()
        if home is not None and not home.is_dir():
            raise ValueError(f"image_dir {image_dir} is not a folder.")
        self._readers = tuple(
            MediaReader(folders, video or VideoConfig(), max_raw_pixels, kept_pixels)
            for folders in self._folders(home)
        )
        peeked = [self._table[row] for row in range(min(PEEKED, len(self._table)))]
        self._columns = Columns(
            self._table.columns,
            columns,
            system_prompt,
            self.name,
            peeked=peeked,
            options=option_format(options),
            answer_from_response=answer_from_response,
        )
        self._boxes, self._order = boxes or BoxConfig(), order
        self.notes: list[str] = []
        if "images" not in (columns or {}):
            self._find_pictures(peeked)
        self.schema = self._columns.schema
        self.bad_rows: list[BadRow] = []
        self.skips_bad_rows = bad_rows == "skip"
        self.inapplicable = self.checked = self.decoded = self.repeated_ids = self.duplicates = 0
        self._new_ids: dict[int, str] = {}
        self.num_seeing = 0
        self._check_images = check_images
        self._unread: dict[str, dict[int, str]] = {place: {} for place in PLACES}
        self._rows = self._check(only_for, observe, progress)
        self.notes += self.unread_notes()
        if self.bad_rows and not self.skips_bad_rows:
            raise ValueError(self._complaint())
        if not self._rows and not may_be_empty:
            raise ValueError(self._emptiness(only_for))

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
        # Sequence.__iter__ would take an IndexError raised while reading a row for the end.
        return (self._sample(row) for row in self._rows)

    def outline(self, index: int) -> Sample:
        """A problem whose media have a size but no pixels: enough for its text and its length.

        Raises:
            BadRowError: a video has no frame that can be decoded.
        """
        row = self._rows[index]
        media = self._media(row)
        return self._read(row, lambda entry: SizeOnly(media.image_size(entry)), media.outline_video)

    def outlines(self) -> Iterator[Sample]:
        """All problems in order, as `outline` gives them."""
        return (self.outline(index) for index in range(len(self)))

    @property
    def unused(self) -> list[str]:
        """Columns that no field is read from."""
        used = {column.partition(".")[0] for column in self._columns.used}
        return [name for name in self._table.columns if "." not in name and name not in used]

    def columns_of(self, ours: str) -> tuple[str, ...]:
        """The columns that a field is read from, in the order in which they are tried."""
        return self._columns.columns_of(ours)

    def unused_media(self) -> str | None:
        """A message if no problem shows an image or a video although a column holds some; otherwise None.

        Training and evaluation stop there: a model would answer without seeing anything.
        """
        if self.num_seeing:
            return None
        first = [self._table[row] for row in self._rows[:PEEKED]]
        columns = [name for name in self.unused if any(_holds_pictures(row.get(name)) for row in first)]
        if not columns:
            return None
        return (
            f"No problem of {self.name} shows an image or a video, but the column {columns[0]} holds images "
            f"that nothing reads. Name it with data.columns.images={columns[0]}."
        )

    def media_in_words(self) -> str:
        """Number of problems with an image or a video, and the columns that these come from."""
        columns = [name for ours in ("images", "videos") for name in self.columns_of(ours)]
        source = f" (columns: {listed(columns)})" if columns and self.num_seeing else ""
        problems = counted(len(self), "problem")
        return f"{self.num_seeing:,} of {problems} of {self.name} have an image or a video{source}."

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the rows were read from; none for data of the hub."""
        return self._table.files

    @property
    def num_rows(self) -> int:
        """Rows of the table, bad ones included."""
        return len(self._table)

    def row_number(self, index: int) -> int:
        """The number of the row, from 0, that a problem was read from."""
        return self._rows[index]

    def bad_row(self, index: int, problem: RowProblem) -> BadRow:
        """The row of a problem that turned out bad after the check."""
        row = self._rows[index]
        return self._bad(row, self._table[row], problem)

    def select(self, indices: Iterable[int]) -> FileSource:
        """The same source with some of its problems, in the order given.

        Raises:
            ValueError: there are none.
        """
        selected = copy.copy(self)
        selected._rows = [self._rows[index] for index in indices]
        if not selected._rows:
            raise ValueError(f"No problem of {self.name} is left.")
        return selected

    def applies(self, view: View) -> list[bool]:
        """Whether each problem has what a view shows; no medium is opened."""
        return self._each(
            lambda number, row: view.applies(self._without_media(number, self._columns.read(row)))
        )

    def column(self, name: str) -> list[str | None]:
        """One text field of all problems; no medium is opened.

        Args:
            name: "question" (its last turn), "target_response", "id", or a privilege that is a text.

        Raises:
            ValueError: there is no such field.
        """
        columns = self._columns
        if name == "question":
            return self._each(lambda _, row: _last_text(columns.read(row)))
        readers: dict[str, Callable[[Row], str | None]] = {
            "answer": columns.answer,
            **{kind: partial(columns.text, field_name=kind) for kind in HINTS},
            "target_response": columns.target_response,
        }
        if name == "id":
            return self._each(lambda number, row: self._id(number, columns.id(row)), columns.text_columns())
        if name not in readers:
            raise ValueError(f"A source has no text field {name}; it has question, id, {', '.join(readers)}.")
        return self._each(lambda _, row: readers[name](row), columns.text_columns())

    def values(self, column: str) -> list[Any]:
        """What a column of the data holds, for all problems; no medium is opened.

        Args:
            column: a column, whether or not a field is read from it; a dot reads a key of an object.

        Raises:
            ValueError: the data has no such column.
        """
        if column not in (columns := self._table.columns) and column.partition(".")[0] not in columns:
            raise ValueError(f"{self.name} has no column {column}; it has {listed(columns)}.")
        read = [column if column in columns else column.partition(".")[0]]
        return self._each(lambda _, row: value_at(row, column), read)

    def _each(self, read: Callable[[int, Row], Item], columns: list[str] | None = None) -> list[Item]:
        """Apply `read` to the row of every problem, in one pass over the table."""
        kept = set(self._rows)
        items = {
            number: read(number, row)
            for number, row in enumerate(self._table.rows(columns))
            if number in kept
        }
        return [items[row] for row in self._rows]

    def _folders(self, home: Path | None) -> list[tuple[Path, ...]]:
        """The folders of each file's media: paths start from the file's own, unless one is set for all."""
        parts = self._table.parts if isinstance(self._table, JoinedTable) else (self._table,)
        return [part.folders if home is None else (home,) for part in parts]

    def _media(self, row: int) -> MediaReader:
        return self._readers[self._table.locate(row)[0] if isinstance(self._table, JoinedTable) else 0]

    def _find_pictures(self, peeked: Sequence[Row]) -> None:
        """Read images from another column that has some, if those of the usual column cannot be opened."""
        current = self._columns.columns_of("images")
        stated = {n: list(self._columns.media(row)[0].entries) for n, row in enumerate(peeked)}
        if not any(stated.values()) or any(self._opens(n, entries) for n, entries in stated.items()):
            return
        media = {name for field_name in MEDIA for name in self._columns.columns_of(field_name)}
        others = [name for name in dict.fromkeys(name for row in peeked for name in row) if name not in media]
        for name in others:
            pictures = {n: row[name] for n, row in enumerate(peeked) if _holds_pictures(row.get(name))}
            if pictures and all(self._opens(n, _listed(entry)) for n, entry in pictures.items()):
                self._columns.read_from("images", name)
                self.notes.append(
                    f"Images are read from {name}: those of {' and '.join(current)} cannot be opened."
                )
                return

    def _opens(self, row: int, entries: Sequence[Any]) -> bool:
        """Whether the headers of a row's images can be read."""
        try:
            for entry in entries:
                self._media(row).image_size(entry)
        except RowProblem:
            return False
        return bool(entries)

    def _check(
        self, only_for: Sequence[View], observe: Observer | None, progress: Progress | None
    ) -> list[int]:
        """The rows that are problems; the others go to `bad_rows`."""
        good: list[int] = []
        first_of: dict[str, int] = {}
        rows: Iterable[Row] = self._table.rows()
        if progress is not None:
            rows = progress(rows, len(self._table))
        for number, row in enumerate(rows):
            self._note_id(number, row, first_of)
            try:
                outline = self._checked(number, self._columns.read(row), sized=observe is not None)
                applies = all(view.applies(outline) for view in only_for)
                if applies and observe is not None:
                    observe(number, outline)
            except RowProblem as problem:
                self.bad_rows.append(self._bad(number, row, problem))
                continue
            if not applies:
                self.inapplicable += 1
                continue
            good.append(number)
            self.num_seeing += bool(outline.images or outline.videos)
        return good

    def _checked(self, number: int, fields: Fields, *, sized: bool) -> Sample:
        """Check the media of a row and return the outline of its problem.

        Args:
            number: number of the row.
            fields: its fields.
            sized: whether the outline needs the true size of videos, for which one frame is decoded.

        Raises:
            RowProblem: an image or a video is missing, broken or too large.
        """
        media = self._media(number)

        def image(entry: Any) -> Image.Image:
            return SizeOnly(self._checked_size(media, entry))

        def video(entry: Any) -> Video:
            if sized:
                return media.outline_video(entry)
            media.check_video(entry)
            return Video((SizeOnly((1, 1)),), 1.0)

        return self._build(number, fields, image, video)

    def _checked_size(self, media: MediaReader, entry: Any) -> tuple[int, int]:
        if self._check_images is None or self.decoded < self._check_images:
            size = media.read_image(entry).size
            self.decoded += 1
        else:
            size = media.image_size(entry)
        self.checked += 1
        return size

    def _note_id(self, number: int, row: Row, first_of: dict[str, int]) -> None:
        """Give a row with the id of an earlier row a new one: random numbers are keyed by id."""
        stated = self._id(number, self._columns.id(row))
        if stated not in first_of:
            first_of[stated] = number
            return
        self.repeated_ids += 1
        self.duplicates += self._table[first_of[stated]] == row
        repeat = 2
        while f"{stated}#{repeat}" in first_of:
            repeat += 1
        self._new_ids[number] = f"{stated}#{repeat}"
        first_of[self._new_ids[number]] = number

    def _complaint(self) -> str:
        fix = "Fix the data, or skip such rows with data.bad_rows=skip."
        if len(self.bad_rows) == 1:
            return f"{self.name}, {self.bad_rows[0]}. {fix}"
        return (
            f"{self.name}: {len(self.bad_rows):,} of {self.num_rows:,} rows are bad: "
            f"{reasons_in_words(self.bad_rows)}. {fix}"
        )

    def _emptiness(self, only_for: Sequence[View]) -> str:
        names = " and ".join(view.name for view in only_for)
        condition = f" that the view {names} applies to" if self.inapplicable else ""
        why = ""
        if self.bad_rows:
            count = "all rows" if len(self.bad_rows) == self.num_rows else f"{len(self.bad_rows):,} rows"
            why = f": {count} are bad: {reasons_in_words(self.bad_rows)}"
        return f"{self.name} has no problem to train or evaluate on{condition}{why}."

    def _bad(self, number: int, row: Row, problem: RowProblem) -> BadRow:
        place = None
        if isinstance(self._table, JoinedTable):
            part, row_in_part = self._table.locate(number)
            place = f"{self._table.parts[part].name}, row {row_in_part}"
        return BadRow(number, self._columns.id(row), problem.kind, problem.reason, place)

    def _sample(self, row: int) -> Sample:
        media = self._media(row)
        return self._read(row, media.read_image, media.read_video)

    def _read(
        self, row: int, read_image: Callable[[Any], Image.Image], read_video: Callable[[Any], Video]
    ) -> Sample:
        values = self._table[row]
        try:
            return self._build(row, self._columns.read(values), read_image, read_video)
        except RowProblem as problem:
            raise BadRowError(self.name, self._bad(row, values, problem)) from problem

    def _without_media(self, row: int, fields: Fields) -> Sample:
        """The sample with placeholders of one pixel in place of its media, for checks that read only text."""
        whole = (0.0, 0.0, 1.0, 1.0)
        regions = [(whole,) * len(boxes) for boxes in fields.privileged.boxes]
        nothing = SizeOnly((1, 1))
        return self._build(row, fields, lambda _: nothing, lambda _: Video((nothing,), 1.0), regions)

    def _id(self, row: int, stated: str | None) -> str:
        if row in self._new_ids:
            return self._new_ids[row]
        if stated is not None:
            return stated
        if isinstance(self._table, JoinedTable):
            part, row_in_part = self._table.locate(row)
            return f"{self._table.parts[part].name}:{row_in_part}"
        return f"{self._table.name}:{row}"

    def _build(
        self,
        row: int,
        fields: Fields,
        image: Callable[[Any], Image.Image],
        video: Callable[[Any], Video],
        regions: list[tuple[Box, ...]] | None = None,
    ) -> Sample:
        """The problem of a row.

        Args:
            row: its number.
            fields: its fields.
            image, video: open an entry.
            regions: the boxes of each image; by default those of the row.

        Raises:
            RowProblem: a medium cannot be opened, or a box does not fit its image.
        """
        images = tuple(map(image, fields.images))
        privileged = fields.privileged
        for place, reason in privileged.unread:
            self._unread[place][row] = reason
        if regions is None:
            regions = self._regions(row, fields, images)
        texts: dict[str, Any] = {**fields.texts, "answer": fields.answer}
        privilege = Privilege(teacher_prompt=fields.teacher_prompt, **texts)
        return Sample(
            id=self._id(row, fields.id),
            messages=fields.messages if self._order == "as_is" else in_order(fields.messages, self._order),
            images=images,
            videos=tuple(map(video, fields.videos)),
            answer=fields.answer,
            privilege=privileged.opened(privilege, image, video, regions),
            target_response=fields.target_response,
            meta=fields.meta,
        )

    def _regions(self, row: int, fields: Fields, images: Sequence[Image.Image]) -> list[tuple[Box, ...]]:
        """The boxes of each image in its pixels."""
        boxes = fields.privileged.boxes
        if not boxes:
            return []
        raw_sizes = [self._media(row).raw_image_size(entry) for entry in fields.images]
        try:
            return scaled_regions(boxes, [image.size for image in images], raw_sizes, self._boxes)
        except RowProblem as problem:
            if self._columns.is_named("regions"):
                raise
            self._unread["regions"][row] = problem.reason
            return []

    def unread_notes(self) -> list[str]:
        """Says which columns have the name of regions or clips and hold something else."""
        return [
            f"{place} are not read from the column {self._columns.columns_of(place)[0]} in "
            f"{counted(len(rows), 'row')}, the first: {next(iter(rows.values()))}."
            for place, rows in self._unread.items()
            if rows
        ]


def _listed(value: Any) -> list[Any]:
    value = parse_if_written(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _holds_pictures(value: Any) -> bool:
    """Whether a column's value is an image, or a list of images, by its form."""
    entries = _listed(value)
    return bool(entries) and all(map(is_picture, entries))


def _last_text(fields: Fields) -> str:
    """The text of the last turn, which asks for the answer."""
    return "".join(part.get("text", "") for part in fields.messages[-1]["content"])
