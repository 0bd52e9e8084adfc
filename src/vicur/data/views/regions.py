"""Views of the regions of an image that matter for the question: the crop, and everything but it.

The regions are privileged: only a teacher may be shown where to look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from vicur.data.sample import Box, Sample
from vicur.data.views.view import Attempt, Part, Shown, smooth
from vicur.media.images import SizeOnly

LEAST_SIDE = 32
"""Minimum side of a crop in pixels of the raw image: a side of one visual token of Qwen3-VL. A smaller region
is enlarged around its centre."""
LARGEST_RATIO = 8
"""Maximum ratio of the sides of a crop; the shorter side of a thinner region is enlarged. Processors refuse
images that are much thinner."""


@dataclass(frozen=True)
class Crop(Part):
    """The problem with each image cropped to its regions (Vision-OPD, arXiv 2605.18740).

    A crop has few pixels, which the processor enlarges to its minimum, so that the model sees the region in
    finer detail than in the whole image. Images without a region stay as they are.

    Attributes:
        margin: width of the surroundings that are kept on each side, as a fraction of the region's side.

    Raises:
        ValueError: the margin is negative.
    """

    margin: float = 0.0
    privileged = True

    def __post_init__(self) -> None:
        _check_margin(self.margin)

    @property
    def name(self) -> str:
        return f"crop({self.margin:g})" if self.margin else "crop"

    def applies(self, sample: Sample) -> bool:
        return any(sample.privilege.regions)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        images = [
            self._crop(image, boxes) if boxes else image
            for image, boxes in zip(prompt.images, _regions(prompt, sample, self.name), strict=True)
        ]
        return replace(prompt, images=tuple(images))

    def _crop(self, image: Image.Image, boxes: tuple[Box, ...]) -> Image.Image:
        area = crop_area(boxes, image.size, self.margin)
        size = (area[2] - area[0], area[3] - area[1])
        if size == image.size:
            return image
        return SizeOnly(size) if isinstance(image, SizeOnly) else image.crop(area)


@dataclass(frozen=True)
class Erased(Part):
    """The problem with the regions of each image painted over: same words and visual tokens, but the evidence
    is gone.

    The paint is the image's mean colour.

    Attributes:
        margin: as for `Crop`.

    Raises:
        ValueError: the margin is negative.
    """

    margin: float = 0.0
    keeps_tokens = True
    privileged = True

    def __post_init__(self) -> None:
        _check_margin(self.margin)

    @property
    def name(self) -> str:
        return f"erased({self.margin:g})" if self.margin else "erased"

    def applies(self, sample: Sample) -> bool:
        return any(sample.privilege.regions)

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        images = [
            self._erase(image, boxes) if boxes and not isinstance(image, SizeOnly) else image
            for image, boxes in zip(prompt.images, _regions(prompt, sample, self.name), strict=True)
        ]
        return replace(prompt, images=tuple(images))

    def _erase(self, image: Image.Image, boxes: tuple[Box, ...]) -> Image.Image:
        erased = smooth(image).convert("RGB")
        pixels = np.asarray(erased, dtype=np.float64).reshape(-1, 3)
        colour = tuple(int(value) for value in pixels.mean(0).round())
        draw = ImageDraw.Draw(erased)
        for box in boxes:
            left, top, right, bottom = _outwards(_widened(box, self.margin), image.size)
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        return erased


def crop_area(
    boxes: tuple[Box, ...], size: tuple[int, int], margin: float = 0.0
) -> tuple[int, int, int, int]:
    """The part of an image that holds all boxes: left, top, right and bottom in whole pixels.

    It has at least `LEAST_SIDE` pixels a side and sides of a ratio of at most `LARGEST_RATIO`, as far as the
    image allows.

    Args:
        boxes: left, top, right and bottom in pixels; at least one.
        size: width and height of the image.
        margin: as for `Crop`.
    """
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    whole = _widened((min(lefts), min(tops), max(rights), max(bottoms)), margin)
    left, top, right, bottom = _outwards(whole, size)
    width, height = right - left, bottom - top
    wide = max(width, LEAST_SIDE, math.ceil(height / LARGEST_RATIO))
    high = max(height, LEAST_SIDE, math.ceil(width / LARGEST_RATIO))
    left, right = _at_least(left, right, wide, size[0])
    top, bottom = _at_least(top, bottom, high, size[1])
    return left, top, right, bottom


def _at_least(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    """An interval of at least a length around the same centre, moved to lie in 0 ... most."""
    length = min(max(length, high - low), most)
    start = min(max(0, low - (length - (high - low)) // 2), most - length)
    return start, start + length


def _widened(box: Box, margin: float) -> Box:
    left, top, right, bottom = box
    across, down = margin * (right - left), margin * (bottom - top)
    return left - across, top - down, right + across, bottom + down


def _outwards(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches, at least one."""
    width, height = size
    left = min(max(0, math.floor(box[0])), width - 1)
    top = min(max(0, math.floor(box[1])), height - 1)
    right = max(left + 1, min(width, math.ceil(box[2])))
    bottom = max(top + 1, min(height, math.ceil(box[3])))
    return left, top, right, bottom


def _regions(prompt: Shown, sample: Sample, view: str) -> tuple[tuple[Box, ...], ...]:
    """The boxes of each image that is shown.

    Raises:
        ValueError: the images are no longer those that the boxes refer to.
    """
    regions = sample.privilege.regions
    if not regions:
        raise ValueError(f"Sample {sample.id} has no regions for the view {view}.")
    sizes = [image.size for image in sample.images]
    if [image.size for image in prompt.images] != sizes or len(regions) != len(sizes):
        raise ValueError(f"The view {view} needs the problem's own images, whole: its regions are theirs.")
    return regions


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"The margin of a region must be at least 0, not {margin}.")
