"""Reads chats in any of the usual conventions for keys, roles and placeholders.

A turn is {"role", "content"}; its content is a text or a list of parts. Media are counted and ordered here,
but neither opened nor decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicur.bad_rows import RowProblem
from vicur.data.sample import Message
from vicur.data.written import parse_written
from vicur.media.videos import VIDEO_SETTINGS

Turn = dict[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "observation": "tool",
}
_PLACEHOLDER = re.compile(r"(<(?:image|video)(?:[ _-]?\d{1,4})?>)")
_NUMBERED = re.compile(r"<(image|video)[ _-]?(\d{1,4})?>")
_IMAGE_SETTINGS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


@dataclass(frozen=True)
class RowMedia:
    """The images or the videos that a row holds outside its chat.

    Attributes:
        entries: the media in order.
        numbers: the number of each medium, as in `<image 2>`; None for a list, which is numbered from 1 (from
            0 if the text has an `<image 0>`). Media with numbers that no text mentions are not shown.
    """

    entries: tuple[Any, ...] = ()
    numbers: tuple[int, ...] | None = None

    def numbered(self, mentioned: set[int]) -> dict[int, Any]:
        """The entries by their numbers."""
        numbers = self.numbers
        if numbers is None:
            first = 0 if 0 in mentioned else 1
            numbers = tuple(range(first, first + len(self.entries)))
        return dict(zip(numbers, self.entries, strict=True))


def as_turns(value: Any, what: str) -> list[Turn]:
    """The turns of a chat, which may be written as JSON; any other text becomes the user's only turn.

    Args:
        value: the text or the chat.
        what: name of the value, for messages.

    Raises:
        RowProblem: the value is neither.
    """
    if isinstance(value, str):
        chat = _written_chat(value)
        return [{"role": "user", "content": valid_text(value, what)}] if chat is None else turns(chat, what)
    return turns(value, what)


def _written_chat(text: str) -> Any:
    """The chat that a text encodes; None for an ordinary text."""
    parsed = parse_written(text)
    messages = parsed if isinstance(parsed, list | tuple) else [parsed]
    is_chat = messages and all(
        isinstance(message, dict) and ("role" in message or "from" in message) for message in messages
    )
    return parsed if is_chat else None


def turns(value: Any, what: str) -> list[Turn]:
    """A chat as a list of {"role", "content"}.

    Tool calls are appended to a turn's text, as Qwen's chat templates write them.

    Raises:
        RowProblem: the value is not a list of messages, or a role is unknown.
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
    return [_turn(turn, what, problem) for turn in value]


def _turn(turn: Any, what: str, problem: str) -> Turn:
    if not isinstance(turn, dict):
        raise RowProblem("malformed", f"{problem}, not of {type(turn).__name__}s")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls")
    if content is None and calls:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str | list | tuple):
        raise RowProblem("malformed", f"{problem}; one message has {', '.join(map(str, turn)) or 'nothing'}")
    if role.lower() not in _ROLES:
        raise RowProblem("malformed", f"{what} has the role {role!r}; known roles are {', '.join(_ROLES)}")
    if calls:
        parts_before = parts(content)
        called = ("\n" if any(part.get("text") for part in parts_before) else "") + _calls(calls)
        content = [*parts_before, {"type": "text", "text": called}]
    return {"role": _ROLES[role.lower()], "content": content}


def _calls(calls: Any) -> str:
    """Tool calls as text."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, dict) for call in calls):
        raise RowProblem("malformed", "tool_calls must be a list of objects")
    written = []
    for call in calls:
        function = call.get("function") or call
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps(
                arguments if arguments is not None else {}, ensure_ascii=False, default=str
            )
        name = json.dumps(str(function.get("name")), ensure_ascii=False)
        written.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(written)


def parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a message: texts, and media with the entry that the part holds, if any.

    Raises:
        RowProblem: a part is neither.
    """
    if isinstance(content, str):
        written = parse_written(content) if content.lstrip().startswith(("[{", "[\n")) else None
        if not isinstance(written, list) or not all(isinstance(p, dict) and "type" in p for p in written):
            return [{"type": "text", "text": valid_text(content, "a message")}]
        content = written
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": valid_text(part, "a message")}
    if not isinstance(part, dict):
        raise RowProblem("malformed", f"a message has a part that is a {type(part).__name__}")
    kind = str(part.get("type", "text")).removeprefix("input_").removesuffix("_url")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": valid_text(part["text"], "a message")}
    if kind in ("image", "video"):
        return {"type": kind, "entry": part.get("entry") or _medium_in(part, kind)}
    raise RowProblem(
        "malformed",
        f"a message has a part of type {part.get('type')!r} with {', '.join(map(str, part))}; text, image "
        "and video are supported",
    )


def _medium_in(part: Mapping[str, Any], kind: str) -> Any:
    """The medium inside a part with its settings; None if the part is a bare placeholder."""
    keys = (kind, f"{kind}_url", "path", "url", "bytes")
    entry = next((part[key] for key in keys if part.get(key) is not None), None)
    if isinstance(entry, dict) and set(entry) <= {"url", "detail"}:
        entry = entry.get("url")
    known = VIDEO_SETTINGS if kind == "video" else _IMAGE_SETTINGS
    settings = {key: part[key] for key in known if part.get(key) is not None}
    return entry if entry is None or not settings else {kind: entry, **settings}


