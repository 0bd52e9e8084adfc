"""Images and videos of one source: one object that reads, measures and checks both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vicur.media.images import PIL_LIMIT, ImageReader
from vicur.media.video import Video
from vicur.media.videos import VideoConfig, VideoReader


@dataclass(frozen=True)
class MediaReader:
    """Reads images and videos of one source.

    Attributes:
        folders: folders that files may lie in; relative paths start from the first.
        video: settings for taking frames, where a row has none.
        max_raw_pixels: maximum number of pixels in an image; a larger one is treated as a decompression bomb.
    """

    folders: tuple[Path, ...]
    video: VideoConfig = field(default_factory=VideoConfig)
    max_raw_pixels: int = PIL_LIMIT

    @property
    def images(self) -> ImageReader:
        """The image reader."""
        return ImageReader(self.folders, self.max_raw_pixels)

    @property
    def videos(self) -> VideoReader:
        """The video reader."""
        return VideoReader(self.images, self.video)

    def read_image(self, entry: Any) -> Image.Image:
        """The pixels, as `ImageReader.read`."""
        return self.images.read(entry)

    def image_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of what `read_image` would give, from the header."""
        return self.images.size(entry)

    def read_video(self, entry: Any) -> Video:
        """The frames, as `VideoReader.read`."""
        return self.videos.read(entry)

    def outline_video(self, entry: Any) -> Video:
        """The result of `read_video`, with frames of which only the size is known."""
        return self.videos.outline(entry)

    def check_image(self, entry: Any) -> None:
        """Raise what `image_size` would raise."""
        self.images.size(entry)

    def check_video(self, entry: Any) -> None:
        """Raise what the header of a file, or of every frame of a list, shows to be wrong."""
        self.videos.check(entry)
