"""Bounding boxes of the things that the cue of a CueBench problem names."""

from __future__ import annotations

from vicur.data.sample import Sample
from vicur.data.written import parse_if_written


def cue_boxes(sample: Sample) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """Name, value and (left, top, right, bottom) in pixels of what a sample's cue names, if known.

    Raises:
        ValueError: the column `cue_boxes` holds anything else.
    """
    entries = parse_if_written(sample.meta.get("cue_boxes")) or []
    try:
        return [
            (str(name), str(value), (float(left), float(top), float(right), float(bottom)))
            for name, value, left, top, right, bottom in entries
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Sample {sample.id}: cue_boxes must be a list of [name, value, left, top, right, bottom]."
        ) from error
