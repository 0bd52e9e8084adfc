"""`Video`: frames at equal intervals in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Video:
    """Frames at equal intervals in time.

    Attributes:
        frames: at least one, all of one size.
        frames_per_second: rate of these frames, not of the video file they were taken from: frame i is at
            second i / frames_per_second.
        numbers: number of each frame at that rate, ascending, if some are left out; None for 0, 1, 2, ...

    Raises:
        ValueError: there is no frame, sizes differ, the rate is not above 0, or numbers are not ascending.
    """

    frames: tuple[Image.Image, ...]
    frames_per_second: float
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("A video needs at least one frame.")
        sizes = {frame.size for frame in self.frames}
        if len(sizes) > 1:
            differing = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
            raise ValueError(f"The frames of a video must all have the same size, not {differing} pixels.")
        if not 0 < self.frames_per_second < float("inf"):
            raise ValueError(f"A video needs frames_per_second above 0, not {self.frames_per_second}.")
        if self.numbers is not None:
            rising = all(low < high for low, high in pairwise((-1, *self.numbers)))
            if len(self.numbers) != len(self.frames) or not rising:
                raise ValueError(
                    f"The {len(self.frames)} frames of a video need as many ascending numbers from 0, not "
                    f"{list(self.numbers)}."
                )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its frames in pixels."""
        return self.frames[0].size

    @property
    def seconds(self) -> tuple[float, ...]:
        """Second of each frame."""
        numbers = range(len(self.frames)) if self.numbers is None else self.numbers
        return tuple(number / self.frames_per_second for number in numbers)

    def within(self, intervals: Sequence[tuple[float, float]]) -> Video:
        """The frames within intervals of seconds, at their own times; of an interval without any, the frame
        that is nearest to its middle.

        Args:
            intervals: start and end of each; at least one.
        """
        seconds = np.asarray(self.seconds)
        kept: set[int] = set()
        for start, end in intervals:
            inside = np.flatnonzero((seconds >= start) & (seconds <= end))
            kept |= set(inside.tolist() or [int(np.abs(seconds - (start + end) / 2).argmin())])
        indices = sorted(kept)
        numbers = range(len(self.frames)) if self.numbers is None else self.numbers
        frames = tuple(self.frames[index] for index in indices)
        return Video(frames, self.frames_per_second, tuple(numbers[index] for index in indices))

    def evenly(self, most: int) -> Video:
        """The video reduced to at most `most` evenly spaced frames."""
        indices = evenly_spaced(len(self.frames), most)
        if self.numbers is not None:
            frames, numbers = zip(*((self.frames[i], self.numbers[i]) for i in indices), strict=True)
            return Video(frames, self.frames_per_second, numbers)
        rate = spaced_rate(len(self.frames), len(indices), self.frames_per_second)
        return Video(tuple(self.frames[index] for index in indices), rate)


def evenly_spaced(count: int, most: int) -> tuple[int, ...]:
    """Evenly spaced indices of at most `most` of `count` frames, including the first and the last."""
    return tuple(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def spaced_rate(count: int, kept: int, rate: float) -> float:
    """Frames per second after taking `kept` evenly spaced frames of `count` frames at `rate`."""
    return rate if kept in (1, count) else rate * (kept - 1) / (count - 1)
