"""Images and videos, from all the forms in which data sets state them.

An image is a PIL image, bytes, a path, a data URI, or a dictionary with one of them. A video is a
file (a path, bytes, or a dictionary) or a list of images in any form, its frames. For each there is a
function that reads only what its header says, so that a source can be checked without decoding it.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vicur.data.bad_rows import RowProblem
from vicur.data.pixels import LARGEST_SIDE_RATIO
from vicur.data.sample import Video

PIL_LIMIT = 89_478_485
"""Pixels above which Pillow warns of a decompression bomb: 256 MiB of RGB."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")
FRAME_RATES = ("frames_per_second", "sample_fps", "fps")
"""Keys beside a list of frames that may say how many there are to a second."""
MISSING_TAIL = 0.1
"""Share of the frames that a header may announce too many; beyond it, a video file is broken."""

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, MemoryError)
"""What Pillow, and sometimes PyAV, raises for files that are not what they say."""
_HEADERS = threading.Lock()
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of each EXIF orientation is turned upright."""
_TURNED = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""By quarter turns counter-clockwise."""


class VideoSupportMissing(ValueError):
    """PyAV is not installed: no fault of any row."""


@dataclass(frozen=True)
class VideoConfig:
    """How frames are taken from videos, and how large the model sees them."""

    frames_per_second: float = 2.0
    """Taken from a video file at even distances. A list of frames without a rate is taken to have it."""
    min_frames: int = 4
    """Taken from a short video file at least, as far as it has them."""
    max_frames: int = 512
    """Taken at most, then at a lower rate."""
    min_pixels: int | None = None
    """Of a frame as the model sees it; None for the checkpoint's own bound."""
    max_pixels: int | None = None
    """Of a frame as the model sees it; None for the checkpoint's own bound."""

    def __post_init__(self) -> None:
        if not 0 < self.frames_per_second < float("inf"):
            raise ValueError(f"video.frames_per_second must be above 0, not {self.frames_per_second}.")
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"video.min_frames ({self.min_frames}) must be at least 1 and at most "
                f"video.max_frames ({self.max_frames})."
            )


