"""Reads images in all the forms in which data sets hold them.

An image is a PIL image, bytes, a path, a data URI, base64, or a dictionary with one of these and optionally
bounds on the number of pixels. `ImageReader.size` reads only the header.

Files come from anybody. Only the formats of `IMAGE_FORMATS` are opened, whatever a file's name says; a header
is checked before anything is decoded; an image larger than any model sees is shrunk while it is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, UnidentifiedImageError

from vicur.bad_rows import RowProblem
from vicur.media.pixels import LARGEST_SIDE_RATIO

PIL_LIMIT = 89_478_485
"""Pixels above which Pillow warns of a decompression bomb: 256 MiB of RGB."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
"""Formats that are opened, under Pillow's names. Others can start a program (EPS starts Ghostscript) or hold
an image that is larger than their header says (ICO, ICNS)."""
KEPT_PIXELS = 2**24
"""Default maximum number of pixels in an image that is kept: the most that Qwen3-VL sees."""
_LARGE = threading.Lock()
"""Held while an image of more pixels is decoded: one at a time."""
_STRIP = 2**21
"""Approximate number of pixels of a large image that are converted at a time."""
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
"""The operation that turns an image of each EXIF orientation upright."""
_MEDIUM_KEYS = ("bytes", "path", "image", "video", "url", "image_url", "video_url")
"""Keys of a dictionary under which the medium itself may be."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_SHORTEST_BASE64 = 48
"""Minimum length of an image in base64, in characters: no image of any format is shorter, and few paths are
longer."""
_LONGEST_PATH = 4096
_RANGES = (255, 4095, 65535, 2**32 - 1)
"""The largest values of 8, 12, 16 and 32 bits."""


class SizeOnly(Image.Image):
    """Placeholder for an image, with its size but no pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size, self._mode = size, "RGB"

    def load(self) -> Any:
        raise AssertionError("only the size of this image was read; it has no pixels")


