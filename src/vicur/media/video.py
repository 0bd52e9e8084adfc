"""`Video`: frames at equal intervals in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Video:
    """Frames at equal intervals in time.

    Attributes:
        frames: at least one, all of one size.
        frames_per_second: rate of these frames, not of the video file they were taken from: frame i is at
            second i / frames_per_second.

    Raises:
        ValueError: there is no frame, sizes differ, or the rate is not above 0.
    """

    frames: tuple[Image.Image, ...]
    frames_per_second: float

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("A video needs at least one frame.")
        sizes = {frame.size for frame in self.frames}
        if len(sizes) > 1:
            differing = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
            raise ValueError(f"The frames of a video must all have the same size, not {differing} pixels.")
        if not 0 < self.frames_per_second < float("inf"):
            raise ValueError(f"A video needs frames_per_second above 0, not {self.frames_per_second}.")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its frames in pixels."""
        return self.frames[0].size

    def evenly(self, most: int) -> Video:
        """The video reduced to at most `most` evenly spaced frames."""
        indices = evenly_spaced(len(self.frames), most)
        rate = spaced_rate(len(self.frames), len(indices), self.frames_per_second)
        return Video(tuple(self.frames[index] for index in indices), rate)


def evenly_spaced(count: int, most: int) -> tuple[int, ...]:
    """Evenly spaced indices of at most `most` of `count` frames, including the first and the last."""
    return tuple(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def spaced_rate(count: int, kept: int, rate: float) -> float:
    """Frames per second after taking `kept` evenly spaced frames of `count` frames at `rate`."""
    return rate if kept in (1, count) else rate * (kept - 1) / (count - 1)