class SizeOnly(Image.Image):
    """Stands for an image of which nothing but the size was read."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size, self._mode = size, "RGB"

    def load(self) -> Any:
        raise AssertionError("an image of which only the size was read has no pixels")


@dataclass(frozen=True)
class MediaReader:
    """Reads images and videos of one source.

    Attributes:
        folders: where files may lie. Relative paths start from the first. Links are followed
            before a path is judged, so one that leads out of all of them is refused.
        video: how frames are taken.
        max_raw_pixels: of an image; one with more is taken for a decompression bomb.
    """

    folders: tuple[Path, ...]
    video: VideoConfig = field(default_factory=VideoConfig)
    max_raw_pixels: int = PIL_LIMIT

    def read_image(self, entry: Any) -> Image.Image:
        """The pixels: upright, RGB, transparent parts over white, of an animation the first frame.

        Raises:
            RowProblem: there is no such image, or it cannot be shown.
        """
        with self._opened(entry) as (image, orientation):
            image.load()
            return _to_rgb(image if orientation == 1 else image.transpose(_UPRIGHT[orientation]))

    def image_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of what `read_image` would give, from the header.

        Raises:
            RowProblem: there is no such image, or its header shows that it cannot be read.
        """
        with self._opened(entry) as (image, orientation):
            width, height = image.size
            return (height, width) if orientation >= 5 else (width, height)

    def read_video(self, entry: Any) -> Video:
        """The frames that `VideoConfig` asks for.

        Raises:
            RowProblem: there is no such video, or it cannot be shown.
            VideoSupportMissing: it is a file, and PyAV is not installed.
        """
        frames, rate = _as_frames(entry)
        if frames is None:
            return self._decode(entry, self._timeline(entry))
        chosen = _evenly(len(frames), self.video.max_frames)
        images = tuple(self.read_image(frames[i]) for i in chosen)
        return _as_video(images, self._rate(len(frames), len(chosen), rate or self.video.frames_per_second))

    def outline_video(self, entry: Any) -> Video:
        """What `read_video` would give, with frames of which only the size is known.

        Of a file one frame is decoded: its turned display and pixel shape stand nowhere else.

        Raises:
            RowProblem, VideoSupportMissing: as `read_video`.
        """
        frames, rate = _as_frames(entry)
        if frames is None:
            timeline = self._timeline(entry)
            with self._container(entry) as (container, stream):
                first = next(_upright_frames(container, stream), None)
            if first is None:
                raise RowProblem("unreadable_media", "the video has no frame that can be decoded")
            return Video((SizeOnly(first().size),) * len(timeline.chosen), timeline.frames_per_second)
        chosen = _evenly(len(frames), self.video.max_frames)
        outlined = tuple(SizeOnly(self.image_size(frames[i])) for i in chosen)
        return _as_video(outlined, self._rate(len(frames), len(chosen), rate or self.video.frames_per_second))

    def check_image(self, entry: Any) -> None:
        """Raise what `image_size` would raise."""
        self.image_size(entry)

    def check_video(self, entry: Any) -> None:
        """Raise what the header of a file, or of every frame of a list, shows to be wrong."""
        frames, _ = _as_frames(entry)
        if frames is None:
            self._timeline(entry)
        else:
            self.outline_video(entry)

    @contextmanager
    def _opened(self, entry: Any) -> Iterator[tuple[Image.Image, int]]:
        """The image with its header read, and its orientation; errors inside are the row's problem."""
        try:
            content = self._content(entry)
            if isinstance(content, Image.Image):
                _check_size(content, self.max_raw_pixels)
                yield content, _orientation(content)
                return
            with ExitStack() as stack:
                # Pillow's warning of a bomb is our error, and its complaints of odd headers help no one.
                # Warnings are switched for the whole process: one thread at a time, and not while decoding.
                with _HEADERS, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    named = content if isinstance(content, Path) else io.BytesIO(content)
                    image = stack.enter_context(Image.open(named))
                    _check_size(image, self.max_raw_pixels)
                    orientation = _orientation(image)
                yield image, orientation
        except RowProblem:
            raise
        except Image.DecompressionBombError as error:
            raise RowProblem("media_size", f"the image {_name(entry)} is too large: {error}") from error
        except UnidentifiedImageError as error:
            raise RowProblem("unreadable_media", f"{_name(entry)} is not an image Pillow can read") from error
        except _DECODING_ERRORS as error:
            reason = f"the image {_name(entry)} cannot be decoded: {error}"
            raise RowProblem("unreadable_media", reason) from error

    def _content(self, entry: Any) -> bytes | Path | Image.Image:
        """What an entry stands for: bytes, a file that exists, or an image that is already there."""
        if isinstance(entry, dict):
            keys = ("bytes", "path", "image", "video", "url", "image_url", "video_url")
            inside = next((entry[key] for key in keys if entry.get(key) is not None), None)
            if inside is None:
                raise RowProblem("missing_media", f"an image or video has neither {' nor '.join(keys[:2])}")
            return self._content(inside)
        if isinstance(entry, Image.Image):
            return entry
        if isinstance(entry, bytes | bytearray | memoryview):
            return bytes(entry)
        if isinstance(entry, str):
            return _from_data_uri(entry) if entry.startswith("data:") else self._file(entry)
        raise RowProblem(
            "malformed",
            f"an image or video is a {type(entry).__name__}; a path, bytes or a dictionary was expected",
        )

    def _file(self, name: str) -> Path:
        """An existing file inside the folders."""
        scheme = name.partition("://")[0].lower()
        if scheme in ("http", "https", "ftp", "s3", "gs", "hf") and "://" in name:
            raise RowProblem(
                "network_media", f"{_name(name)} is on the network; download it and give its path instead"
            )
        shown = _name(name)
        path = Path(name[len("file://") :] if scheme == "file" else name)
        try:
            found = (self.folders[0] / path).resolve()
            inside = any(found.is_relative_to(folder.resolve()) for folder in self.folders)
            exists = inside and found.is_file()
        except (OSError, ValueError) as error:  # a name too long, a zero byte, a circle of links
            raise RowProblem("missing_media", f"there is no file {shown}: {error}") from error
        if not inside:
            raise RowProblem(
                "outside_folder",
                f"{shown} lies outside the data folder {self.folders[0]}; set image_dir to its folder",
            )
        if not exists:
            raise RowProblem("missing_media", f"there is no file {shown} in {self.folders[0]}")
        return found

    def _timeline(self, entry: Any) -> _Timeline:
        """Which frames of a video file are taken."""
        with self._container(entry) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            seconds = _seconds(container, stream)
            if not rate or (not stream.frames and not seconds):
                raise RowProblem("unreadable_media", f"the video {_name(entry)} states no rate or length")
            count = int(stream.frames or max(1, round(float(seconds) * float(rate))))
        wanted = int(count / float(rate) * self.video.frames_per_second)
        wanted = min(max(wanted, self.video.min_frames), self.video.max_frames, count)
        return _Timeline(_evenly(count, wanted), self._rate(count, wanted, float(rate)))

    @staticmethod
    def _rate(count: int, chosen: int, rate: float) -> float:
        """Frames a second of `chosen` ones at even distances, from the first of `count` to the last."""
        return rate if chosen in (1, count) else rate * (chosen - 1) / (count - 1)

    def _decode(self, entry: Any, timeline: _Timeline) -> Video:
        wanted = set(timeline.chosen)
        decoded: dict[int, Image.Image] = {}
        with self._container(entry) as (container, stream):
            for index, frame in enumerate(_upright_frames(container, stream)):
                if index in wanted:
                    decoded[index] = frame()
                elif index > timeline.chosen[-1]:
                    break
        missing = [index for index in timeline.chosen if index not in decoded]
        if not decoded or len(missing) > max(1, MISSING_TAIL * len(timeline.chosen)):
            raise RowProblem(
                "unreadable_media",
                f"the video {_name(entry)} ends early: of {len(timeline.chosen)} frames "
                f"{len(decoded)} could be decoded",
            )
        # A header may announce a few frames too many; the last one stays on the screen then.
        last = decoded[max(decoded)]
        frames = tuple(decoded.get(index, last) for index in timeline.chosen)
        return _as_video(frames, timeline.frames_per_second)

    @contextmanager
    def _container(self, entry: Any) -> Iterator[tuple[Any, Any]]:
        """An open video file and its picture stream; whatever goes wrong inside is the row's problem."""
        try:
            import av
        except ImportError as error:
            raise VideoSupportMissing(
                "Video files are read with PyAV, which is not installed: pip install 'vicur[video]'."
            ) from error
        content = self._content(entry)
        if isinstance(content, Image.Image):
            raise RowProblem(
                "malformed", "a video is a single image; a file or a list of frames was expected"
            )
        try:
            with av.open(str(content) if isinstance(content, Path) else io.BytesIO(content)) as container:
                if not container.streams.video:
                    raise RowProblem("unreadable_media", f"{_name(entry)} has no moving picture in it")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise RowProblem("unreadable_media", f"the video {_name(entry)} has an unknown codec")
                stream.thread_type = "AUTO"
                size = stream.codec_context.width * stream.codec_context.height
                if size > self.max_raw_pixels:
                    raise RowProblem("media_size", f"the video {_name(entry)} has frames of {size} pixels")
                yield container, stream
        except RowProblem:
            raise
        except (av.FFmpegError, *_DECODING_ERRORS) as error:
            reason = f"the video {_name(entry)} cannot be decoded: {error}"
            raise RowProblem("unreadable_media", reason) from error


