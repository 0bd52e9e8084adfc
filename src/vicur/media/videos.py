"""Reads videos: files, animations, and lists of images.

Frames are taken at equal intervals in time; their number follows from the settings of the data or of the row.
FFmpeg reads only the container formats of `CONTAINERS`, and only the bytes of the file itself: no playlist,
session description or reference inside a file makes it open another file or a connection.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from vicur.bad_rows import RowProblem
from vicur.media.images import (
    PIL_LIMIT,
    ImageReader,
    SizeOnly,
    SizeRequest,
    decoding,
    in_words,
    is_image,
    number,
)
from vicur.media.video import Video, evenly_spaced, spaced_rate
from vicur.settings.section import Count, Positive, section

FRAME_RATES = ("frames_per_second", "sample_fps", "fps")
"""Keys in a video's entry for its frame rate, or for the rate at which to take frames."""
VIDEO_SETTINGS = (
    *FRAME_RATES,
    *("nframes", "min_frames", "max_frames", "video_start", "video_end"),
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
)
"""Keys in a video's entry that set how it is read, including those of qwen-vl-utils."""
CONTAINERS = ("mov", "matroska", "avi", "asf", "flv", "mpeg", "mpegts", "ogg")
"""Container formats of video files that are read, under FFmpeg's names: mp4 is mov, webm is matroska, wmv is
asf. None of them refers to other files."""
_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "none",
    "max_pixels": str(2 * PIL_LIMIT),
}
"""Options of FFmpeg that keep it to the bytes that it is given, and bound the frames that it decodes to find
out what a file holds; `max_raw_pixels` is at most that bound."""
KEPT_VIDEO_PIXELS = 2**28
"""Maximum number of pixels in all frames of a video that are kept; larger frames are shrunk. It is ten times
what Qwen3-VL sees of a video."""
MOST_FRAMES = 2**16
"""Maximum number of frames that a row may ask for, and that an animation may have; a header may claim any
number."""
MOST_ANIMATION_PIXELS = 2**33
"""Maximum number of pixels in all frames of an animation: an hour of 640 x 360 pixels at ten frames a second.
All are decoded to know the time of each, and a small file may hold any number that change one pixel."""
MISSING_TAIL = 0.1
"""Share of the frames in a header that may be missing; a video file that lacks more is broken."""
_FRAME_SECONDS = 0.1
"""Display time of an animation's frame if its file does not state one, as in browsers."""
_TURNED = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
"""Transpositions by the number of counter-clockwise quarter turns."""


class VideoSupportMissing(ValueError):
    """PyAV is not installed, which is not the fault of a row."""


@section
class VideoConfig:
    """Settings for sampling and resizing the frames of videos."""

    frames_per_second: Positive = 2.0
    """Frames per second to sample from a video file; also the assumed frame rate of a list of frames without
    one."""
    min_frames: Count = 4
    """Minimum number of frames to sample from a video file, if it has that many."""
    max_frames: int = 512
    """Maximum number of frames to sample from a video; longer videos are sampled at a lower rate."""
    min_pixels: Count | None = None
    """Lower bound on pixels per frame after resizing; null for the checkpoint's own."""
    max_pixels: Count | None = None
    """Upper bound on pixels per frame after resizing; null for the checkpoint's own."""

    def __post_init__(self) -> None:
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"video.min_frames ({self.min_frames}) must be at most video.max_frames ({self.max_frames})."
            )


