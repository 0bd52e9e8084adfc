"""Digests of what models are shown: equal for equal text and pixels, however files are named or packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vicur.data.sample import Sample
from vicur.data.views import Shown
from vicur.media.video import Video


def media_digest(sample: Sample) -> str:
    """A digest of the pixels of a problem's images and videos."""
    digest = hashlib.blake2b(digest_size=16)
    _add_media(digest, sample.images, sample.videos)
    return digest.hexdigest()


def shown_digest(prompt: Shown) -> str:
    """A digest of the chat and the pixels that a model is shown."""
    digest = hashlib.blake2b(json.dumps(prompt.messages, sort_keys=True).encode(), digest_size=16)
    _add_media(digest, prompt.images, prompt.videos)
    return digest.hexdigest()


def _add_media(digest: Any, images: Sequence[Image.Image], videos: Sequence[Video]) -> None:
    for image in images:
        _add_image(digest, "image", image)
    for video in videos:
        digest.update(f"video {video.frames_per_second!r} {len(video.frames)}\n".encode())
        if video.numbers is not None:
            digest.update(f"numbers {video.numbers}\n".encode())
        for frame in video.frames:
            _add_image(digest, "frame", frame)


def _add_image(digest: Any, kind: str, image: Image.Image) -> None:
    digest.update(f"{kind} {image.mode} {image.size}\n".encode())
    digest.update(image.tobytes())
