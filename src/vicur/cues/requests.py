"""Builds the request for a problem's cue, and the key that its reply is stored under."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from vicur.cues.prompts import QUESTION, CuePrompt
from vicur.data.sample import Message, Sample
from vicur.data.views import Shown
from vicur.endpoints.request import ChatRequest, ImageFormat
from vicur.media.pixels import bounded_size, within
from vicur.settings.section import Count, NonNegative, Seed, TokenCount, section

PIXELS_PER_TOKEN = 28 * 28
"""Pixels per image token in estimates: Qwen's models have one token per 28 x 28 or 32 x 32 pixels, others
fewer."""
CHARACTERS_PER_TOKEN = 3
"""Characters per text token in estimates: four in English; numbers and formulas have fewer."""


class MissingAnswer(ValueError):
    """The gold answer is to be sent, but the problem has none."""


@section
class Asking:
    """Settings of a request that influence the reply."""

    temperature: NonNegative | None = 0.7
    """Sampling temperature; null to send none, for models that reject the parameter."""
    max_tokens: TokenCount = 400
    """Maximum length of a reply in tokens, thinking included. If a reply is cut off, its complete sentences
    are kept."""
    seed: Seed = 0
    """Sampling seed. With several cues per problem, each gets its own seed, derived from this one."""
    max_image_pixels: Count | None = 2_000_000
    """Maximum number of pixels of an image or frame; larger ones are scaled down before they are sent. null
    for no limit."""
    image_format: ImageFormat = "png"
    """Format in which images are sent: PNG preserves thin lines and small print, JPEG makes photographs
    smaller."""
    max_video_frames: Count = 16
    """Maximum number of frames sent per video, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class CueRequest(ChatRequest):
    """One request for a cue.

    Attributes:
        index: index of the problem in its source.
        sample_id: id of the problem.
        number: number of the cue among those of its problem, from 0.
        field: key of the JSON object that is requested as reply.
    """

    index: int
    sample_id: str
    number: int
    field: str

    def again(self, attempt: int) -> CueRequest:
        """The same request with another seed, because the same seed could give the same unusable reply."""
        return replace(self, seed=(self.seed + 7919 * attempt) % 2**63)


def requests_for(
    sample: Sample,
    index: int,
    prompt: CuePrompt,
    asking: Asking,
    *,
    numbers: Iterable[int] = (0,),
    include_answer: bool = False,
    remark: str | None = None,
) -> list[CueRequest]:
    """The requests about a problem, one for each cue number.

    They contain only the sample's question and media, and its answer if `include_answer` is true.

    Args:
        sample: the problem.
        index: its index in the source.
        prompt: the prompt template.
        asking: settings of the request.
        numbers: numbers of the cues to ask for.
        include_answer: whether the gold answer is sent too, in the prompt's `answer` text.
        remark: appended to the question, e.g. what was wrong with an earlier reply.

    Raises:
        ValueError: the answer is to be sent, but the prompt has no `answer` text or the sample no answer.
    """
    question = _smaller(question_for(sample, prompt, include_answer=include_answer, remark=remark), asking)
    return [
        CueRequest(
            index=index,
            sample_id=sample.id,
            question=question,
            number=number,
            seed=(asking.seed + number) % 2**63,
            temperature=asking.temperature,
            max_tokens=asking.max_tokens,
            field=prompt.field,
        )
        for number in numbers
    ]


def question_for(
    sample: Sample, prompt: CuePrompt, *, include_answer: bool = False, remark: str | None = None
) -> Shown:
    """The prompt with a problem's question, and its media unchanged.

    A system message of the data addresses the model that answers the question, so it is left out.

    Args:
        sample, prompt, include_answer, remark: as in `requests_for`.

    Raises:
        ValueError: as `requests_for`.
    """
    tail: list[str] = []
    if include_answer:
        if sample.answer is None:
            raise MissingAnswer(f"Sample {sample.id} has no answer to send.")
        tail.append(prompt.answer_text(sample.answer))
    if remark is not None:
        tail.append(remark)
    turns = [message for message in sample.messages if message["role"] != "system"]
    before, after = prompt.user.split(QUESTION)
    content: list[dict[str, Any]] = [_text(before)]
    for turn in turns:
        if len(turns) > 1:
            content.append(_text(f"[{turn['role']}] "))
        content.extend(dict(part) for part in turn["content"])
        if len(turns) > 1:
            content.append(_text("\n"))
    content.append(_text("\n\n".join([after, *tail])))
    messages: tuple[Message, ...] = (
        {"role": "system", "content": [_text(prompt.system)]},
        {"role": "user", "content": _joined(content)},
    )
    return Shown(messages, sample.images, sample.videos)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _joined(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content with neighbouring texts joined and empty ones removed."""
    joined: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = _text(joined[-1]["text"] + part["text"])
        elif part["type"] != "text" or part["text"]:
            joined.append(part)
    return joined


def _smaller(question: Shown, asking: Asking) -> Shown:
    """Reduce the media to the maximum size and number of frames."""
    videos = []
    for video in question.videos:
        fewer = video.evenly(asking.max_video_frames)
        frames = tuple(within(frame, asking.max_image_pixels) for frame in fewer.frames)
        videos.append(replace(fewer, frames=frames))
    images = tuple(within(image, asking.max_image_pixels) for image in question.images)
    return replace(question, images=images, videos=tuple(videos))


def request_key(request: CueRequest, identity: str, prompt: CuePrompt, asking: Asking, media: str) -> str:
    """The key that the reply is stored under: a digest of everything that determines it.

    Args:
        request: the request.
        identity: the model's identity, as its client gives it.
        prompt: its prompt template.
        asking: settings of the request.
        media: digest of the problem's media.
    """
    parts = {
        "model": identity,
        "prompt": [prompt.name, prompt.version, prompt.digest],
        "messages": request.question.messages,
        "media": media,
        "images": [asking.max_image_pixels, asking.image_format, asking.max_video_frames],
        "sampling": [request.temperature, request.max_tokens, request.seed, request.number],
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def estimated_tokens(question: Shown, asking: Asking) -> int:
    """Estimated length of a prompt in tokens, erring on the high side; of its media, only the sizes are
    read."""
    text = sum(len(p.get("text", "")) for message in question.messages for p in message["content"])
    sizes = [image.size for image in question.images]
    for video in question.videos:
        sizes += [video.size] * min(len(video.frames), asking.max_video_frames)
    pixels = sum(math.prod(bounded_size(size, asking.max_image_pixels)) for size in sizes)
    return 20 + math.ceil(text / CHARACTERS_PER_TOKEN) + math.ceil(pixels / PIXELS_PER_TOKEN)