@dataclass(frozen=True)
class _Settings:
    """Settings for reading one video: those of its row over those of the data.

    Attributes:
        fps: frames to take per second; for a list of frames, its frame rate.
        nframes: number of frames to take, whatever the rate.
        min_frames, max_frames: bounds on their number.
        start, end: start and end of the part to read, in seconds.
        total_pixels: bound on the pixels of all frames; two frames count as one, because models merge them.
        size: size requested for each frame.
    """

    fps: float
    nframes: int | None
    min_frames: int
    max_frames: int
    start: float | None
    end: float | None
    total_pixels: float | None
    size: SizeRequest

    @classmethod
    def of(cls, entry: Any, config: VideoConfig) -> _Settings:
        """Settings of an entry over those of the data.

        Raises:
            RowProblem: a setting is not a number, or two contradict each other.
        """
        settings: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        rate = next((value for key in FRAME_RATES if (value := number(settings, key)) is not None), None)
        nframes = _count(settings, "nframes")
        if (
            rate is not None
            and nframes is not None
            and not isinstance(_without_settings(entry), list | tuple)
        ):
            raise RowProblem(
                "malformed", "a video has both a rate (fps) and nframes; only one of them is allowed"
            )
        low, high = _count(settings, "min_frames"), _count(settings, "max_frames")
        # A bound set by the row overrides the other bound if that comes from the data.
        min_frames = low or min(config.min_frames, high or config.min_frames)
        max_frames = high or max(config.max_frames, min_frames)
        if min_frames > max_frames:
            raise RowProblem(
                "malformed", f"a video's min_frames ({min_frames}) is above its max_frames ({max_frames})"
            )
        start, end = number(settings, "video_start", zero=True), number(settings, "video_end")
        if start is not None and end is not None and start >= end:
            raise RowProblem("malformed", f"a video starts at {start:g} s and ends at {end:g} s")
        return cls(
            fps=rate or config.frames_per_second,
            nframes=nframes,
            min_frames=min_frames,
            max_frames=max_frames,
            start=start,
            end=end,
            total_pixels=number(settings, "total_pixels"),
            size=SizeRequest.of(entry),
        )

    def frames(self, seconds: float, count: int) -> int:
        """Number of frames to take of `count` frames that last `seconds`."""
        if self.nframes is not None:
            return min(self.nframes, count)
        at_rate = int(min(seconds * self.fps, count))
        return max(1, min(max(at_rate, self.min_frames), self.max_frames, count))

    def frame_size(self, count: int) -> SizeRequest:
        """The size setting for each of `count` frames."""
        if self.total_pixels is None:
            return self.size
        share = max(1.0, self.total_pixels / math.ceil(count / 2))
        return replace(self.size, max_pixels=min(share, self.size.max_pixels or share))


def _count(entry: Mapping[str, Any], key: str) -> int | None:
    value = number(entry, key)
    if value is not None and not (value.is_integer() and 1 <= value <= MOST_FRAMES):
        raise RowProblem(
            "malformed", f"{key} is {entry[key]!r}; a whole number from 1 to {MOST_FRAMES} was expected"
        )
    return None if value is None else int(value)


@dataclass(frozen=True)
class _Timeline:
    """The indices of the frames to take from a video, and their rate in frames per second."""

    indices: tuple[int, ...]
    frames_per_second: float


_Fit = Callable[[Image.Image, int], Image.Image]
"""Brings a frame with an EXIF orientation to its final size, upright and in RGB."""


