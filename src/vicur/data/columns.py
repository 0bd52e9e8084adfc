"""Reads a row, in any of the usual conventions, into the fields of a problem.

An alias table, or the setting `columns`, decides which column holds which field.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vicur.bad_rows import RowProblem
from vicur.data.chat import (
    RowMedia,
    Turn,
    as_turns,
    count_placeholders,
    place_media,
    text_of,
    turns,
    valid_text,
    with_text,
)
from vicur.data.choices import (
    LETTERS,
    Choices,
    choice_columns,
    option_lines,
    read_choices,
    stated_options,
    states_options,
)
from vicur.data.privileged import PrivilegedMedia
from vicur.data.readers import QUESTIONS, UNREADABLE
from vicur.data.regions import boxes_by_image, intervals_by_video
from vicur.data.responses import answer_in_response
from vicur.data.sample import TEXT_KINDS, Message, placeholders_in
from vicur.data.teacher_prompt import read_teacher_prompt
from vicur.data.written import parse_if_written, texts_in
from vicur.media.images import is_picture
from vicur.rewards.answers import unwrap_gold
from vicur.wording import listed, shortened

ALIASES: dict[str, tuple[str, ...]] = {
    "question": QUESTIONS,
    "system": ("system", "system_prompt"),
    "images": ("images", "image", "image_path", "image_paths", "img_path", "file_name"),
    "videos": ("videos", "video", "video_path"),
    "answer": (
        *("answer", "solution", "ground_truth", "reward_model.ground_truth"),
        *("answerKey", "answer_key", "correct_answer"),
    ),
    "cue": ("cue", "visual_cue", "visual_cues", "privileged_context", "hint"),
    "rationale": ("rationale", "reasoning", "explanation"),
    "teacher_prompt": ("teacher_prompt", "teacher_raw_prompt"),
    "privileged_images": ("privileged_images", "teacher_images", "bbox_images", "crop_images"),
    "privileged_videos": ("privileged_videos", "teacher_videos"),
    "negative_images": ("negative_images", "teacher_neg_images", "null_images"),
    "regions": ("regions", "boxes", "bbox", "bboxes", "bboxs", "bbox_2d", "cue_boxes"),
    "clips": ("clips", "clue_intervals"),
    "target_response": ("target_response", "completion", "response"),
    "choices": ("choices", "options"),
    "id": ("id", "qid", "uid", "pid", "question_id", "index", "extra_info.index"),
}
"""Fields of a problem, and the names of columns that may hold them; the first existing column is used.

