"""Bounding boxes of the things that the cue of a CueBench problem names."""

from __future__ import annotations

import json

from vicur.data.sample import Sample


def cue_boxes(sample: Sample) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """Name, value and (left, top, right, bottom) in pixels of what a sample's cue names, if known."""
    raw = sample.meta.get("cue_boxes")
    entries = json.loads(raw) if isinstance(raw, str) else raw or []
    return [(name, value, (left, top, right, bottom)) for name, value, left, top, right, bottom in entries]
