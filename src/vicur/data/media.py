"""Images and videos of one source: one object that reads, measures and checks both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vicur.media.images import KEPT_PIXELS, PIL_LIMIT, ImageReader
from vicur.media.video import Video
from vicur.media.videos import VideoConfig, VideoReader


@dataclass(frozen=True)
class MediaReader:
    """Reads images and videos of one source.

    Attributes:
        folders: folders that may contain the files; relative paths start from the first.
        video: settings for taking frames, for rows without settings of their own.
        max_raw_pixels: maximum number of pixels in an image; a larger one is treated as a decompression bomb.
        kept_pixels: maximum number of pixels in an image that is returned; a larger one is shrunk to it.
    """

    folders: tuple[Path, ...]
    video: VideoConfig = field(default_factory=VideoConfig)
    max_raw_pixels: int = PIL_LIMIT
    kept_pixels: int = KEPT_PIXELS

    @property
    def images(self) -> ImageReader:
        """The image reader."""
        return ImageReader(self.folders, self.max_raw_pixels, self.kept_pixels)

    @property
    def videos(self) -> VideoReader:
        """The video reader."""
        return VideoReader(self.images, self.video)

    def read_image(self, entry: Any) -> Image.Image:
        """The pixels; see `ImageReader.read`."""
        return self.images.read(entry)

    def image_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the image that `read_image` would return, from the header."""
        return self.images.size(entry)

    def raw_image_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the image in its file; see `ImageReader.raw_size`."""
        return self.images.raw_size(entry)

    def read_video(self, entry: Any) -> Video:
        """The frames; see `VideoReader.read`."""
        return self.videos.read(entry)

    def outline_video(self, entry: Any) -> Video:
        """The result of `read_video` with frames that have a size but no pixels."""
        return self.videos.outline(entry)

    def check_video(self, entry: Any) -> None:
        """Check a video by the header of its file, or of every frame in a list."""
        self.videos.check(entry)
