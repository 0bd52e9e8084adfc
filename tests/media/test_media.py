"""Images and videos in all supported forms, and entries that must be rejected."""

from __future__ import annotations

import base64
import contextlib
import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.media import MediaReader
from vicur.media.video import Video
from vicur.media.videos import VideoConfig, VideoSupportMissing


@pytest.fixture
def reader(tmp_path) -> MediaReader:
    return MediaReader((tmp_path,))


def picture(size=(8, 6), seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    return data.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def test_every_form_of_an_image(reader, tmp_path):
    image = picture()
    content = encoded(image)
    (tmp_path / "a.png").write_bytes(content)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    forms = [
        *(image, content, "a.png", uri, str(tmp_path / "a.png"), f"file://{tmp_path}/a.png"),
        *({"bytes": content, "path": "gone.png"}, {"bytes": None, "path": "a.png"}, {"image": "a.png"}),
        *({"type": "image_url", "image_url": {"url": uri}}, {"url": uri}),
    ]
    for form in forms:
        assert same(reader.read_image(form), image), form
        assert reader.image_size(form) == image.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(reader, orientation, kind):
    """The result of Pillow's `exif_transpose`; the size is known from the header."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture((9, 5)), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert same(reader.read_image(content), upright)
    assert reader.image_size(content) == upright.size == ((5, 9) if orientation >= 5 else (9, 5))


def test_transparent_parts_show_white(reader):
    layered = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    layered.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    grey = Image.new("LA", (2, 1), (10, 255))
    for content in (
        encoded(layered),
        encoded(palette, transparency=1),
        encoded(layered, "WEBP", lossless=True),
    ):
        result = reader.read_image(content)
        assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert reader.read_image(encoded(grey)).getpixel((0, 0)) == (10, 10, 10)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert reader.read_image(encoded(half)).getpixel((0, 0)) == (127, 127, 127)


def test_animations_show_their_first_frame_and_16_bits_become_8(reader):
    first, second = picture(seed=1), picture(seed=2)
    animated = encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert same(reader.read_image(animated), first)
    deep = Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16))
    result = reader.read_image(encoded(deep))
    assert [result.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "F", "I"])
def test_images_of_any_mode_become_rgb(reader, mode):
    result = reader.read_image(Image.new("L", (3, 2), 0).convert(mode))
    assert result.mode == "RGB" and result.size == (3, 2)


@pytest.mark.parametrize(
    "entry, kind, message",
    [
        ("https://example.org/a.png", "network_media", "is on the network; download it"),
        (
            "../outside.png",
            "outside_folder",
            r"is outside the data folder .*data\.image_dir=FOLDER",
        ),
        ("/etc/hostname", "outside_folder", "is outside"),
        ("inside/../../outside.png", "outside_folder", "is outside"),
        ("file:///etc/hostname", "outside_folder", "is outside"),
        ("link.png", "outside_folder", "is outside"),
        ("linked/outside.png", "outside_folder", "is outside"),
        ("gone.png", "missing_media", r"no file gone\.png in"),
        ("a.b/" * 1300, "missing_media", r"there is no file (a\.b/){15}"),
        ("abc/" * 100, "missing_media", "there is no file abc/.*nor is it an image in base64"),
        ("a\0b", "missing_media", "there is no file"),
        (".", "missing_media", "there is no file"),
        ({"bytes": None, "path": None}, "missing_media", "neither bytes nor path"),
        (b"no image", "unreadable_media", "is not an image Pillow can read"),
        (b"", "unreadable_media", "is not an image Pillow can read"),
        ("data:image/png;base64,@@", "malformed", "is not valid base64"),
        ("data:image/png,abc", "malformed", "not a data URI in base64"),
        (7, "malformed", "is a int; a path, bytes or a dictionary"),
        (
            Image.new("L", (2001, 10)),
            "media_size",
            "2001 x 10 pixels; the longer side may be at most 200 times",
        ),
    ],
)
def test_images_that_cannot_be_read(tmp_path, entry, kind, message):
    home = tmp_path / "home"
    (home / "inside").mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(encoded(picture()))
    (home / "link.png").symlink_to(tmp_path / "outside.png")
    (home / "linked").symlink_to(tmp_path)
    reader = MediaReader((home,))
    for read in (reader.read_image, reader.image_size):
        with pytest.raises(RowProblem, match=message) as caught:
            read(entry)
        assert caught.value.kind == kind


def test_links_inside_the_folder_may_be_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path.parent / f"{tmp_path.name}-link"):
        assert same(MediaReader((folder,)).read_image("link.png"), picture())


def test_decompression_bombs_are_refused_by_their_header():
    """Very many pixels in a few bytes: Pillow's warning, and far above it its error, become ours."""
    reader = MediaReader((Path(),))
    for side in (10_000, 20_000):
        bomb = encoded(Image.new("1", (side, side)))
        for read in (reader.read_image, reader.image_size):
            with pytest.raises(RowProblem, match=r"too large|more than max_raw_pixels") as caught:
                read(bomb)
            assert caught.value.kind == "media_size"
    small = replace(reader, max_raw_pixels=47)
    with pytest.raises(RowProblem, match="8 x 6 pixels, more than max_raw_pixels=47"):
        small.image_size(encoded(picture()))
    assert small.image_size(encoded(picture((8, 5)))) == (8, 5)
    larger = replace(reader, max_raw_pixels=100_000_000)
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    assert larger.image_size(bomb) == (4096, 4096)
    assert replace(larger, kept_pixels=10**8).image_size(bomb) == (10_000, 10_000)


def test_a_truncated_image_is_detected_only_by_decoding(reader):
    for kind in ("PNG", "JPEG"):
        content = encoded(picture((64, 64)), kind)
        broken = content[: len(content) // 2]
        assert reader.image_size(broken) == (64, 64)
        with pytest.raises(RowProblem, match="cannot be decoded"):
            reader.read_image(broken)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # of damaged TIFFs, while it decodes
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), st.data())
def test_garbage_only_makes_a_bad_row(noise, kind, data):
    """Any damage either leaves an image or makes a `RowProblem`."""
    reader = MediaReader((Path(),), max_raw_pixels=10**6)
    content = bytearray(encoded(picture((16, 16)), kind))
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + len(noise)] = noise
    with contextlib.suppress(RowProblem):
        assert reader.read_image(bytes(content)).mode == "RGB"


