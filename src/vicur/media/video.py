"""`Video`: frames at even distances in time."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Video:
    """Frames at even distances in time.

    Attributes:
        frames: at least one, all of one size.
        frames_per_second: of these frames, not of the film they were taken from: frame i stands at
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
            found = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
            raise ValueError(f"The frames of a video must have one size, not {found} pixels.")
        if not 0 < self.frames_per_second < float("inf"):
            raise ValueError(f"A video needs frames_per_second above 0, not {self.frames_per_second}.")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its frames in pixels."""
        return self.frames[0].size