@dataclass(frozen=True)
class SizeRequest:
    """The size that a row requests for an image, with the keys of qwen-vl-utils.

    Attributes:
        min_pixels, max_pixels: bounds on the number of pixels.
        resized_width, resized_height: sides after resizing, instead of bounds.
    """

    min_pixels: float | None = None
    max_pixels: float | None = None
    resized_width: float | None = None
    resized_height: float | None = None

    @classmethod
    def of(cls, entry: Any) -> SizeRequest:
        """The size settings of an image entry.

        Raises:
            RowProblem: a value is not a number above 0, or the lower bound is above the upper one.
        """
        if not isinstance(entry, Mapping):
            return cls()
        request = cls(*(number(entry, key) for key in cls.__dataclass_fields__))
        if (request.resized_width is None) != (request.resized_height is None):
            raise RowProblem("malformed", "only one of resized_width and resized_height is set")
        if request.min_pixels and request.max_pixels and request.min_pixels > request.max_pixels:
            low, high = request.min_pixels, request.max_pixels
            raise RowProblem("malformed", f"min_pixels ({low:g}) is above max_pixels ({high:g})")
        return request

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing an image of the given width and height; keeps its proportions."""
        if self.resized_width is not None and self.resized_height is not None:
            return math.ceil(self.resized_width), math.ceil(self.resized_height)
        width, height = size
        if self.max_pixels is not None and width * height > self.max_pixels:
            scale = math.sqrt(self.max_pixels / (width * height))
            return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
        if self.min_pixels is not None and width * height < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            return math.ceil(width * scale), math.ceil(height * scale)
        return size


def number(entry: Mapping[str, Any], key: str, *, zero: bool = False) -> float | None:
    """The number above 0 that an entry has under a key; None if it has none.

    Args:
        entry: an image or a video with its settings.
        key: name of the setting.
        zero: whether it may be 0.

    Raises:
        RowProblem: the value is not such a number.
    """
    value = entry.get(key)
    if value is None:
        return None
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not (math.isfinite(parsed) and (parsed > 0 or (zero and parsed == 0))):
        bound = "of at least 0" if zero else "above 0"
        raise RowProblem("malformed", f"{key} is {value!r}; a number {bound} was expected")
    return parsed


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of one source.

    Attributes:
        folders: folders that may contain the files. Relative paths start from the first. Links are resolved
            before the check, so a link that leads out of all folders is rejected.
        max_raw_pixels: maximum number of pixels in an image; a larger one is treated as a decompression bomb.
        kept_pixels: maximum number of pixels in an image that is returned; a larger one is shrunk to it.
    """

    folders: tuple[Path, ...]
    max_raw_pixels: int = PIL_LIMIT
    kept_pixels: int = KEPT_PIXELS

    def read(self, entry: Any) -> Image.Image:
        """The image: upright, RGB, transparent parts on white, the first frame of an animation.

        Raises:
            RowProblem: there is no such image, or it cannot be decoded.
        """
        request = SizeRequest.of(entry)
        with self.opened(entry) as (image, orientation):
            return self.decoded(image, orientation, request)

    def size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the image that `read` would return, from the header.

        Raises:
            RowProblem: there is no such image, or its header shows that it cannot be read.
        """
        request = SizeRequest.of(entry)
        with self.opened(entry) as (image, orientation):
            return self.final_size(upright_size(image, orientation), request)

    def raw_size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the image in its file, upright: the pixels that boxes in the data refer to.

        Raises:
            RowProblem: there is no such image, or its header shows that it cannot be read.
        """
        with self.opened(entry) as (image, orientation):
            return upright_size(image, orientation)

    def final_size(
        self, size: tuple[int, int], request: SizeRequest, most: int | None = None
    ) -> tuple[int, int]:
        """Width and height of what is returned for an upright image of the given width and height.

        Args:
            size: width and height of the image.
            request: the size that its row requests.
            most: bound on the number of pixels, instead of `kept_pixels`.

        Raises:
            RowProblem: the image, or the size that its row requests, is too large or too thin.
        """
        requested = request.size(size)
        self.check_size(requested)
        return _at_most(requested, most or self.kept_pixels)

    def decoded(
        self, image: Image.Image, orientation: int, request: SizeRequest, most: int | None = None
    ) -> Image.Image:
        """Decode an opened image, and return it upright, in RGB and at its final size.

        An image of more than `kept_pixels` is not held at its full size in RGB: a JPEG file is decoded at a
        half, a quarter or an eighth of its size, and other formats are converted in strips.

        Args:
            image: an image whose header has been checked.
            orientation: its EXIF orientation that has yet to be undone.
            request, most: as in `final_size`.

        Raises:
            RowProblem: as in `final_size`.
        """
        size = self.final_size(upright_size(image, orientation), request, most)
        large = math.prod(image.size) > self.kept_pixels
        with _LARGE if large else nullcontext():
            if large:
                stored = size[::-1] if orientation >= 5 else size
                image.draft(image.mode, stored)
            image.load()
            upright = _turned(_shrunk(image, stored) if large else image, orientation)
            upright = _to_rgb(upright)
            return upright if upright.size == size else upright.resize(size, Image.Resampling.BICUBIC)

    @contextmanager
    def opened(self, entry: Any) -> Iterator[tuple[Image.Image, int]]:
        """The image with its header read, and its orientation; errors inside become a `RowProblem`."""
        with decoding("image", entry):
            content = self.content(entry)
            if isinstance(content, Image.Image):
                self.check_size(content.size)
                # `decoded` may shrink a large image in place, which must not change the caller's object.
                opened = content.copy() if math.prod(content.size) > self.kept_pixels else content
                yield opened, _orientation(content)
                return
            with ExitStack() as stack:
                # Pillow warns of decompression bombs, which are an error here, and of odd headers, which do
                # not matter. The filter is process-wide: one thread at a time, and not while decoding.
                with _HEADERS, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    file = content if isinstance(content, Path) else io.BytesIO(content)
                    image = stack.enter_context(Image.open(file, formats=_formats()))
                    self.check_size(image.size)
                    orientation = _orientation(image)
                yield image, orientation

    def content(self, entry: Any) -> bytes | Path | Image.Image:
        """Resolve an entry to bytes, an existing file, or an image in memory.

        Raises:
            RowProblem: the entry is none of these.
        """
        if isinstance(entry, Mapping):
            inside = next((entry[key] for key in _MEDIUM_KEYS if entry.get(key) is not None), None)
            if inside is None:
                raise RowProblem("missing_media", "an image or video has neither bytes nor path")
            return self.content(inside)
        if isinstance(entry, Image.Image):
            return entry
        if isinstance(entry, bytes | bytearray | memoryview):
            return bytes(entry)
        if isinstance(entry, str):
            if entry.startswith("data:"):
                return _from_data_uri(entry)
            decoded = from_base64(entry)
            return self._file(entry) if decoded is None else decoded
        raise RowProblem(
            "malformed",
            f"an image or video is a {type(entry).__name__}; a path, bytes or a dictionary was expected",
        )

    def check_size(self, size: tuple[int, int], what: str = "an image") -> None:
        """Check that an image, or what it is called in messages, of the given width and height can be used.

        Raises:
            RowProblem: it has too many pixels, or is too thin for the model's processor.
        """
        width, height = size
        if width * height > self.max_raw_pixels:
            raise RowProblem(
                "media_size",
                f"{what} has {width} x {height} pixels, more than max_raw_pixels={self.max_raw_pixels}; it "
                "may be a decompression bomb",
            )
        if min(width, height) < 1 or max(width, height) > LARGEST_SIDE_RATIO * min(width, height):
            raise RowProblem(
                "media_size",
                f"{what} has {width} x {height} pixels; the longer side may be at most "
                f"{LARGEST_SIDE_RATIO} times the shorter one",
            )

    def _file(self, name: str) -> Path:
        """An existing file inside the folders."""
        scheme = name.partition("://")[0].lower()
        if scheme in ("http", "https", "ftp", "s3", "gs", "hf") and "://" in name:
            raise RowProblem(
                "network_media", f"{in_words(name)} is on the network; download it and give its path instead"
            )
        quoted = in_words(name)
        try:
            path = Path(name[len("file://") :] if scheme == "file" else name).expanduser()
            resolved = (self.folders[0] / path).resolve()
            inside = any(resolved.is_relative_to(folder.resolve()) for folder in self.folders)
            exists = inside and resolved.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a circle, no such home
            raise RowProblem("missing_media", f"there is no file {quoted}: {error}") from error
        if not inside:
            raise RowProblem(
                "outside_folder",
                f"{quoted} is outside the data folder {self.folders[0]}; set the folder of the media with "
                "data.image_dir=FOLDER",
            )
        if not exists:
            also = ", nor is it an image in base64" if len(name) > 200 and "." not in name else ""
            raise RowProblem("missing_media", f"there is no file {quoted} in {self.folders[0]}{also}")
        return resolved


