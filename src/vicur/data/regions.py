"""Reads where to look: boxes in images and intervals of videos, in the forms in which data sets hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vicur.bad_rows import RowProblem
from vicur.data.sample import Box, Interval
from vicur.data.written import parse_if_written
from vicur.settings.section import section

RawBox = Sequence[Any]
"""Four numbers as a row has them."""
_BOX_KEYS = ("bbox_2d", "bbox", "box", "region")
_IMAGE_KEYS = ("image", "image_index", "image_id")
_OUTSIDE = 0.01
"""Fraction of a side by which a box may reach beyond the image; it is cut off there."""


@section
class BoxConfig:
    """Meaning of the four numbers of a box in the data."""

    format: Literal["xyxy", "xywh"] = "xyxy"
    """xyxy: left, top, right, bottom. xywh: left, top, width, height, as in COCO."""
    unit: Literal["pixels", "fractions", "thousandths"] = "pixels"
    """pixels: of the image file, upright. fractions: of its sides. thousandths: likewise, times 1000, as
    models of the Qwen-VL family write boxes."""


def boxes_by_image(value: Any, images: int) -> list[list[RawBox]]:
    """The boxes of each image, as they are written.

    A box is four numbers, four numbers after labels, or an object with them under `bbox_2d`, `bbox`, `box` or
    `region`, and optionally the image's number from 0 under `image`. With one image, a box or a list of
    boxes; with several, a list with the boxes of each image, or objects that name their image.

    Args:
        value: what a row holds, also as JSON.
        images: number of images of the problem.

    Raises:
        RowProblem: it is none of these.
    """
    value = parse_if_written(value)
    if _is_empty(value):
        return []
    if not images:
        return []
    entries = [value] if _is_box(value) or isinstance(value, Mapping) else value
    if not isinstance(entries, list | tuple):
        raise RowProblem("malformed", f"regions are a {type(value).__name__}; a list of boxes was expected")
    if any(isinstance(entry, Mapping) for entry in entries):
        return _of_objects(entries, images)
    if images > 1:
        if len(entries) != images or any(_is_box(entry) for entry in entries):
            raise RowProblem(
                "malformed", f"the problem has {images} images; regions must be a list of boxes for each"
            )
        return [_boxes(each) for each in entries]
    nested = len(entries) == 1 and isinstance(entries[0], list | tuple) and not _is_box(entries[0])
    return [_boxes(entries[0] if nested else entries)]


def pixels(box: RawBox, size: tuple[int, int], config: BoxConfig) -> Box:
    """A box in pixels of an image.

    Args:
        box: four numbers.
        size: width and height of the image, in the pixels that the box refers to.
        config: what the numbers are.

    Raises:
        RowProblem: they are not finite, span less than a pixel, or lie outside the image.
    """
    try:
        left, top, right, bottom = (float(number) for number in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise RowProblem("malformed", f"the box {list(box)} is not four numbers") from error
    if config.format == "xywh":
        right, bottom = left + right, top + bottom
    scale = {"pixels": (1.0, 1.0), "fractions": size, "thousandths": (size[0] / 1000, size[1] / 1000)}[
        config.unit
    ]
    left, top, right, bottom = left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]
    numbers = (
        f"the box {list(box)} ({config.format}, {config.unit}) of an image of {size[0]} x {size[1]} pixels"
    )
    if not all(map(math.isfinite, (left, top, right, bottom))) or left >= right or top >= bottom:
        raise RowProblem("malformed", f"{numbers} spans nothing")
    if right - left < 1 and bottom - top < 1:
        raise RowProblem("malformed", f"{numbers} spans less than a pixel; set data.boxes.unit")
    slack = (_OUTSIDE * size[0], _OUTSIDE * size[1])
    if min(left + slack[0], top + slack[1]) < 0 or right > size[0] + slack[0] or bottom > size[1] + slack[1]:
        raise RowProblem("malformed", f"{numbers} lies outside it; set data.boxes.format or data.boxes.unit")
    return max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)


def intervals_by_video(value: Any, videos: int) -> list[list[Interval]]:
    """The intervals of each video, in seconds.

    Args:
        value: an interval or a list of intervals for one video, a list of intervals for each of several; also
            as JSON.
        videos: number of videos of the problem.

    Raises:
        RowProblem: it is none of these, or an interval ends before it starts.
    """
    value = parse_if_written(value)
    if _is_empty(value):
        return []
    if not videos:
        return []
    entries = [value] if _are_numbers(value, 2) else value
    if not isinstance(entries, list | tuple):
        raise RowProblem("malformed", f"clips are a {type(value).__name__}; a list of intervals was expected")
    by_video = [entries] if videos == 1 else entries
    if len(by_video) != videos:
        raise RowProblem(
            "malformed", f"the problem has {videos} videos; clips must be a list of intervals for each"
        )
    return [_intervals(each) for each in by_video]


def _of_objects(entries: Sequence[Any], images: int) -> list[list[RawBox]]:
    by_image: list[list[RawBox]] = [[] for _ in range(images)]
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise RowProblem("malformed", "regions mix objects and lists")
        box = next((entry[key] for key in _BOX_KEYS if entry.get(key) is not None), None)
        number = next((entry[key] for key in _IMAGE_KEYS if entry.get(key) is not None), None)
        if images == 1:  # whatever the image is called
            number = 0
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < images:
            raise RowProblem("malformed", f"a region names the image {number!r} of {images}")
        by_image[number] += _boxes([box])
    return by_image


def _boxes(entries: Any) -> list[RawBox]:
    if _is_empty(entries):
        return []
    if _is_box(entries):
        entries = [entries]
    if not isinstance(entries, list | tuple) or not all(map(_is_box, entries)):
        raise RowProblem("malformed", f"{entries!r} is not a list of boxes of four numbers")
    return [entry[-4:] for entry in entries]


def _intervals(entries: Any) -> list[Interval]:
    if _are_numbers(entries, 2):
        entries = [entries]
    if not isinstance(entries, list | tuple) or not all(_are_numbers(entry, 2) for entry in entries):
        raise RowProblem("malformed", f"{entries!r} is not a list of intervals of two numbers")
    intervals = [(float(start), float(end)) for start, end in entries]
    for start, end in intervals:
        if not (0 <= start <= end < math.inf):
            raise RowProblem("malformed", f"the interval from {start:g} to {end:g} s spans nothing")
    return intervals


def _is_box(value: Any) -> bool:
    """Whether a value is four numbers, perhaps after labels."""
    if not isinstance(value, list | tuple) or len(value) < 4:
        return False
    return _are_numbers(value[-4:], 4) and all(isinstance(label, str) for label in value[:-4])


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Mapping | list | tuple) and len(value) == 0)