def text_of(turn: Mapping[str, Any]) -> str:
    """The text of a turn."""
    return "".join(part.get("text", "") for part in parts(turn["content"]))


def with_text(turn: Turn, text: str) -> Turn:
    """A turn with a text appended on a new line."""
    content = turn["content"]
    appended = f"\n{text}" if text_of(turn).strip() else text
    if isinstance(content, str) and parts(content)[0].get("text") == content:
        return {**turn, "content": content + appended}
    return {**turn, "content": [*parts(content), {"type": "text", "text": appended}]}


def valid_text(text: str, what: str) -> str:
    """Return a text unchanged after checking that it is valid Unicode.

    Raises:
        RowProblem: it has half of a surrogate pair, which no tokenizer accepts. Bytes of a file that are not
            UTF-8 were read as such halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = text[error.start]
        cause = "a byte that is not UTF-8" if "\udc80" <= broken <= "\udcff" else "half of a surrogate pair"
        raise RowProblem("malformed", f"{what} has {cause}, {broken!r}") from error
    return text


def place_media(
    chat: Sequence[Turn], images: RowMedia, videos: RowMedia
) -> tuple[tuple[Message, ...], list[Any], list[Any]]:
    """Messages with a placeholder for every medium, and the media in that order.

    `<image>`, `<image 1>` and the like in texts are placeholders, unless the chat has image or video parts.
    If a kind of medium has no placeholder at all, its media go at the start of the user's first message. A
    part that holds its own medium takes none of the row's. Media without a placeholder come last.

    Raises:
        RowProblem: a placeholder's number matches no medium, or only some placeholders have a number.
    """
    split = [(turn["role"], parts(turn["content"])) for turn in chat]
    if all(part["type"] == "text" for _, pieces in split for part in pieces):
        split = [
            (role, [piece for part in pieces for piece in _split(part["text"])]) for role, pieces in split
        ]
    first = next((pieces for role, pieces in split if role == "user"), None)
    if first is None:
        raise RowProblem("question", "the chat has no user message")
    media = {"image": images, "video": videos}
    present = {part["type"] for _, pieces in split for part in pieces}
    first[:0] = [
        {"type": kind} for kind, row_media in media.items() if kind not in present for _ in row_media.entries
    ]
    left = {kind: list(row_media.entries) for kind, row_media in media.items()}
    for kind, row_media in media.items():
        if _fill_numbered(
            kind, [part for _, parts_ in split for part in parts_ if part["type"] == kind], row_media
        ):
            left[kind] = []
    messages: list[Message] = []
    placed: dict[str, list[Any]] = {"image": [], "video": []}
    for role, pieces in split:
        content = []
        for part in pieces:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
                continue
            kind, entry = part["type"], part.get("entry")
            if entry is None:
                entry = left[kind].pop(0) if left[kind] else None
            if entry is not None:
                placed[kind].append(entry)
            content.append({"type": kind})
        messages.append({"role": role, "content": content})
    return tuple(messages), placed["image"] + left["image"], placed["video"] + left["video"]


def _fill_numbered(kind: str, placeholders: Sequence[dict[str, Any]], row_media: RowMedia) -> bool:
    """Give numbered placeholders their media, and return whether there are numbered placeholders.

    Raises:
        RowProblem: a number matches no medium, a medium of a list is never mentioned, or only some
            placeholders have a number.
    """
    mentioned = {part["number"] for part in placeholders if part.get("number") is not None}
    if not mentioned:
        return False
    if any(part.get("number") is None for part in placeholders):
        raise RowProblem("placeholders", f"some {kind} placeholders have a number and some have none")
    numbered = row_media.numbered(mentioned)
    for part in placeholders:
        if part["number"] not in numbered:
            raise RowProblem(
                "placeholders",
                f"the messages have <{kind} {part['number']}>, but the row has {len(numbered)} {kind}(s)",
            )
        part["entry"] = numbered[part["number"]]
    unmentioned = sorted(set(numbered) - mentioned)
    if unmentioned and row_media.numbers is None:
        raise RowProblem(
            "placeholders",
            f"no placeholder names {kind} {unmentioned[0]} of the row's {len(numbered)} {kind}(s)",
        )
    return True


def is_numbered(chat: Sequence[Turn]) -> bool:
    """Whether a text of the chat has a placeholder with a number."""
    return any(
        match[2] is not None
        for turn in chat
        for part in parts(turn["content"])
        for match in _NUMBERED.finditer(part.get("text", ""))
    )


def count_placeholders(chat: Sequence[Turn], kind: str) -> int:
    """Number of placeholders of a kind of medium in a chat."""
    pieces = [part for turn in chat for part in parts(turn["content"])]
    if any(part["type"] != "text" for part in pieces):
        return sum(part["type"] == kind for part in pieces)
    return sum(match[1] == kind for part in pieces for match in _NUMBERED.finditer(part["text"]))


def _split(text: str) -> list[dict[str, Any]]:
    """Split a text at its placeholders into parts."""
    pieces: list[dict[str, Any]] = []
    for piece in _PLACEHOLDER.split(text):
        placeholder = _NUMBERED.fullmatch(piece)
        if placeholder is not None:
            number = None if placeholder[2] is None else int(placeholder[2])
            pieces.append({"type": placeholder[1], "number": number})
        elif piece:
            pieces.append({"type": "text", "text": piece})
    return pieces