@contextmanager
def decoding(kind: str, entry: Any) -> Iterator[None]:
    """Turns whatever decoding a damaged medium raises into a `RowProblem`.

    Args:
        kind: "image" or "video".
        entry: the medium, for the message.

    Raises:
        RowProblem: any error but a lack of memory, which is not the fault of a row.
    """
    try:
        yield
    except (RowProblem, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise RowProblem("media_size", f"the {kind} {in_words(entry)} is too large: {error}") from error
    except UnidentifiedImageError as error:
        reason = f"{in_words(entry)} is not an image Pillow can read as {' or '.join(_formats())}"
        raise RowProblem("unreadable_media", reason) from error
    except Exception as error:  # decoders raise any kind: struct.error, zlib.error, AssertionError, ...
        reason = f"the {kind} {in_words(entry)} cannot be decoded: {str(error) or type(error).__name__}"
        raise RowProblem("unreadable_media", reason) from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened, among those that the installed Pillow has."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def is_image(content: bytes) -> bool:
    """Whether bytes start like an image in one of the formats that are opened."""
    start = content[:16]
    for name in _formats():
        accept = Image.OPEN[name][1]
        try:
            accepted = accept is not None and accept(start)
        except (SyntaxError, IndexError, TypeError, struct.error):  # errors that Image.open ignores too
            continue
        if accepted and not isinstance(accepted, str):
            return True
    return False


def is_picture(entry: Any) -> bool:
    """Whether an entry looks like an image, by its bytes or its suffix. No file is opened."""
    if isinstance(entry, Image.Image):
        return True
    if isinstance(entry, bytes):
        return is_image(entry)
    if isinstance(entry, str):
        if entry.startswith("data:image/") or (len(entry) < _LONGEST_PATH and _is_picture_name(entry)):
            return True
        decoded = from_base64(entry)
        return decoded is not None and is_image(decoded)
    if isinstance(entry, Mapping):
        inside = (entry.get(key) for key in ("image", "bytes", "path", "url", "image_url"))
        first = next((value for value in inside if value is not None), None)
        return first is not None and is_picture(first)
    return False


def _is_picture_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and "\n" not in name


def from_base64(text: str) -> bytes | None:
    """The bytes of an image or a video in base64, recognised by their signature; None for any other text."""
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text[:_SHORTEST_BASE64].rstrip("\r\n")):
        return None
    start = _b64decode(text[:_SHORTEST_BASE64])
    if start is None or not (is_image(start) or len(text) > _LONGEST_PATH):
        return None
    return _b64decode(text)