@dataclass(frozen=True)
class _Timeline:
    """Which frames of a file are taken, by their number, and how many a second these are."""

    chosen: tuple[int, ...]
    frames_per_second: float


def _as_frames(entry: Any) -> tuple[list[Any] | None, float | None]:
    """The frames of a video that is a list of images, and their rate if it is said; None for a file."""
    rate = None
    if isinstance(entry, dict):
        rate = next((float(entry[key]) for key in FRAME_RATES if entry.get(key) is not None), None)
        inside = next((entry[key] for key in ("frames", "video") if entry.get(key) is not None), None)
        if not isinstance(inside, list | tuple):
            return None, None
        entry = inside
    if not isinstance(entry, list | tuple):
        return None, None
    if not entry:
        raise RowProblem("missing_media", "a video has no frames")
    if rate is not None and not 0 < rate < float("inf"):
        raise RowProblem("malformed", f"a video has {rate} frames a second; a rate above 0 was expected")
    return list(entry), rate


def is_frame(entry: Any) -> bool:
    """Whether an entry of a list under `videos` is an image, one frame, rather than a whole video."""
    if isinstance(entry, Image.Image):
        return True
    if isinstance(entry, bytes):
        return _looks_like_an_image(entry)
    if isinstance(entry, str):
        return entry.startswith("data:image/") or entry.lower().endswith(IMAGE_SUFFIXES)
    if isinstance(entry, dict):
        if entry.get("image") is not None:
            return True
        if entry.get("bytes") is not None:
            return _looks_like_an_image(entry["bytes"])
        return isinstance(entry.get("path"), str) and is_frame(entry["path"])
    return False


