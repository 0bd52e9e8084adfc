"""A request in OpenAI's chat format."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from vicur.endpoints.request import ChatRequest, ImageFormat


def response_schema(request: ChatRequest) -> dict[str, Any]:
    """`response_format` for the JSON object that a request asks for."""
    assert request.field is not None, "free text has no schema"
    schema = request.schema or {
        "type": "object",
        "properties": {request.field: {"type": "string"}},
        "required": [request.field],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": request.field, "strict": True, "schema": schema}}


def chat_messages(request: ChatRequest, image_format: ImageFormat = "png") -> list[dict[str, Any]]:
    """A request as the endpoint takes it: images as data URIs, videos as frames with their seconds."""
    images, videos = iter(request.question.images), iter(request.question.videos)
    messages = []
    for message in request.question.messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                content.append(_image_part(next(images), image_format))
            elif part["type"] == "video":
                video = next(videos)
                for second, frame in zip(video.seconds, video.frames, strict=True):
                    content.append({"type": "text", "text": f"\nFrame at {second:.1f} s: "})
                    content.append(_image_part(frame, image_format))
            else:
                content.append(dict(part))
        if all(part["type"] == "text" for part in content):  # some servers accept no other system message
            messages.append({"role": message["role"], "content": "".join(p["text"] for p in content)})
        else:
            messages.append({"role": message["role"], "content": content})
    return messages


def _image_part(image: Image.Image, image_format: ImageFormat) -> dict[str, Any]:
    buffer = io.BytesIO()
    if image_format == "jpeg":
        image.convert("RGB").save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{image_format};base64,{encoded}"}}