A dot leads into a column that holds an object. `question` may be a text or a whole chat. For a row that lacks
the column altogether, the next one is tried.
"""
HINTS = tuple(kind for kind in TEXT_KINDS if kind != "answer")
"""Privileges that are read as plain texts. The answer is not among them: it is read as the gold answer."""
_NEXT_IF_EMPTY = ("question", "images", "videos")
"""Fields for which the next column is tried also if the first one is empty."""
MEDIA = ("images", "videos", "privileged_images", "privileged_videos", "negative_images")
"""Fields that are media."""
PLACES = ("regions", "clips")
"""Fields that say where to look. Their columns also stay in `meta`, for reward functions and records, and a
column that only has such a name may hold something else."""
_LONGEST_ID = 1000
"""Maximum number of characters of an id."""
_Read = TypeVar("_Read")
_NUMBERED = re.compile(r"(image|img|picture|video)[ _]?(\d{1,3})", re.IGNORECASE)


@dataclass(frozen=True)
class Fields:
    """The content of a row, before any medium is opened.

    Attributes:
        id: id of the row; None if it has none.
        messages: the chat up to where the student answers, media as placeholders.
        images, videos: the entries of the row, in the order of their placeholders.
        answer: the gold answer, without a `\\boxed{}` around it.
        texts: the other texts that only a teacher may see, by kind.
        teacher_prompt: messages that only a teacher may see.
        target_response: a response to learn from.
        privileged: media that only a teacher may see, and where to look.
        meta: all other columns, and `choices`.
    """

    id: str | None
    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    answer: str | None = None
    texts: Mapping[str, str | None] = field(default_factory=dict)
    teacher_prompt: tuple[Message, ...] | None = None
    target_response: str | None = None
    privileged: PrivilegedMedia = field(default_factory=PrivilegedMedia)
    meta: Mapping[str, Any] = field(default_factory=dict)


class Columns:
    """Maps the fields of a problem to the columns of a table, and reads rows accordingly.

    Args:
        names: the table's columns, and fields inside them with a dot.
        overrides: field of a problem -> its column, instead of the alias table; "" leaves the field out.
        system_prompt: put before every problem, in place of a system message of the data.
        where: name of the table, for messages.
        peeked: some rows, to find columns whose texts encode objects.
        options: format of the options after the question; None to leave them out.
        answer_from_response: whether a missing gold answer is read from the response to learn from.

    Raises:
        ValueError: `overrides` has a field or a column that does not exist, or no column holds a question.
    """

    def __init__(
        self,
        names: Sequence[str],
        overrides: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
        where: str = "The data",
        *,
        peeked: Sequence[Mapping[str, Any]] = (),
        options: str | None = LETTERS,
        answer_from_response: bool = False,
    ) -> None:
        overrides = dict(overrides or {})
        names = [*names, *_written_fields(peeked)]
        self.system_prompt, self.options = system_prompt, options
        self.answer_from_response = answer_from_response
        for field_name, column in overrides.items():
            setting = f"data.columns.{field_name}={column}"
            if field_name not in ALIASES:
                raise ValueError(
                    f"{setting}: {field_name} is not a field of a problem{_nearest(field_name, ALIASES)}."
                )
            if column and column not in names:
                raise ValueError(f"{where} has no column {column} ({setting}){_nearest(column, names)}.")
        self._tried: dict[str, tuple[str, ...]] = {
            field_name: tuple(filter(None, [overrides[field_name]]))
            if field_name in overrides
            else tuple(alias for alias in aliases if alias in names)
            for field_name, aliases in ALIASES.items()
        }
        self._named = frozenset(overrides)
        self._families = self._find_families(names, overrides)
        if not self._tried["question"]:
            raise ValueError(
                f"{where} has no question column: looked for {' or '.join(ALIASES['question'])}, found "
                f"{listed(names)}. Name the column with data.columns.question=COLUMN."
            )

    @property
    def schema(self) -> dict[str, str | None]:
        """Each field and the first column that it is read from; None if there is none."""
        return {field_name: next(iter(self.columns_of(field_name)), None) for field_name in ALIASES}

    def columns_of(self, field_name: str) -> tuple[str, ...]:
        """All columns that a field is read from."""
        return self._tried[field_name] or tuple(self._families.get(field_name, {}).values())

    def is_named(self, field_name: str) -> bool:
        """Whether the user named the column of a field."""
        return field_name in self._named

    def read_from(self, field_name: str, column: str) -> None:
        """Make a column the first one from which a field is read."""
        others = tuple(name for name in self._tried[field_name] if name != column)
        self._tried[field_name] = (column, *others)

    @property
    def used(self) -> set[str]:
        """Columns that a field is read from."""
        media = {name for field_name in ("images", "videos") for name in self.columns_of(field_name)}
        families = {name for family in self._families.values() for name in family.values()}
        return media | families | {column for column in self.schema.values() if column is not None}

    def text_columns(self) -> list[str]:
        """Columns from which fields other than media are read; for a dotted one, also its holder."""
        kept = (
            column
            for field_name in ALIASES
            if field_name not in MEDIA
            for column in self.columns_of(field_name)
        )
        return list(dict.fromkeys(name for column in kept for name in (column, column.partition(".")[0])))

    def answer(self, row: Mapping[str, Any]) -> str | None:
        """The gold answer.

        Raises:
            RowProblem: it is empty, or not a single text.
        """
        value, choices = self._value(row, "answer"), None
        if self.columns_of("choices"):
            choices = self.choices(row)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, list | tuple) and choices is not None and _are_labels(value, choices):
            value = ", ".join(map(str, value))
        if isinstance(value, list | tuple | dict | bytes):
            raise RowProblem("answer", f"the answer is a {type(value).__name__}; one text was expected")
        if value is None:
            response = self.target_response(row) if self.answer_from_response else None
            return None if response is None else answer_in_response(response)
        answer = valid_text(_unwrapped(_as_text(value)).strip(), "the answer")
        if not answer:
            raise RowProblem(
                "answer", "the answer is empty; for a problem without an answer, leave the value out"
            )
        return answer if choices is None else choices.letter_of(answer)

    def choices(self, row: Mapping[str, Any]) -> Choices | None:
        """The options of a multiple-choice question, where they have columns of their own.

        Raises:
            RowProblem: an option is not a text.
        """
        family = self._families.get("choices")
        value: Any = [row.get(name) for name in family.values()] if family else self._value(row, "choices")
        choices = read_choices(value)
        for text in () if choices is None else choices.texts:
            valid_text(text, "an option")
        return choices

    def text(self, row: Mapping[str, Any], field_name: str) -> str | None:
        """A text field; a blank text counts as absent.

        Raises:
            RowProblem: it is not a text.
        """
        value = self._value(row, field_name)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        if isinstance(value, list | tuple | dict | bytes):
            raise RowProblem("malformed", f"{field_name} is a {type(value).__name__}; a text was expected")
        return valid_text(str(value), field_name) if value is not None and str(value).strip() else None

    def target_response(self, row: Mapping[str, Any]) -> str | None:
        """The response to learn from: a column of its own, or the assistant's last turn.

        Raises:
            RowProblem: it is not a text or a message.
        """
        value = parse_if_written(self._value(row, "target_response"))
        if isinstance(value, list | tuple | dict):
            chat = turns(value, "target_response")
            response = "".join(text_of(turn) for turn in chat if turn["role"] == "assistant")
            return response if response.strip() else None
        if value is not None:
            return self.text(row, "target_response")
        question = self._value(row, "question")
        chat = [] if question is None else as_turns(question, "the chat")
        if not chat or chat[-1]["role"] != "assistant":
            return None
        response = text_of(chat[-1])
        return response if response.strip() else None

    def id(self, row: Mapping[str, Any]) -> str | None:
        """The row's id."""
        value = self._value(row, "id")
        return None if value is None else shortened(_as_text(value), _LONGEST_ID)

    def read(self, row: Mapping[str, Any]) -> Fields:
        """Read all fields of a row.

        Raises:
            RowProblem: the row cannot become a problem.
        """
        if UNREADABLE in row:
            raise RowProblem("unreadable_row", str(row[UNREADABLE]))
        for column, value in row.items():
            for text in texts_in([column, value]):
                valid_text(text, f"the column {column}")
        choices = self.choices(row)
        chat = self._chat(row, choices)
        media = self.media(row, chat)
        messages, images, videos = place_media(chat, *media)
        _check_question(messages, images, videos)
        privileged = self._privileged(row, media, images, videos)
        teacher_prompt, privileged = read_teacher_prompt(
            self._value(row, "teacher_prompt"), self.system_prompt, media, (images, videos), privileged
        )
        return Fields(
            id=self.id(row),
            messages=messages,
            images=tuple(images),
            videos=tuple(videos),
            answer=self.answer(row),
            texts={kind: self.text(row, kind) for kind in HINTS},
            teacher_prompt=teacher_prompt,
            target_response=self.target_response(row),
            privileged=privileged,
            meta=self._meta(row, choices),
        )

    def media(self, row: Mapping[str, Any], chat: Sequence[Turn] = ()) -> tuple[RowMedia, RowMedia]:
        """The images and the videos that a row holds outside its chat."""
        media = []
        for field_name, kind in (("images", "image"), ("videos", "video")):
            family = self._families.get(field_name)
            if family is None:
                entries = _entries(self._value(row, field_name))
                if kind == "video":
                    entries = _videos(entries, count_placeholders(chat, kind))
                media.append(RowMedia(tuple(entries)))
            else:
                present = {n: row[name] for n, name in family.items() if not _is_nothing(row.get(name))}
                media.append(RowMedia(tuple(present.values()), tuple(map(int, present))))
        return media[0], media[1]

    def _find_families(self, names: Sequence[str], overrides: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Fields that are spread over several columns: image_1, image_2, ... and A, B, C, ..."""
        families: dict[str, dict[str, str]] = {}
        for name in names:
            match = _NUMBERED.fullmatch(name)
            if match is not None:
                field_name = "videos" if match[1].lower() == "video" else "images"
                families.setdefault(field_name, {})[match[2]] = name
        families["choices"] = {name: name for name in choice_columns(names)}
        return {
            field_name: dict(sorted(family.items(), key=lambda item: item[0].zfill(3)))
            for field_name, family in families.items()
            if family and not self._tried[field_name] and field_name not in overrides
        }

    def _value(self, row: Mapping[str, Any], field_name: str) -> Any:
        """The value of a field; None where the cell is empty (None, NaN)."""
        value = None
        for column in self._tried[field_name]:
            value = value_at(row, column)
            if not _is_nothing(value):
                return value
            if column.partition(".")[0] in row and field_name not in _NEXT_IF_EMPTY:
                break
        return None if _is_missing(value) else value

    def _chat(self, row: Mapping[str, Any], choices: Choices | None) -> list[Turn]:
        """The turns up to the student's answer, with options and system prompt added."""
        value = self._value(row, "question")
        chat = as_turns("" if value is None else value, "the question")
        if chat and chat[-1]["role"] == "assistant":
            chat = chat[:-1]
        if not chat or chat[-1]["role"] not in ("user", "tool"):
            last = f"ends with the role {chat[-1]['role']}" if chat else "has no turn"
            raise RowProblem("question", f"the chat {last}; the user's turn was expected before the answer")
        options = self._options(row, choices, chat)
        if options is not None:
            last_user = max((i for i, turn in enumerate(chat) if turn["role"] == "user"), default=None)
            if last_user is not None:
                chat[last_user] = with_text(chat[last_user], options)
        system = self.system_prompt
        if system is None and chat[0]["role"] != "system":
            system = self.text(row, "system")
        if system is not None:
            chat = [turn for turn in chat if turn["role"] != "system"]
            chat = [{"role": "system", "content": system}, *chat]
        return chat

    def _options(self, row: Mapping[str, Any], choices: Choices | None, chat: Sequence[Turn]) -> str | None:
        """The options as text to append to the question; None if they are not to be appended or the question
        has them."""
        if self.options is None:
            return None
        question = next((text_of(turn) for turn in reversed(chat) if turn["role"] == "user"), "")
        if choices is not None:
            return (
                None if states_options(question, choices.texts) else option_lines(choices.texts, self.options)
            )
        stated = stated_options(self._value(row, "choices"))
        return None if stated is None or stated in question else stated

    def _privileged(
        self, row: Mapping[str, Any], media: tuple[RowMedia, RowMedia], images: list[Any], videos: list[Any]
    ) -> PrivilegedMedia:
        """The media that only a teacher may see, and where to look.

        Raises:
            RowProblem: a column that the user named for regions or clips holds something else.
        """
        places = {
            "regions": lambda value: _in_order(boxes_by_image, value, media[0].entries, images),
            "clips": lambda value: _in_order(intervals_by_video, value, media[1].entries, videos),
        }
        read: dict[str, Any] = {}
        unread: list[tuple[str, str]] = []
        for place, read_place in places.items():
            value = self._value(row, place)
            try:
                read[place] = () if value is None else read_place(value)
            except RowProblem as problem:
                if self.is_named(place):
                    raise
                read[place] = ()
                unread.append((place, problem.reason))
        return PrivilegedMedia(
            images=tuple(_entries(self._value(row, "privileged_images"))),
            videos=tuple(_videos(_entries(self._value(row, "privileged_videos")), len(videos))),
            negative_images=tuple(_entries(self._value(row, "negative_images"))),
            boxes=read["regions"],
            clips=read["clips"],
            unread=tuple(unread),
        )

    def _meta(self, row: Mapping[str, Any], choices: Choices | None) -> dict[str, Any]:
        used = self.used - {column for place in PLACES for column in self.columns_of(place)}
        meta = {key: value for key, value in row.items() if key not in used}
        if choices is not None:
            return meta | {"choices": list(choices.texts)}
        stated = stated_options(self._value(row, "choices"))
        return meta if stated is None else meta | {"options": stated}  # `choices` holds a list


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value in a column; a dot leads into an object, which may be written as text."""
    if column in row:  # a column may itself have a dot in its name
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = parse_if_written(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_nothing(value: Any) -> bool:
    """Whether a value is empty: missing, a blank text, an empty list."""
    if _is_missing(value):
        return True
    return not value.strip() if isinstance(value, str) else isinstance(value, list | tuple) and not value


def _as_text(value: Any) -> str:
    """A value as text; a whole number that a table keeps as a float is a whole number again."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _written_fields(peeked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the fields inside columns that hold objects as text."""
    paths: dict[str, None] = {}
    for row in peeked:
        for name, value in row.items():
            if isinstance(value, str) and value.lstrip().startswith("{"):
                inside = parse_if_written(value)
                if isinstance(inside, Mapping):
                    paths.update({f"{name}.{key}": None for key in inside})
    return list(paths)


def _are_labels(answers: Sequence[Any], choices: Choices) -> bool:
    """Whether each of several gold answers is an option's letter, label or text."""
    return all(
        isinstance(answer, str) and (answer in choices.labels or answer in choices.texts)
        for answer in answers
    ) and bool(answers)


def _unwrapped(answer: str) -> str:
    """An answer without the `\\boxed{}` or `<answer>` around all of it; dollar signs may surround these."""
    inside = answer.strip().strip("$").strip()
    unwrapped = unwrap_gold(inside)
    return answer if unwrapped == inside else unwrapped


def _nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"; the nearest is {close[0]}"
    return f"; there are {listed(list(known))}"


def _entries(value: Any) -> list[Any]:
    """The media of a column that holds one or several."""
    value = parse_if_written(value)
    if _is_nothing(value):
        return []
    if isinstance(value, Mapping):
        lists = {key: column for key, column in value.items() if column is not None}
        # Older versions of `datasets` store a list of images as an object of lists.
        if (
            lists
            and set(lists) <= {"bytes", "path"}
            and all(isinstance(column, list) for column in lists.values())
        ):
            count = max(map(len, lists.values()))
            return [
                {key: column[i] for key, column in lists.items() if i < len(column)} for i in range(count)
            ]
    # Empty entries are kept: if the text has a placeholder for one, the row is bad.
    return list(value) if isinstance(value, list | tuple) else [value]


def _videos(entries: list[Any], placeholders: int) -> list[Any]:
    """Group entries into one video if they are its frames: images that do not have a placeholder each."""
    frames = bool(entries) and all(map(is_picture, entries))
    return [entries] if frames and not (placeholders == len(entries) > 1) else entries


def _in_order(
    read: Callable[[Any, int], list[list[_Read]]], value: Any, entries: Sequence[Any], placed: Sequence[Any]
) -> tuple[tuple[_Read, ...], ...]:
    """What a column has for each medium of a row, in the order in which the problem shows the media.

    Args:
        read: reads the column, given the number of media.
        value: what the column holds.
        entries: the media outside the chat, to which it refers; those in the chat if there are none.
        placed: the media in the problem's order.
    """
    by_medium = read(value, len(entries) or len(placed))
    if not any(by_medium):
        return ()
    if not entries:
        return tuple(map(tuple, by_medium))
    left = list(range(len(entries)))
    ordered = []
    for medium in placed:
        same = [number for number, entry in enumerate(entries) if entry is medium]
        number = next((number for number in same if number in left), next(iter(same), None))
        if number in left:
            left.remove(number)
        ordered.append(() if number is None else tuple(by_medium[number]))
    return tuple(ordered) if any(ordered) else ()


def _check_question(messages: Sequence[Message], images: Sequence[Any], videos: Sequence[Any]) -> None:
    for kind, media in (("image", images), ("video", videos)):
        placeholders = placeholders_in(messages, kind)
        if placeholders != len(media):
            raise RowProblem(
                "placeholders",
                f"the messages have {placeholders} {kind} placeholder(s), but the row has {len(media)} "
                f"{kind}(s)",
            )
    # A question without words may be written in its image.
    if not any(part["type"] != "text" or part["text"].strip() for part in messages[-1]["content"]):
        raise RowProblem("question", "the question is empty, and no image or video could hold it")
