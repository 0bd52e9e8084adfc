"""Sizes of images and frames as the model sees them, and the number of visual tokens.

The processor rounds both sides to multiples of `patch * merge` pixels, one visual token each, and
keeps the number of pixels between two bounds. For images the bounds are passed to it as `size`. For
videos its `size` bounds all frames together, so it cannot take a bound per frame when videos differ
in length. Therefore frames are resized here, before the processor gets them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video

FRAME_TOKENS = 768
"""Maximum number of visual tokens in a frame, as in the reference implementation (qwen-vl-utils)."""
LARGEST_SIDE_RATIO = 200
"""The processor rejects an image whose sides differ by more than this factor."""


@dataclass(frozen=True)
class PixelLimits:
    """Bounds on what the model sees; None for the checkpoint's own.

    Attributes:
        min_pixels, max_pixels: bounds on the pixels of an image.
        min_frame_pixels, max_frame_pixels: bounds on the pixels of a video frame.

    Raises:
        ValueError: a bound is below 1, or a lower one is above the upper one.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    min_frame_pixels: int | None = None
    max_frame_pixels: int | None = None

    def __post_init__(self) -> None:
        pairs = {"": (self.min_pixels, self.max_pixels)}
        pairs["video."] = (self.min_frame_pixels, self.max_frame_pixels)
        for prefix, (low, high) in pairs.items():
            for name, bound in (("min", low), ("max", high)):
                if bound is not None and bound < 1:
                    raise ValueError(f"{prefix}{name}_pixels must be at least 1, not {bound}.")
            if low is not None and high is not None and low > high:
                raise ValueError(f"{prefix}min_pixels ({low}) is above {prefix}max_pixels ({high}).")


class VisualSizes:
    """The sizes at which the model sees images and videos, given a processor and limits.

    Args:
        processor: a Qwen3-VL style processor.
        limits: bounds on the pixels.
    """

    def __init__(self, processor: Any, limits: PixelLimits) -> None:
        self._images, self._videos, self._limits = (
            processor.image_processor,
            processor.video_processor,
            limits,
        )

    @property
    def image_bounds(self) -> dict[str, int]:
        """The minimum and maximum number of pixels of an image, under the processor's names."""
        size, limits = self._images.size, self._limits
        return _bounds(limits.min_pixels, limits.max_pixels, size["shortest_edge"], size["longest_edge"])

    @property
    def image_side(self) -> int:
        """Side, in pixels, of an image that is one visual token."""
        return int(self._images.patch_size * self._images.merge_size)

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Number of visual tokens of an image of the given width and height."""
        factor = self.image_side
        bounds = self.image_bounds
        height, width = smart_resize(
            size[1], size[0], factor, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
        )
        return (height // factor) * (width // factor)

    def frame_size(self, count: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which the model sees each frame.

        Without configured limits this is the processor's rule with the reference implementation's cap:
        the video's budget is shared evenly, and no frame has more than 768 visual tokens.

        Args:
            count: number of frames.
            size: their width and height.
        """
        processor, limits = self._videos, self._limits
        temporal, factor = processor.temporal_patch_size, self.frame_side
        fewest, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        count = max(count, temporal)  # a single frame is shown twice
        cap = max(min(FRAME_TOKENS * factor**2, most // count), int(fewest * 1.05))
        total = {"min_pixels": fewest, "max_pixels": cap * count}
        if limits.min_frame_pixels is not None or limits.max_frame_pixels is not None:
            bounds = _bounds(limits.min_frame_pixels, limits.max_frame_pixels, math.ceil(fewest / count), cap)
            count = temporal  # the bounds of `temporal` frames are exactly `temporal` times those of one
            total = {"min_pixels": count * bounds["shortest_edge"]}
            total["max_pixels"] = count * bounds["longest_edge"]
        return smart_resize_video(count, size[1], size[0], temporal_factor=temporal, factor=factor, **total)

    @property
    def frame_side(self) -> int:
        """Side, in pixels, of a frame that is one visual token."""
        return int(self._videos.patch_size * self._videos.merge_size)

    def frame_tokens(self, count: int, size: tuple[int, int]) -> int:
        """Number of visual tokens of each group of frames that the model merges in time."""
        factor = self.frame_side
        height, width = self.frame_size(count, size)
        return (height // factor) * (width // factor)

    def frame_groups(self, count: int) -> int:
        """Number of groups of frames that the model merges in time."""
        return -(-count // self._videos.temporal_patch_size)


def _bounds(low: int | None, high: int | None, default_low: int, default_high: int) -> dict[str, int]:
    """The configured bounds; an unset one is the checkpoint's, moved if it contradicts the other."""
    if low is None:
        low = default_low if high is None else min(default_low, high)
    if high is None:
        high = max(default_high, low)
    return {"shortest_edge": low, "longest_edge": high}


def bounded_size(size: tuple[int, int], most: int | None) -> tuple[int, int]:
    """Width and height within a number of pixels, at the same aspect ratio."""
    width, height = size
    if most is None or width * height <= most:
        return size
    scale = math.sqrt(most / (width * height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def within(image: Image.Image, most: int | None) -> Image.Image:
    """An image scaled down to a number of pixels, if it has more."""
    size = bounded_size(image.size, most)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