def film(frames: int, rate: int = 8, size=(32, 16), *, turned: int = 0, kind="mp4") -> bytes:
    """A video whose frame i is grey with value 10 i."""
    data = io.BytesIO()
    with av.open(data, "w", format="matroska" if kind == "mkv" else kind) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 1_000_000
        if turned:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("PyAV before 17.1 cannot write a rotation")
            stream.set_display_rotation(turned)
        for i in range(frames):
            grey = np.full((size[1], size[0], 3), 10 * i, np.uint8)
            if turned:
                grey[: size[1] // 2] = 250  # the upper half is white
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


@settings(max_examples=15)
@given(st.binary(min_size=1, max_size=300), st.sampled_from(["mp4", "mkv"]), st.data())
def test_damaged_videos_only_make_a_bad_row(noise, kind, data):
    reader = MediaReader((Path(),), max_raw_pixels=10**6)
    content = bytearray(film(6, kind=kind))
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + len(noise)] = noise
    for read in (reader.check_video, reader.outline_video, reader.read_video):
        with contextlib.suppress(RowProblem):
            read(bytes(content))


def test_threads_may_read_at_once(reader):
    """Pillow's warnings are switched off for the process while a header is read, and on again after it."""
    before = list(warnings.filters)
    content = encoded(picture((64, 64)))
    with ThreadPoolExecutor(8) as pool:
        result = list(pool.map(reader.read_image, [content] * 64))
    assert all(same(image, result[0]) for image in result) and warnings.filters == before


