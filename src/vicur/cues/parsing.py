"""Extracts the cue from a model's reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vicur.endpoints.request import Reply
from vicur.rewards.thinking import without_thoughts

_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_SENTENCES = re.compile(r".*[.!?](?=[\"')\]]*(?:\s|\Z))", re.DOTALL)
MOST_WORDS_BEFORE = 12
"""Maximum number of words before the JSON object of a truncated reply; after more, it may be a draft."""
_MOST_STARTS = 40
"""Maximum number of braces tried as the start of an object, in case a reply is nothing but braces."""


THINKING_OFF = (
    "switch thinking off, for vLLM and SGLang with "
    "--endpoint.extra_body '{chat_template_kwargs: {enable_thinking: false}}'"
)


class Unusable(ValueError):
    """A reply without a cue in it.

    Args:
        reason: what is wrong with it, as a clause.
        again: whether another reply to the same request may contain a cue.
    """

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def cue_of(reply: Reply, field: str = "cue") -> str:
    """The cue of a reply, as `parse_reply` finds it.

    Raises:
        Unusable: there is no cue in it.
    """
    if not reply.text.strip() and reply.thoughts:
        ended = (
            "max_tokens ended it before the reply began. Raise --asking.max_tokens, or "
            if reply.cut_off
            else "the reply itself is empty. Start the server without its reasoning parser, or "
        )
        raise Unusable(
            f"the model's output is in the reasoning field of the message, and {ended}{THINKING_OFF}",
            again=False,
        )
    return parse_reply(reply.text, field, cut_off=reply.cut_off)


def parse_reply(text: str, field: str = "cue", *, cut_off: bool = False) -> str:
    """The cue of a reply: a JSON object, alone or inside other text or a code fence, or plain text.

    If a reply was cut off or its JSON is incomplete, its complete sentences are kept. Text before the last
    closing tag of a thought is ignored, because it often contains drafts of the cue.

    Args:
        text: the reply.
        field: the key of the object.
        cut_off: whether the reply reached its token limit.

    Raises:
        Unusable: there is no cue in it.
    """
    text = text.strip()
    if _as_json(text) is None:  # tags inside a complete object are part of the cue
        text, thinking = without_thoughts(text)
        text = text.strip()
        if thinking:
            raise Unusable(
                "max_tokens ended the reply while the model was still thinking. Raise --asking.max_tokens, "
                f"or {THINKING_OFF}",
                again=False,
            )
    if not text:
        raise Unusable("the reply is empty")
    fences = [match.strip() for match in _FENCE.findall(text)]
    for candidate in (text, *fences):
        value = _as_json(candidate)
        if value is not None:
            return _of_value(value, field)
    for start, value in json_objects(text):
        if _named(value, field) is not None:
            if cut_off and len(text[:start].split()) > MOST_WORDS_BEFORE:
                raise Unusable(
                    "max_tokens ended the reply after many words around a draft; the model seems to think "
                    f"aloud. Raise --asking.max_tokens, or {THINKING_OFF}",
                    again=False,
                )
            return _of_value(value, field)
    partial = _partial_value(text, field)
    if partial is not None:
        words, closed = partial
        return _clean(words) if closed else _whole_sentences(words)
    if text.startswith("{") or (fences and fences[0].startswith("{")):
        raise Unusable(f'the reply is broken JSON without "{field}"')
    plain = _plain(fences[0] if len(fences) == 1 and text.startswith("```") else text, field)
    return _whole_sentences(plain) if cut_off else _clean(plain)


def _as_json(text: str) -> Any:
    """The value of a text that is JSON as a whole and not just a number or a word; None if it is not."""
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text, strict=False)  # line breaks inside strings are accepted
    except (ValueError, RecursionError):
        return None


def json_objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects inside a text, each with its position."""
    decoder = json.JSONDecoder(strict=False)
    for start in [match.start() for match in re.finditer(r"\{", text)][:_MOST_STARTS]:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield start, value


def _named(value: dict[str, Any], field: str) -> Any:
    """The value under a key of an object, regardless of case, spaces and a `visual_` prefix."""
    for key, inner in value.items():
        name = key.strip().lower().replace(" ", "_").replace("-", "_")
        if name in (field, f"visual_{field}") and inner is not None:
            return inner
    return None


def _of_value(value: Any, field: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        named_value = _named(value, field)
        if named_value is None:
            keys = ", ".join(map(str, value)) or "nothing"
            raise Unusable(f'the reply is a JSON object without "{field}"; it has {keys[:80]}')
        value = named_value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise Unusable(f'"{field}" of the reply is a {type(value).__name__}; a string was expected')
    return _clean(value)


def _partial_value(text: str, field: str) -> tuple[str, bool] | None:
    """The value under the key in an incomplete or invalid JSON object, and whether the value is
    complete."""
    key = rf"[\"'](?:visual_)?{re.escape(field)}[\"']"
    match = re.search(rf'{key}\s*:\s*"((?:[^"\\]|\\.)*)("?)', text, re.IGNORECASE | re.DOTALL)
    if match is None:
        return None
    try:
        words = str(json.loads(f'"{match[1]}"', strict=False))
    except ValueError:  # an escape that is not valid in JSON, e.g. of LaTeX
        words = match[1]
    return words, bool(match[2])


def _plain(text: str, field: str) -> str:
    """Strip a leading label and surrounding quotes."""
    text = re.sub(rf"^\W*(?:visual )?{re.escape(field)}\W*?:\W*", "", text, flags=re.IGNORECASE).strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return text


def _whole_sentences(text: str) -> str:
    match = _SENTENCES.match(text)
    if match is None:
        raise Unusable("the reply was cut off before the end of its first sentence; raise max_tokens")
    return _clean(match[0])


def _clean(text: str) -> str:
    """Remove characters that no file can hold: halves of surrogate pairs, and control characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = "".join(c for c in text if c in "\n\t" or (c >= " " and c != "\x7f")).strip()
    if not text:
        raise Unusable("the reply has an empty text")
    return text
