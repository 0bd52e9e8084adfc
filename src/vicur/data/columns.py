"""From one row, in any of the usual conventions, to the fields of a problem.

Which column holds what is found by an alias table, or told by the setting `columns`. Media are
counted and put in order here, but neither opened nor decoded.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vicur.data.bad_rows import RowProblem
from vicur.data.media import FRAME_RATES, is_frame
from vicur.data.sample import Message
from vicur.rewards.answers import unwrap_gold

ALIASES: dict[str, tuple[str, ...]] = {
    "question": ("problem", "question", "prompt", "messages", "conversations"),
    "system": ("system", "system_prompt"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "answer": ("answer", "solution", "ground_truth", "reward_model.ground_truth"),
    "cue": ("cue", "visual_cue", "visual_cues", "privileged_context", "hint"),
    "rationale": ("rationale", "reasoning", "explanation"),
    "teacher_prompt": ("teacher_prompt",),
    "target_response": ("target_response", "completion", "response"),
    "choices": ("choices", "options"),
    "id": ("id", "qid", "uid", "extra_info.index"),
}
"""Our name for a field, and the columns it goes by; the first that is there is taken.

A dot leads into a column that holds an object. `question` may be a text or a whole chat.
"""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_PLACEHOLDER = re.compile(r"(<image>|<video>)")


@dataclass(frozen=True)
class Fields:
    """What a row says, before any medium is opened.

    Attributes:
        id: None where the row has none.
        messages: the chat up to where the student answers, media as placeholders.
        images, videos: as the row states them, in the order of their placeholders.
        answer: the gold answer, out of its `\\boxed{}` if it was wholly in one.
        cue, rationale, teacher_prompt: what only a teacher may see.
        target_response: a response to learn from.
        meta: the columns that are nothing of the above, and `choices`.
    """

    id: str | None
    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    answer: str | None = None
    cue: str | None = None
    rationale: str | None = None
    teacher_prompt: tuple[Message, ...] | None = None
    target_response: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Columns:
    """Which column holds which field of a table, and how a row is read by that.

    Args:
        names: the table's columns, fields inside them with a dot.
        chosen: our field to their column, before the alias table; "" for a field to be left out.
        system_prompt: put before every problem, in the place of a system message of the data.
        where: the table, for messages.

    Raises:
        ValueError: `chosen` has a field or a column that does not exist, or nothing holds a question.
    """

    def __init__(
        self,
        names: Sequence[str],
        chosen: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
        where: str = "The data",
    ) -> None:
        chosen = dict(chosen or {})
        self.system_prompt = system_prompt
        for ours, theirs in chosen.items():
            if ours not in ALIASES:
                raise ValueError(f"columns.{ours} is not a field of ours{_nearest(ours, ALIASES)}.")
            if theirs and theirs not in names:
                raise ValueError(f"{where} has no column {theirs} (columns.{ours}){_nearest(theirs, names)}.")
        self.schema: dict[str, str | None] = {
            ours: chosen[ours] or None
            if ours in chosen
            else next((alias for alias in aliases if alias in names), None)
            for ours, aliases in ALIASES.items()
        }
        """Our field, and the column that it is read from."""
        if self.schema["question"] is None:
            raise ValueError(
                f"{where} has no question column: looked for {' or '.join(ALIASES['question'])}, found "
                f"{', '.join(names) or 'none'}. Say which it is: columns.question=..."
            )
        self._used = {column for column in self.schema.values() if column is not None}

    def text_columns(self) -> list[str]:
        """Top-level columns that hold anything but media."""
        kept = (column for ours, column in self.schema.items() if ours not in ("images", "videos"))
        return list(dict.fromkeys(column.partition(".")[0] for column in kept if column is not None))

    def answer(self, row: Mapping[str, Any]) -> str | None:
        """The gold answer.

        Raises:
            RowProblem: it is empty, or nothing that can be taken for one text.
        """
        value = self._value(row, "answer")
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, list | tuple | dict):
            raise RowProblem("answer", f"the answer is a {type(value).__name__}; one text was expected")
        if value is None:
            return None
        answer = _unwrapped(str(value)).strip()
        if not answer:
            raise RowProblem("answer", "the answer is empty; a problem without one should have none at all")
        return answer

    def text(self, row: Mapping[str, Any], ours: str) -> str | None:
        """A text field; one that is blank counts as absent.

        Raises:
            RowProblem: it is not a text.
        """
        value = self._value(row, ours)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        if isinstance(value, list | tuple | dict | bytes):
            raise RowProblem("malformed", f"{ours} is a {type(value).__name__}; a text was expected")
        return str(value) if value is not None and str(value).strip() else None

    def target_response(self, row: Mapping[str, Any]) -> str | None:
        """The response to learn from: a column of its own, or the assistant's last turn.

        Raises:
            RowProblem: it is not a text or a message.
        """
        value = self._value(row, "target_response")
        if isinstance(value, list | tuple | dict):
            turns = _turns(value, "target_response")
            found = "".join(_text_of(turn) for turn in turns if turn["role"] == "assistant")
            return found if found.strip() else None
        if value is not None:
            return self.text(row, "target_response")
        asked = self._value(row, "question")
        if isinstance(asked, str):
            return None
        turns = _turns(asked, "the chat")
        if not turns or turns[-1]["role"] != "assistant":
            return None
        found = _text_of(turns[-1])
        return found if found.strip() else None

    def id(self, row: Mapping[str, Any]) -> str | None:
        """The row's id."""
        value = self._value(row, "id")
        return None if value is None else str(value)

    def read(self, row: Mapping[str, Any]) -> Fields:
        """Everything that a row says.

        Raises:
            RowProblem: what is wrong with it.
        """
        images = list(_entries(self._value(row, "images"), _is_one_image))
        videos = list(_entries(self._value(row, "videos"), _is_one_video))
        asked = self._chat(row)
        messages, images, videos = _place(asked, images, videos)
        _check_question(messages, images, videos)
        teacher_prompt = self._value(row, "teacher_prompt")
        return Fields(
            id=self.id(row),
            messages=messages,
            images=tuple(images),
            videos=tuple(videos),
            answer=self.answer(row),
            cue=self.text(row, "cue"),
            rationale=self.text(row, "rationale"),
            teacher_prompt=self._teacher_prompt(teacher_prompt, images, videos),
            target_response=self.target_response(row),
            meta=self._meta(row),
        )

    def _value(self, row: Mapping[str, Any], ours: str) -> Any:
        """The value of a field; what stands for nothing (None, NaN) is None."""
        column = self.schema[ours]
        if column is None:
            return None
        value: Any = row
        # A column may itself have a dot in its name.
        for key in [column] if column in row else column.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return None if isinstance(value, float) and math.isnan(value) else value

    def _chat(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The turns up to the student's answer, with the system prompt that applies."""
        value = self._value(row, "question")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowProblem("question", f"the question is {'missing' if value is None else 'empty'}")
        turns = _as_turns(value, "the question")
        if turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
        if not turns or turns[-1]["role"] not in ("user", "tool"):
            last = f"ends with the role {turns[-1]['role']}" if turns else "has no turn"
            raise RowProblem("question", f"the chat {last}; the user's turn was expected before the answer")
        system = self.system_prompt
        if system is None and turns[0]["role"] != "system":
            system = self.text(row, "system")
        if system is not None:
            turns = [turn for turn in turns if turn["role"] != "system"]
            turns = [{"role": "system", "content": system}, *turns]
        return turns

    def _teacher_prompt(self, value: Any, images: list[Any], videos: list[Any]) -> tuple[Message, ...] | None:
        """A complete prompt for the teacher, which sees the student's media.

        Its own system message is kept; without one it gets ours.

        Raises:
            RowProblem: it asks nothing, or does not show every medium once.
        """
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        turns = _as_turns(value, "teacher_prompt")
        if not any(turn["role"] == "user" for turn in turns):
            raise RowProblem("malformed", "teacher_prompt has no message of the user")
        if self.system_prompt is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        turns = [{"role": turn["role"], "content": _parts(turn["content"])} for turn in turns]
        shown = {"image": images, "video": videos}
        for kind, media in shown.items():
            parts = [part for turn in turns for part in turn["content"] if part["type"] == kind]
            own = [part.pop("entry") for part in parts if part.get("entry") is not None]
            if own and own != media:
                raise RowProblem(
                    "malformed", f"teacher_prompt has {kind}s of its own; a teacher sees the student's"
                )
        messages, _, _ = _place(turns, images, videos)
        for kind, media in shown.items():
            asked = sum(part["type"] == kind for message in messages for part in message["content"])
            if asked != len(media):
                raise RowProblem(
                    "placeholders",
                    f"teacher_prompt has {asked} <{kind}> placeholder(s) for {len(media)} {kind}(s)",
                )
        return messages

    def _meta(self, row: Mapping[str, Any]) -> dict[str, Any]:
        meta = {key: value for key, value in row.items() if key not in self._used}
        stated = self._value(row, "choices")
        choices = _choices(stated)
        if choices is not None:
            return meta | {"choices": choices}
        return meta if stated is None else meta | {str(self.schema["choices"]): stated}


def _unwrapped(answer: str) -> str:
    """Out of its `\\boxed{}` or `<answer>`, if it is wholly in one, perhaps between dollar signs."""
    inside = answer.strip().strip("$").strip()
    unwrapped = unwrap_gold(inside)
    return answer if unwrapped == inside else unwrapped


def _nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"; the nearest is {close[0]}"
    return f"; there are {', '.join(known)}"


def _entries(value: Any, is_one: Any) -> list[Any]:
    """The media of a column that holds one or several."""
    if value is None:
        return []
    if is_one(value):
        return [value]
    # An empty entry stays: its placeholder may be there, and then it is the row's fault.
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_one_image(value: Any) -> bool:
    return not isinstance(value, list | tuple)


def _is_one_video(value: Any) -> bool:
    """A file, or a list of images: the frames of one video."""
    return not isinstance(value, list | tuple) or (bool(value) and all(map(is_frame, value)))


def _as_turns(value: Any, what: str) -> list[dict[str, Any]]:
    """A text as the user's only turn, or a chat."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else _turns(value, what)


def _turns(value: Any, what: str) -> list[dict[str, Any]]:
    """A chat as a list of {"role", "content"}, from the keys and roles of any convention.

    Raises:
        RowProblem: it is no list of messages, or a role is unknown.
    """
    problem = f"{what} must be a text, or a list of messages with role and content"
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        if lists and len(lists) == len(value):  # an Arrow struct of lists, as older data sets have
            if len({len(inner) for inner in lists}) > 1:
                raise RowProblem("malformed", f"{problem}, not lists of different lengths")
            value = [dict(zip(value, items, strict=True)) for items in zip(*lists, strict=True)]
        else:
            value = [value]
    if not isinstance(value, list | tuple):
        raise RowProblem("malformed", f"{problem}, not a {type(value).__name__}")
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise RowProblem("malformed", f"{problem}, not of {type(turn).__name__}s")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str | list | tuple):
            raise RowProblem("malformed", f"{problem}; one has {', '.join(map(str, turn)) or 'nothing'}")
        if role.lower() not in _ROLES:
            raise RowProblem("malformed", f"{what} has the role {role!r}; known are {', '.join(_ROLES)}")
        turns.append({"role": _ROLES[role.lower()], "content": content})
    return turns


def _parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a message: text, and media with the entry they carry, if they do."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise RowProblem("malformed", f"a message has a part that is a {type(part).__name__}")
        kind = str(part.get("type", "text")).removesuffix("_url")
        if kind in ("text", "input_text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind in ("image", "video"):
            parts.append({"type": kind, "entry": part.get("entry") or _carried(part, kind)})
        else:
            raise RowProblem(
                "malformed",
                f"a message has a part of type {part.get('type')!r} with {', '.join(map(str, part))}; text, "
                "image and video are known",
            )
    return parts


def _carried(part: Mapping[str, Any], kind: str) -> Any:
    """The medium inside a part; None if the part is a bare placeholder."""
    keys = (kind, f"{kind}_url", "path", "url", "bytes")
    entry = next((part[key] for key in keys if part.get(key) is not None), None)
    if isinstance(entry, dict) and set(entry) == {"url"}:
        return entry["url"]
    rates = {key: part[key] for key in FRAME_RATES if part.get(key) is not None}
    if kind == "video" and entry is not None and rates:
        return {"video": entry, **rates}
    return entry


def _text_of(turn: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "") for part in _parts(turn["content"]))


def _place(
    turns: Sequence[Mapping[str, Any]], images: list[Any], videos: list[Any]
) -> tuple[tuple[Message, ...], list[Any], list[Any]]:
    """Messages with a placeholder for every medium, and the media in that order.

    `<image>` and `<video>` in texts are placeholders, unless the chat has parts of these types. Media
    of a kind without any placeholder go first in the user's first message. A part that carries its
    own medium does not take one of the row's column.
    """
    chat = [(turn["role"], _parts(turn["content"])) for turn in turns]
    if all(part["type"] == "text" for _, parts in chat for part in parts):
        chat = [(role, [piece for part in parts for piece in _split(part["text"])]) for role, parts in chat]
    given: dict[str, list[Any]] = {"image": images, "video": videos}
    present = {part["type"] for _, parts in chat for part in parts}
    first = next((parts for role, parts in chat if role == "user"), None)
    if first is None:
        raise RowProblem("question", "the chat has no message of the user")
    front = [{"type": kind} for kind, entries in given.items() if kind not in present for _ in entries]
    first[:0] = front
    messages: list[Message] = []
    found: dict[str, list[Any]] = {"image": [], "video": []}
    left = {kind: list(entries) for kind, entries in given.items()}
    for role, parts in chat:
        content = []
        for part in parts:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
                continue
            kind, entry = part["type"], part.get("entry")
            if entry is None:
                entry = left[kind].pop(0) if left[kind] else None
            if entry is not None:
                found[kind].append(entry)
            content.append({"type": kind})
        messages.append({"role": role, "content": content})
    # What is left over has no placeholder; the caller sees that by the count.
    return tuple(messages), found["image"] + left["image"], found["video"] + left["video"]


def _split(text: str) -> list[dict[str, Any]]:
    """Text with placeholders in it, as parts."""
    return [
        {"type": piece[1:-1]} if piece in ("<image>", "<video>") else {"type": "text", "text": piece}
        for piece in _PLACEHOLDER.split(text)
        if piece
    ]


def _check_question(messages: Sequence[Message], images: Sequence[Any], videos: Sequence[Any]) -> None:
    for kind, media in (("image", images), ("video", videos)):
        asked = sum(part["type"] == kind for message in messages for part in message["content"])
        if asked != len(media):
            raise RowProblem(
                "placeholders",
                f"the messages have {asked} {kind} placeholder(s), but the row has {len(media)} {kind}(s)",
            )
    if not any(part.get("text", "").strip() for part in messages[-1]["content"]):
        raise RowProblem("question", "the question has no text")


def _choices(value: Any) -> list[str] | None:
    """The choices of a question as a list of texts; None if they are not stated as one."""
    if isinstance(value, str):
        value = _parse_list(value)
    if isinstance(value, dict):
        value = [item for item in value.values() if item is not None]
    return [str(item) for item in value] if isinstance(value, list | tuple) and value else None


def _parse_list(text: str) -> Any:
    """A list written as text, in JSON or as Python prints it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None