@dataclass(frozen=True)
class VideoReader:
    """Reads the videos of one source.

    Attributes:
        images: reader of images, which also resolves paths of video files.
        config: settings for taking frames, for rows without settings of their own.
    """

    images: ImageReader
    config: VideoConfig = field(default_factory=VideoConfig)

    def read(self, entry: Any) -> Video:
        """The video with the requested frames.

        Raises:
            RowProblem: there is no such video, or it cannot be decoded.
            VideoSupportMissing: the video is a file, and PyAV is not installed.
        """
        settings = _Settings.of(entry, self.config)
        frames = self._frames(entry, settings)
        if frames is not None:
            frame_timeline = self._frame_timeline(frames, settings)
            fitted = self._fitted(settings, frame_timeline)
            images = tuple(fitted(self.images.read(frames[i]), 1) for i in frame_timeline.indices)
            return _as_video(images, frame_timeline.frames_per_second)
        entry = _single_file(entry)
        timeline = self._timeline(entry, settings)
        decoded = self._decode_animation if self._is_animation(entry) else self._decode_film
        images = self._filled(entry, decoded(entry, timeline, self._fitted(settings, timeline)), timeline)
        return _as_video(images, timeline.frames_per_second)

    def outline(self, entry: Any) -> Video:
        """The result of `read`, with frames that have a size but no pixels.

        One frame of a video file is decoded, because nothing else gives its rotation and pixel shape.

        Raises:
            RowProblem, VideoSupportMissing: as in `read`.
        """
        settings = _Settings.of(entry, self.config)
        frames = self._frames(entry, settings)
        if frames is not None:
            timeline = self._frame_timeline(frames, settings)
            raw = [self.images.size(frames[i]) for i in timeline.indices]
        else:
            entry = _single_file(entry)
            timeline = self._timeline(entry, settings)
            raw = [self._frame_size(entry)] * len(timeline.indices)
        request, most = self._frame_request(settings, timeline)
        final = {size: self.images.final_size(size, request, most) for size in set(raw)}
        return _as_video(tuple(SizeOnly(final[size]) for size in raw), timeline.frames_per_second)

    def check(self, entry: Any) -> None:
        """Check a video by the header of its file, or of every frame in a list."""
        settings = _Settings.of(entry, self.config)
        if self._frames(entry, settings) is None and not self._is_animation(_single_file(entry)):
            self._timeline(_single_file(entry), settings)
        else:
            self.outline(entry)

    def _frame_request(self, settings: _Settings, timeline: _Timeline) -> tuple[SizeRequest, int]:
        """The size requested for each frame of a video, and the bound on its pixels."""
        count = len(timeline.indices)
        most = max(KEPT_VIDEO_PIXELS // count, self.config.max_pixels or 1)
        return settings.frame_size(count), min(most, self.images.kept_pixels)

    def _fitted(self, settings: _Settings, timeline: _Timeline) -> _Fit:
        """A function that decodes a frame with an orientation to its final size."""
        request, most = self._frame_request(settings, timeline)
        return lambda frame, orientation: self.images.decoded(frame, orientation, request, most)

    def _frames(self, entry: Any, settings: _Settings) -> list[Any] | None:
        """The frames of a video that is a list of images; None for a file."""
        frames = _without_settings(entry)
        if not isinstance(frames, list | tuple):
            return None
        if not frames:
            raise RowProblem("missing_media", "a video has no frames")
        if (
            len(frames) == 1
            and not isinstance(_frame_image(frames[0]), Image.Image)
            and self._is_animation(frames[0])
        ):
            return None
        if settings.start is not None or settings.end is not None:
            raise RowProblem(
                "malformed", "video_start and video_end apply to a file, not to a list of frames"
            )
        return list(frames)

    @staticmethod
    def _frame_timeline(frames: list[Any], settings: _Settings) -> _Timeline:
        count = min(len(frames), settings.nframes or settings.max_frames)
        return _Timeline(evenly_spaced(len(frames), count), spaced_rate(len(frames), count, settings.fps))

    def _is_animation(self, entry: Any) -> bool:
        """Whether a file is an image, with one frame or many, which Pillow reads instead of PyAV."""
        content = self.images.content(entry)
        if isinstance(content, Image.Image):
            raise RowProblem(
                "malformed", "a video is a single image; a file or a list of frames was expected"
            )
        if isinstance(content, Path):
            with decoding("video", entry), content.open("rb") as file:
                content = file.read(16)
        return is_image(content)

    def _timeline(self, entry: Any, settings: _Settings) -> _Timeline:
        """The frames to take from a file."""
        if self._is_animation(entry):
            return self._animation_timeline(entry, settings)
        with self._container(entry) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            seconds = _seconds(container, stream)
            if not rate or (not stream.frames and not seconds):
                raise RowProblem("unreadable_media", f"the video {in_words(entry)} states no rate or length")
            count = int(stream.frames or max(1, round(float(seconds) * float(rate))))
        start = 0.0 if settings.start is None else min(settings.start * float(rate), count)
        end = float(count) if settings.end is None else min(settings.end * float(rate), count)
        first, last = math.ceil(round(start, 6)), min(math.floor(round(end, 6)), count - 1)
        if first > last:
            raise RowProblem(
                "malformed",
                f"the video {in_words(entry)} lasts {count / float(rate):.1f} s, and has no frame between "
                f"video_start and video_end",
            )
        count = last - first + 1
        num_frames = settings.frames(count / float(rate), count)
        indices = tuple(first + index for index in evenly_spaced(count, num_frames))
        return _Timeline(indices, spaced_rate(count, num_frames, float(rate)))

    def _animation_timeline(self, entry: Any, settings: _Settings) -> _Timeline:
        """The frames to take from an animation, whose frames may have different display times."""
        with self.images.opened(entry) as (image, _):
            durations = [_seconds_of(frame) for frame in self._checked_frames(image)]
        if len(durations) == 1:
            return _Timeline((0,), settings.fps)
        starts = np.concatenate([[0.0], np.cumsum(durations)])
        begin = 0.0 if settings.start is None else settings.start
        end = float(starts[-1]) if settings.end is None else min(settings.end, float(starts[-1]))
        visible = [
            i for i in range(len(durations)) if starts[i + 1] > begin + 1e-6 and starts[i] < end - 1e-6
        ]
        if not visible:
            raise RowProblem(
                "malformed",
                f"the video {in_words(entry)} lasts {starts[-1]:.1f} s, and has no frame between video_start "
                "and video_end",
            )
        num_frames = settings.frames(end - begin, len(visible))
        last = max(float(starts[visible[-1]]), begin)
        times = np.linspace(begin, last, num_frames)
        indices = np.searchsorted(starts[:-1], times + 1e-6, side="right") - 1
        # A single frame has no interval to the next one: it lasts as long as the part that is read.
        rate = (num_frames - 1) / (last - begin) if num_frames > 1 and last > begin else 1 / (end - begin)
        return _Timeline(tuple(indices.tolist()), rate)

    def _decode_animation(self, entry: Any, timeline: _Timeline, fitted: _Fit) -> dict[int, Image.Image]:
        needed = set(timeline.indices)
        with self.images.opened(entry) as (image, orientation):
            return {
                index: fitted(frame, orientation)
                for index, frame in enumerate(self._checked_frames(image))
                if index in needed
            }

    def _checked_frames(self, image: Image.Image) -> Iterator[Image.Image]:
        """The frames of an animation, each checked before it is decoded: they may differ in size.

        Raises:
            RowProblem: a frame is too large, or there are too many.
        """
        pixels = 0
        for count, frame in enumerate(ImageSequence.Iterator(image), start=1):
            self.images.check_size(frame.size, "a frame of a video")
            pixels += math.prod(frame.size)
            if count > MOST_FRAMES or pixels > MOST_ANIMATION_PIXELS:
                raise RowProblem(
                    "media_size",
                    f"an animation has more than {MOST_FRAMES} frames, or more than {MOST_ANIMATION_PIXELS} "
                    "pixels in all its frames; save it as a video file",
                )
            yield frame

    def _decode_film(self, entry: Any, timeline: _Timeline, fitted: _Fit) -> dict[int, Image.Image]:
        needed = set(timeline.indices)
        decoded: dict[int, Image.Image] = {}
        with self._container(entry) as (container, stream):
            for index, frame in enumerate(container.decode(stream)):
                if index in needed:
                    decoded[index] = fitted(self._picture(frame), 1)
                elif index > timeline.indices[-1]:
                    break
        return decoded

    def _picture(self, frame: Any) -> Image.Image:
        """A frame of a video file as an image, turned upright."""
        self.images.check_size((frame.width, frame.height), "a frame of a video")
        image: Image.Image = frame.to_image()
        method = _TURNED[round(frame.rotation / 90) % 4]
        return image if method is None else image.transpose(method)

    @staticmethod
    def _filled(entry: Any, decoded: dict[int, Image.Image], timeline: _Timeline) -> tuple[Image.Image, ...]:
        """The frames in order; missing ones at the end repeat the last.

        Raises:
            RowProblem: more frames are missing than `MISSING_TAIL` allows.
        """
        missing = [index for index in timeline.indices if index not in decoded]
        if not decoded or len(missing) > max(1, MISSING_TAIL * len(timeline.indices)):
            raise RowProblem(
                "unreadable_media",
                f"the video {in_words(entry)} ends early: only {len(decoded)} of {len(timeline.indices)} "
                "frames could be decoded",
            )
        last = decoded[max(decoded)]  # it stays on display
        return tuple(decoded.get(index, last) for index in timeline.indices)

    def _frame_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the first frame of a file, upright."""
        if self._is_animation(entry):
            return self.images.size(entry)
        with self._container(entry) as (container, stream):
            first = next(container.decode(stream), None)
            size = None if first is None else self._picture(first).size
        if size is None:
            raise RowProblem("unreadable_media", "the video has no frame that can be decoded")
        return size

    @contextmanager
    def _container(self, entry: Any) -> Iterator[tuple[Any, Any]]:
        """An open video file and its video stream; errors in the context become a `RowProblem`."""
        try:
            import av
        except ImportError as error:
            raise VideoSupportMissing(
                "Video files are read with PyAV, which is not installed: pip install 'vicur[video]'."
            ) from error
        with decoding("video", entry), ExitStack() as stack:
            content = self.images.content(entry)
            assert not isinstance(content, Image.Image), "excluded before"
            # From a Python file, so that FFmpeg cannot take its name for an address or a pattern.
            file = (
                stack.enter_context(content.open("rb")) if isinstance(content, Path) else io.BytesIO(content)
            )
            try:
                container = stack.enter_context(av.open(file, options=_OPTIONS, metadata_errors="replace"))
                yield container, self._stream(container, entry)
            except av.FFmpegError as error:  # a few are a MemoryError too, for sizes that a file makes up
                why = error.strerror or str(error)
                if isinstance(error, av.ArgumentError):  # above all for a format that is not allowed
                    why += f", or its format is none of {', '.join(CONTAINERS)}"
                reason = f"the video {in_words(entry)} cannot be decoded: {why}"
                raise RowProblem("unreadable_media", reason) from error

    def _stream(self, container: Any, entry: Any) -> Any:
        """The video stream of an open file.

        Raises:
            RowProblem: there is none, or it cannot be decoded.
        """
        if not container.streams.video:
            raise RowProblem("unreadable_media", f"{in_words(entry)} has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise RowProblem("unreadable_media", f"the video {in_words(entry)} has an unknown codec")
        size = (stream.codec_context.width, stream.codec_context.height)
        if not all(size):
            raise RowProblem(
                "unreadable_media",
                f"the video {in_words(entry)} has no size, or more pixels than are allowed",
            )
        self.images.check_size(size, "a video")
        # The size may change in the middle of a video.
        stream.codec_context.options = {"max_pixels": str(self.images.max_raw_pixels)}
        stream.thread_type = "AUTO"
        return stream


def _without_settings(entry: Any) -> Any:
    """A video without the settings in its entry."""
    if not isinstance(entry, Mapping):
        return entry
    return next((entry[key] for key in ("frames", "video") if entry.get(key) is not None), entry)


def _frame_image(frame: Any) -> Any:
    """The image of a frame that is a dictionary; any other frame unchanged."""
    return frame.get("image") if isinstance(frame, Mapping) else frame


def _single_file(entry: Any) -> Any:
    """The file in a list that holds one animation; any other entry unchanged."""
    inside = _without_settings(entry)
    return inside[0] if isinstance(inside, list | tuple) else inside


def _as_video(frames: tuple[Image.Image, ...], rate: float) -> Video:
    try:
        return Video(frames, rate)
    except ValueError as error:
        raise RowProblem("unreadable_media", str(error).rstrip(".")) from error


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # microseconds


def _seconds_of(frame: Image.Image) -> float:
    """Seconds that a frame of an animation is displayed."""
    frame.load()  # a WebP's duration is known only then
    milliseconds = frame.info.get("duration", 0)
    return float(milliseconds) / 1000 if milliseconds and milliseconds > 0 else _FRAME_SECONDS