def shades(video: Video) -> list[int]:
    """The index of the source frame that each frame is nearest to."""
    return [round(np.asarray(frame).mean() / 10) for frame in video.frames]


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_frames_are_evenly_spaced_and_keep_their_true_times(tmp_path, kind):
    """24 frames at 8 a second: three seconds. At two a second that is six frames over 23/8 seconds."""
    reader = MediaReader((tmp_path,))
    (tmp_path / f"a.{kind}").write_bytes(film(24, kind=kind))
    for entry in (f"a.{kind}", {"bytes": film(24, kind=kind), "path": None}, {"path": f"a.{kind}"}):
        video = reader.read_video(entry)
        assert shades(video) == [0, 5, 9, 14, 18, 23]
        assert video.frames_per_second == pytest.approx(5 / (23 / 8))
        assert video.size == (32, 16) and video.frames[0].mode == "RGB"


@pytest.mark.parametrize(
    "config, expected, rate",
    [
        (VideoConfig(frames_per_second=8.0), list(range(12)), 8.0),
        (VideoConfig(frames_per_second=100.0), list(range(12)), 8.0),
        (VideoConfig(frames_per_second=0.1, min_frames=3), [0, 6, 11], 8 * 2 / 11),
        (VideoConfig(frames_per_second=8.0, min_frames=1, max_frames=2), [0, 11], 8 / 11),
        (VideoConfig(frames_per_second=0.1, min_frames=1, max_frames=1), [0], 8.0),
        (VideoConfig(min_frames=40), list(range(12)), 8.0),
    ],
)
def test_how_many_frames_are_taken(config, expected, rate):
    video = MediaReader((Path(),), config).read_video(film(12))
    assert shades(video) == expected and video.frames_per_second == pytest.approx(rate)


def test_rotated_videos_are_turned_upright(reader):
    """As recorded by phones: stored sideways, shown upright. The white half is then on the left."""
    content = film(4, turned=90)
    video = reader.read_video(content)
    assert video.size == (16, 32) == reader.outline_video(content).size
    shown = np.asarray(video.frames[0]).mean(-1)
    assert shown[:, :7].mean() > 200 > 50 > shown[:, 9:].mean()


def test_an_outline_has_the_number_size_and_rate_of_the_frames(reader, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    for entry in (film(20), ["a.png", encoded(picture()), picture()], {"frames": ["a.png"] * 3, "fps": 4}):
        read, outline = reader.read_video(entry), reader.outline_video(entry)
        assert [f.size for f in outline.frames] == [f.size for f in read.frames]
        assert outline.frames_per_second == read.frames_per_second
        with pytest.raises(AssertionError, match="has no pixels"):
            outline.frames[0].load()


def test_lists_of_frames(tmp_path):
    reader = MediaReader((tmp_path,), VideoConfig(frames_per_second=3.0, max_frames=4))
    frames = [picture(seed=i) for i in range(7)]
    video = reader.read_video(frames[:4])
    assert all(map(same, video.frames, frames)) and video.frames_per_second == 3.0
    video = reader.read_video([encoded(frame) for frame in frames])
    assert all(map(same, video.frames, frames[::2])) and video.frames_per_second == 1.5
    video = reader.read_video({"video": frames[:2], "sample_fps": 0.5})
    assert video.frames_per_second == 0.5


@pytest.mark.parametrize(
    "entry, message",
    [
        ([], "has no frames"),
        ([picture((8, 6)), picture((6, 8))], "must all have the same size, not 6 x 8 and 8 x 6"),
        ([picture(), "gone.png"], "no file gone.png"),
        ({"frames": [picture()], "fps": 0}, "fps is 0; a number above 0"),
        (b"no film", "cannot be decoded"),
        (picture(), "a video is a single image"),
        (film(24)[:1000], "cannot be decoded"),
        ("gone.mp4", "no file gone.mp4"),
        ("https://example.org/a.mp4", "is on the network"),
        ("../a.mp4", "outside the data folder"),
    ],
)
def test_videos_that_cannot_be_read(reader, entry, message):
    for read in (reader.read_video, reader.outline_video, reader.check_video):
        with pytest.raises(RowProblem, match=message):
            read(entry)


def test_a_video_that_ends_early_is_detected_only_by_decoding(reader):
    """The index at the start of the file lists all frames; the data of half of them are missing."""
    content = film(24, kind="mkv")
    broken = content[: len(content) * 6 // 10]
    reader.check_video(broken)
    with pytest.raises(RowProblem, match=r"ends early: only \d of 6|cannot be decoded"):
        reader.read_video(broken)


def test_without_pyav_only_files_are_rejected(reader, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoSupportMissing, match=r"pip install 'vicur\[video\]'"):
        reader.read_video(film(4))
    assert len(reader.read_video([picture(), picture()]).frames) == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VideoConfig(frames_per_second=0.0), "frames_per_second must be above 0"),
        (lambda: VideoConfig(min_frames=9, max_frames=8), r"min_frames \(9\) must be at most"),
        (lambda: Video((), 1.0), "at least one frame"),
        (lambda: Video((picture(),), 0.0), "frames_per_second above 0"),
    ],
)
def test_invalid_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def grey(values, dtype) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


