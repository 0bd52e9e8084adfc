"""A ready-made prompt for the teacher, with the student's media, the privileged ones, or both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vicur.bad_rows import RowProblem
from vicur.data.chat import RowMedia, Turn, as_turns, is_numbered, parts, place_media
from vicur.data.privileged import PrivilegedMedia
from vicur.data.sample import Message, placeholders_in

CROP = "<crop>"
"""Placeholder of an image for the teacher; `<image>` is one of the problem's (V-Zero, arXiv 2606.25319)."""
_PLACEHOLDERS = re.compile(f"({CROP}|<image>)")


def read_teacher_prompt(
    value: Any,
    system_prompt: str | None,
    media: tuple[RowMedia, RowMedia],
    placed: tuple[list[Any], list[Any]],
    privileged: PrivilegedMedia,
) -> tuple[tuple[Message, ...] | None, PrivilegedMedia]:
    """The messages of a teacher prompt, and the privileged media as the prompt has them.

    The prompt keeps its own system message; otherwise it gets the configured system prompt.

    Args:
        value: what the column holds.
        system_prompt: the configured system prompt.
        media: images and videos that the row holds outside its chat.
        placed: images and videos in the order in which the question shows them.
        privileged: what the row holds for the teacher alone.

    Returns:
        the messages, None if there are none; and the privileged media, with the places of their images in the
        prompt. If the prompt holds images that are not the student's, the privileged images are those.

    Raises:
        RowProblem: it has no user message, or its placeholders fit neither the student's media, each once in
            the student's order, nor the privileged ones, nor both.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, privileged
    chat = as_turns(value, "teacher_prompt")
    if not any(turn["role"] == "user" for turn in chat):
        raise RowProblem("malformed", "teacher_prompt has no user message")
    if _has_crops(chat):
        messages, privileged = _with_both(chat, *placed, privileged)
        return _with_system(messages, system_prompt), privileged
    if system_prompt is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": system_prompt}, *chat]
    try:
        messages, inside = _with_students(chat, media, *placed, privileged)
    except RowProblem:
        beside = _with_privileged(chat, privileged.images, placed[1]) if privileged.images else None
        if beside is None:
            raise
        return beside, privileged
    crops = (True,) * len(inside)
    return messages, replace(privileged, images=inside, prompt_crops=crops) if inside else privileged


def _with_students(
    chat: list[Turn],
    media: tuple[RowMedia, RowMedia],
    images: list[Any],
    videos: list[Any],
    privileged: PrivilegedMedia,
) -> tuple[tuple[Message, ...], tuple[Any, ...]]:
    """A prompt with placeholders for the student's media, and those images inside it that are others.

    Raises:
        RowProblem: it has placeholders for others, or in another order.
    """
    if not is_numbered(chat):
        media = RowMedia(tuple(images)), RowMedia(tuple(videos))
    messages, placed_images, placed_videos = place_media(chat, *media)
    _check_same("video", messages, videos, placed_videos)
    inside = placed_images[: placeholders_in(messages, "image")]
    if _has_own_images(chat) and inside != images and not privileged.images:
        return messages, tuple(inside)
    _check_same("image", messages, images, placed_images)
    return messages, ()


def _with_privileged(
    chat: list[Turn], images: tuple[Any, ...], videos: list[Any]
) -> tuple[Message, ...] | None:
    """A prompt with placeholders for the privileged images; None if it has others."""
    try:
        messages, placed, _ = place_media(chat, RowMedia(images), RowMedia(tuple(videos)))
    except RowProblem:
        return None
    fits = placeholders_in(messages, "image") == len(images) and placed == list(images)
    return messages if fits and placeholders_in(messages, "video") == len(videos) else None


def _with_both(
    chat: list[Turn], images: list[Any], videos: list[Any], privileged: PrivilegedMedia
) -> tuple[tuple[Message, ...], PrivilegedMedia]:
    """A prompt with `<crop>` for each privileged image, and with `<image>` for each of the student's or none.

    Raises:
        RowProblem: the placeholders are others.
    """
    if is_numbered(chat):
        raise RowProblem("placeholders", f"teacher_prompt has {CROP} beside placeholders with a number")
    typed = any(part["type"] != "text" for turn in chat for part in parts(turn["content"]))
    crops = [mark == CROP for turn in chat for mark in _marks(turn, typed)]
    expected = len(privileged.images)
    if sum(crops) != expected:
        raise RowProblem(
            "placeholders",
            f"teacher_prompt has {sum(crops)} {CROP} placeholder(s) for {expected} image(s) for the teacher",
        )
    if not all(crops) and len(crops) - expected != len(images):
        raise RowProblem(
            "placeholders",
            f"teacher_prompt has {len(crops) - expected} <image> placeholder(s) for {len(images)} image(s)",
        )
    of_teacher, of_student = iter(privileged.images), iter(images)
    both = [next(of_teacher) if crop else next(of_student) for crop in crops]
    as_images = [{"role": turn["role"], "content": _with_images(turn, typed, images)} for turn in chat]
    messages, placed, placed_videos = place_media(as_images, RowMedia(tuple(both)), RowMedia(tuple(videos)))
    _check_same("image", messages, both, placed)
    _check_same("video", messages, videos, placed_videos)
    return messages, replace(privileged, prompt_crops=tuple(crops))


def _with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """The messages with the configured system prompt, if they have none of their own."""
    if system_prompt is None or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *messages)


def _marks(turn: Turn, typed: bool) -> Iterator[str]:
    """The placeholders of images in a turn, `CROP` or "<image>", in order.

    Args:
        turn: role and content.
        typed: whether the chat has parts for its media, so that "<image>" in a text is only text.
    """
    for part in parts(turn["content"]):
        if part["type"] == "image":
            yield "<image>"
        elif part["type"] == "text":
            yield from (CROP,) * part["text"].count(CROP) if typed else _PLACEHOLDERS.findall(part["text"])


def _with_images(turn: Turn, typed: bool, images: list[Any]) -> list[dict[str, Any]]:
    """The content of a turn with placeholders of images for `<crop>`, and for parts that hold an image of the
    student.

    Raises:
        RowProblem: a part holds another image.
    """
    content: list[dict[str, Any]] = []
    for part in parts(turn["content"]):
        if part["type"] == "image":
            if part["entry"] is not None and part["entry"] not in images:
                raise RowProblem("placeholders", f"teacher_prompt has {CROP} beside an image of its own")
            content.append({"type": "image"})
        elif part["type"] != "text":
            content.append(part)
        elif not typed:
            content.append({"type": "text", "text": part["text"].replace(CROP, "<image>")})
        else:
            for number, text in enumerate(part["text"].split(CROP)):
                content += [{"type": "image"}] if number else []
                content += [{"type": "text", "text": text}] if text else []
    return content


def _has_crops(chat: Sequence[Turn]) -> bool:
    """Whether a chat has `<crop>` as a placeholder, not as a tag that is closed."""
    texts = [part["text"] for turn in chat for part in parts(turn["content"]) if part["type"] == "text"]
    return any(CROP in text for text in texts) and not any("</crop>" in text for text in texts)


def _check_same(kind: str, messages: Sequence[Message], expected: list[Any], placed: list[Any]) -> None:
    """Check that a prompt shows the expected media of a kind, each once and in the same order."""
    count = placeholders_in(messages, kind)
    if count != len(expected):
        raise RowProblem(
            "placeholders",
            f"teacher_prompt has {count} <{kind}> placeholder(s) for {len(expected)} {kind}(s)",
        )
    if placed[:count] != expected:
        raise RowProblem(
            "placeholders", f"teacher_prompt shows the {kind}s in a different order from the question"
        )


def _has_own_images(chat: Sequence[Turn]) -> bool:
    """Whether a part of a chat holds its own image."""
    image_parts = (part for turn in chat for part in parts(turn["content"]) if part["type"] == "image")
    return any(part.get("entry") is not None for part in image_parts)