def _looks_like_an_image(content: bytes) -> bool:
    starts: tuple[bytes, ...] = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return content.startswith(starts) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


def _as_video(frames: tuple[Image.Image, ...], rate: float) -> Video:
    try:
        return Video(frames, rate)
    except ValueError as error:
        raise RowProblem("unreadable_media", str(error).rstrip(".")) from error


def _evenly(count: int, wanted: int) -> tuple[int, ...]:
    """Numbers of at most `wanted` of `count` frames at even distances, the first and the last included."""
    return tuple(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist())


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds


def _upright_frames(container: Any, stream: Any) -> Iterator[Callable[[], Image.Image]]:
    """The frames, each to be converted only when it is wanted."""
    for frame in container.decode(stream):

        def picture(frame: Any = frame) -> Image.Image:
            image: Image.Image = frame.to_image()
            method = _TURNED[round(frame.rotation / 90) % 4]
            return image if method is None else image.transpose(method)

        yield picture


def _check_size(image: Image.Image, max_raw_pixels: int) -> None:
    width, height = image.size
    if width * height > max_raw_pixels:
        raise RowProblem(
            "media_size",
            f"an image has {width} x {height} pixels, more than max_raw_pixels={max_raw_pixels}; it may be "
            "a decompression bomb",
        )
    if max(width, height) > LARGEST_SIDE_RATIO * min(width, height):
        raise RowProblem(
            "media_size",
            f"an image has {width} x {height} pixels; the longer side may be {LARGEST_SIDE_RATIO} times "
            "the shorter one at most",
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be undone, 1 to 8."""
    if image.format == "TIFF":  # Pillow turns these itself, in the header's size too
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # looking behind the pixels would decode them
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, as paper and browsers do."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would cut 16 bits off at 255: nearly all white.
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _from_data_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise RowProblem("malformed", f"{_name(uri)} is not a data URI in base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowProblem("malformed", f"{_name(uri)} is not valid base64: {error}") from error


def _name(entry: Any) -> str:
    """An entry in words, short enough for a message."""
    if isinstance(entry, dict):
        entry = entry.get("path") or next((v for v in entry.values() if v is not None), None)
    if isinstance(entry, str):
        return entry if len(entry) <= 80 else entry[:60] + "..."
    return "in the data" if isinstance(entry, bytes) else f"of type {type(entry).__name__}"