@pytest.mark.parametrize(
    "image, expected",
    [
        (grey([0, 51, 255], np.int32), [0, 51, 255]),
        (grey([0, 819, 4095], np.uint16), [0, 51, 255]),
        (grey([0, 13107, 65535], np.uint16), [0, 51, 255]),
        (grey([0, 13107, 65535], np.int32), [0, 51, 255]),
        (grey([0, 429496729, 2147483647], np.int32), [0, 25, 127]),
        (grey([-1000, -400, 2000], np.int32), [0, 51, 255]),
        (grey([0, 0.2, 1.0], np.float32), [0, 51, 255]),
        (grey([0, 51, 255.0], np.float32), [0, 51, 255]),
        (grey([-1, 0.0, 1], np.float32), [0, 128, 255]),
        (grey([0, np.nan, 1], np.float32), [0, 0, 255]),
        (grey([0, 0, 0], np.int32), [0, 0, 0]),
    ],
)
def test_grey_images_of_any_depth(reader, image, expected):
    result = reader.read_image(image)
    assert [result.getpixel((x, 0)) for x in range(3)] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_bare_base64(reader, kind):
    """Also with line breaks, in the URL-safe alphabet and without padding; a text is not an image."""
    content = encoded(picture((16, 16)), kind)
    text = base64.b64encode(content).decode()
    broken = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for form in (text, broken, base64.urlsafe_b64encode(content).decode().rstrip("="), {"bytes": text}):
        assert same(reader.read_image(form), reader.read_image(content))
    other = base64.b64encode(b"these are words, and no picture of anything at all").decode()
    with pytest.raises(RowProblem, match="there is no file"):
        reader.read_image(other)


@pytest.mark.parametrize(
    "asked, size",
    [
        ({"max_pixels": 100}, (14, 7)),
        ({"min_pixels": 3200}, (80, 40)),
        ({"min_pixels": "100", "max_pixels": 1000.0}, (40, 20)),
        ({"resized_width": 30, "resized_height": 10}, (30, 10)),
    ],
)
def test_the_size_that_a_row_asks_for(reader, asked, size):
    entry = {"image": picture((40, 20)), **asked}
    assert reader.read_image(entry).size == reader.image_size(entry) == size
    film_entry = {"video": [picture((40, 20))] * 3, **asked}
    assert reader.read_video(film_entry).size == reader.outline_video(film_entry).size == size


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"max_pixels": "many"}, "max_pixels is 'many'; a number above 0"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"min_pixels": 9, "max_pixels": 8}, r"min_pixels \(9\) is above max_pixels \(8\)"),
        ({"resized_width": 9}, "only one of resized_width and resized_height is set"),
        ({"min_pixels": 1e12}, "more than max_raw_pixels"),
    ],
)
def test_invalid_sizes(reader, asked, message):
    for read in (reader.read_image, reader.image_size):
        with pytest.raises(RowProblem, match=message):
            read({"image": picture(), **asked})


