"""Reads images in all the forms in which data sets hold them.

An image is a PIL image, bytes, a path, a data URI, base64, or a dictionary with one of these and optionally
bounds on the number of pixels. `ImageReader.size` reads only the header.
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
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from vicur.bad_rows import RowProblem
from vicur.media.pixels import LARGEST_SIDE_RATIO

PIL_LIMIT = 89_478_485
"""Pixels above which Pillow warns of a decompression bomb: 256 MiB of RGB."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm")

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""The errors that Pillow's and FFmpeg's decoders raise for damaged or mislabelled files."""
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
_NOT_DECODABLE = ("MPEG", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow recognises but cannot decode."""
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
    except (TypeError, ValueError):
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
    """

    folders: tuple[Path, ...]
    max_raw_pixels: int = PIL_LIMIT

    def read(self, entry: Any) -> Image.Image:
        """The image: upright, RGB, transparent parts on white, the first frame of an animation.

        Raises:
            RowProblem: there is no such image, or it cannot be decoded.
        """
        request = SizeRequest.of(entry)
        with self.opened(entry) as (image, orientation):
            image.load()
            return self.resized(as_shown(image, orientation), request)

    def size(self, entry: Any) -> tuple[int, int]:
        """Width and height of the image that `read` would return, from the header.

        Raises:
            RowProblem: there is no such image, or its header shows that it cannot be read.
        """
        request = SizeRequest.of(entry)
        with self.opened(entry) as (image, orientation):
            width, height = image.size
            size = request.size((height, width) if orientation >= 5 else (width, height))
        self.check_size(size)
        return size

    def resized(self, image: Image.Image, request: SizeRequest) -> Image.Image:
        """An image at the size that its row requests.

        Raises:
            RowProblem: it is too large.
        """
        size = request.size(image.size)
        if size == image.size:
            return image
        self.check_size(size)
        return image.resize(size, Image.Resampling.BICUBIC)

    @contextmanager
    def opened(self, entry: Any) -> Iterator[tuple[Image.Image, int]]:
        """The image with its header read, and its orientation; errors inside become a `RowProblem`."""
        try:
            content = self.content(entry)
            if isinstance(content, Image.Image):
                self.check_size(content.size)
                yield content, _orientation(content)
                return
            with ExitStack() as stack:
                # Pillow warns of decompression bombs, which are an error here, and of odd headers, which do
                # not matter. The filter is process-wide: one thread at a time, and not while decoding.
                with _HEADERS, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    file = content if isinstance(content, Path) else io.BytesIO(content)
                    image = stack.enter_context(Image.open(file))
                    self.check_size(image.size)
                    orientation = _orientation(image)
                yield image, orientation
        except RowProblem:
            raise
        except Image.DecompressionBombError as error:
            raise RowProblem("media_size", f"the image {in_words(entry)} is too large: {error}") from error
        except UnidentifiedImageError as error:
            reason = f"{in_words(entry)} is not an image Pillow can read"
            raise RowProblem("unreadable_media", reason) from error
        except DECODING_ERRORS as error:
            reason = f"the image {in_words(entry)} cannot be decoded: {error}"
            raise RowProblem("unreadable_media", reason) from error

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

    def check_size(self, size: tuple[int, int]) -> None:
        """Check that an image of the given width and height can be used.

        Raises:
            RowProblem: it has too many pixels, or is too thin for the model's processor.
        """
        width, height = size
        if width * height > self.max_raw_pixels:
            raise RowProblem(
                "media_size",
                f"an image has {width} x {height} pixels, more than max_raw_pixels={self.max_raw_pixels}; it "
                "may be a decompression bomb",
            )
        if min(width, height) < 1 or max(width, height) > LARGEST_SIDE_RATIO * min(width, height):
            raise RowProblem(
                "media_size",
                f"an image has {width} x {height} pixels; the longer side may be at most "
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


def is_image(content: bytes) -> bool:
    """Whether bytes start like an image that Pillow can decode."""
    Image.init()
    start = content[:16]
    for name, (_, accept) in Image.OPEN.items():
        if accept is None or name in _NOT_DECODABLE:
            continue
        try:
            accepted = accept(start)
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


def as_shown(image: Image.Image, orientation: int) -> Image.Image:
    """A decoded image in RGB, turned upright."""
    return _to_rgb(image if orientation == 1 else image.transpose(_UPRIGHT[orientation]))


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
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_grey_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _grey_bytes(values: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Scale grey values of any depth to 0 to 255; Pillow itself would clip them.

    Files do not say how many bits a value has, so the scale is the smallest of 8, 12, 16 and 32 bits that
    holds the largest value, and 0 to 1 for floats. With negative values, the lowest becomes black and the
    highest white.
    """
    grey = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if low < 0 or high > _RANGES[-1]:
        top = high - low
        grey = grey - low
    elif np.issubdtype(values.dtype, np.floating) and high <= 1:
        top = 1.0
    else:
        top = float(next(limit for limit in _RANGES if high <= limit))
    return (grey * (255.0 / top if top else 0.0)).round().astype(np.uint8)


def in_words(entry: Any) -> str:
    """A short description of an entry, for messages."""
    if isinstance(entry, Mapping):
        entry = entry.get("path") or next((v for v in entry.values() if v is not None), None)
    if isinstance(entry, str):
        return entry if len(entry) <= 80 else entry[:60] + "..."
    return "in the data" if isinstance(entry, bytes) else f"of type {type(entry).__name__}"