def _b64decode(text: str) -> bytes | None:
    """Decode base64, also with line breaks, in the URL-safe alphabet or without
    padding; None if it is invalid."""
    plain = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _from_data_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise RowProblem("malformed", f"{in_words(uri)} is not a data URI in base64")
    decoded = _b64decode(body)
    if decoded is None:
        raise RowProblem("malformed", f"{in_words(uri)} is not valid base64")
    return decoded


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Width and height of an image once its orientation is undone."""
    width, height = image.size
    return (height, width) if orientation >= 5 else (width, height)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _at_most(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Width and height in about the same proportions, with at most `most` pixels."""
    width, height = size
    if width * height <= most:
        return size
    scale = math.sqrt(most / (width * height))
    width, height = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    # Rounding must not make it too thin for the processor.
    return min(width, LARGEST_SIDE_RATIO * height), min(height, LARGEST_SIDE_RATIO * width)


def _shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A large image in RGB, each side divided by the largest whole number that leaves at least `size`.

    Only one strip of it is converted at a time.
    """
    if _is_deep(image):
        image = _grey(image)
    width, height = image.size
    factor = max(1, min(width // size[0], height // size[1]))
    shrunk = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top, bottom in _strips(image, factor):
        strip = _to_rgb(image.crop((0, top, width, bottom)))
        shrunk.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return shrunk


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """First row, and row after the last, of each strip of an image; the first is divisible by `multiple`."""
    rows = max(1, _STRIP // (image.width * multiple)) * multiple
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that has yet to be undone."""
    if image.format == "TIFF":  # Pillow turns these itself, and also swaps the size in the header
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # EXIF data after the pixels would force decoding
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent parts become white, as on paper and in browsers."""
    if _is_deep(image):
        return _grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits per pixel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey values of any depth to 0 to 255; Pillow itself would clip them.

    Files do not say how many bits a value has, so the scale is the smallest of 8, 12, 16 and 32 bits that
    holds the largest value, and 0 to 1 for floats. With negative values, the lowest becomes black and the
    highest white.
    """
    boxes = [(0, top, image.width, bottom) for top, bottom in _strips(image)]
    extremes = [(values.min(), values.max()) for values in map(_finite, map(image.crop, boxes))]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    base = 0.0
    if low < 0 or high > _RANGES[-1]:
        top, base = high - low, low
    elif image.mode == "F" and high <= 1:
        top = 1.0
    else:
        top = float(next(limit for limit in _RANGES if high <= limit))
    scale = 255.0 / top if top else 0.0
    result = Image.new("L", image.size)
    for box in boxes:
        values = ((_finite(image.crop(box)) - base) * scale).round().astype(np.uint8)
        result.paste(Image.fromarray(values), box[:2])
    return result


def _finite(image: Image.Image) -> Float[np.ndarray, "height width"]:
    """The values of an image in float64; 0 where they are not finite."""
    values: Shaped[np.ndarray, "height width"] = np.asarray(image)
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def in_words(entry: Any) -> str:
    """A short description of an entry, for messages."""
    if isinstance(entry, Mapping):
        entry = entry.get("path") or next((v for v in entry.values() if v is not None), None)
    if isinstance(entry, str):
        return entry if len(entry) <= 80 else entry[:60] + "..."
    return "in the data" if isinstance(entry, bytes) else f"of type {type(entry).__name__}"