def animated(kind: str, durations: list[int]) -> bytes:
    """Frame i is grey with value 10 i."""
    frames = [Image.new("RGB", (24, 16), (10 * i,) * 3) for i in range(len(durations))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=durations, **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_are_videos_of_their_own_times(reader, tmp_path, kind):
    """Eight frames of 250 ms at two frames per second; and frames displayed for 1, 1, 4 and 1 seconds."""
    name = f"a.{kind.lower()}"
    (tmp_path / name).write_bytes(animated(kind, [250] * 8))
    for entry in (name, [name], {"video": name}, (tmp_path / name).read_bytes(), [{"path": name}]):
        video = reader.read_video(entry)
        assert shades(video) == [0, 2, 4, 7] and video.frames_per_second == pytest.approx(3 / 1.75)
        assert reader.outline_video(entry).size == video.size == (24, 16)
    slow = animated(kind, [1000, 1000, 4000, 1000])
    video = reader.read_video({"video": slow, "nframes": 4})
    assert shades(video) == [0, 2, 2, 3] and video.frames_per_second == pytest.approx(0.5)
    part = reader.read_video({"video": slow, "video_start": 1.5, "video_end": 6, "nframes": 2})
    assert shades(part) == [1, 2]


def test_one_still_image_is_a_video_of_one_frame(reader):
    for entry in ([picture()], [encoded(picture())], encoded(picture())):
        assert len(reader.read_video(entry).frames) == 1
        assert reader.read_video(entry).frames_per_second == 2.0


@pytest.mark.parametrize(
    "asked, expected, rate",
    [
        ({"nframes": 4}, [0, 8, 15, 23], 8 * 3 / 23),
        ({"nframes": 100}, list(range(24)), 8.0),
        ({"fps": 8}, list(range(24)), 8.0),
        ({"fps": 8, "max_frames": 2}, [0, 23], 8 / 23),
        ({"fps": "0.1", "min_frames": 3}, [0, 12, 23], 8 * 2 / 23),
        ({"video_start": 1, "video_end": 2, "fps": 8}, list(range(8, 17)), 8.0),
        ({"video_end": 0.5, "nframes": 2}, [0, 4], 2.0),
    ],
)
def test_settings_of_a_row(reader, asked, expected, rate):
    entry = {"video": film(24), **asked}
    video = reader.read_video(entry)
    assert shades(video) == expected and video.frames_per_second == pytest.approx(rate)
    assert len(reader.outline_video(entry).frames) == len(expected)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"fps": "auto"}, "fps is 'auto'; a number above 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 2, "nframes": 4}, r"both a rate \(fps\) and nframes"),
        ({"nframes": 2.5}, "nframes is 2.5; a whole number"),
        ({"min_frames": 9, "max_frames": 3}, r"min_frames \(9\) is above its max_frames \(3\)"),
        ({"video_start": 2, "video_end": 1}, "starts at 2 s and ends at 1 s"),
        ({"video_start": 60}, "lasts 3.0 s, and has no frame between"),
        ({"total_pixels": []}, r"total_pixels is \[\]"),
    ],
)
def test_invalid_settings_of_a_row(reader, asked, message):
    for read in (reader.read_video, reader.outline_video, reader.check_video):
        with pytest.raises(RowProblem, match=message):
            read({"video": film(24), **asked})


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
@pytest.mark.parametrize("limit", ["MOST_FRAMES", "MOST_ANIMATION_PIXELS"])
def test_an_animation_has_a_maximum_length(reader, monkeypatch, kind, limit):
    animation = animated(kind, [100] * 9)
    most = 9 if limit == "MOST_FRAMES" else 9 * 24 * 16
    monkeypatch.setattr(f"vicur.media.videos.{limit}", most)
    assert len(reader.read_video({"video": animation, "nframes": 2}).frames) == 2
    monkeypatch.setattr(f"vicur.media.videos.{limit}", most - 1)
    for use in (reader.read_video, reader.outline_video, reader.check_video):
        with pytest.raises(RowProblem, match="an animation has more than") as caught:
            use(animation)
        assert caught.value.kind == "media_size"
