"""Files from anybody: what is opened, what is decoded, and how much of it is held."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin, features

from vicur.bad_rows import RowProblem
from vicur.data.media import MediaReader
from vicur.data.sources import DataConfig
from vicur.media import videos
from vicur.media.images import KEPT_PIXELS
from vicur.media.videos import VideoConfig

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"] + ["AVIF"] * features.check("avif")


def picture(size=(60, 40)) -> Image.Image:
    """A smooth picture, so that different ways of shrinking it give nearly the same."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 255 // size[0], y * 255 // size[1], 0 * x + 90], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind, **options)
    return data.getvalue()


def film(container="mp4", codec="mpeg4", frames=6, size=(64, 48)) -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.full((size[1], size[0], 3), 10 * i, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = i, Fraction(1, 8)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return data.getvalue()


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder of media beside a film that is not in it."""
    (tmp_path / "secret.mp4").write_bytes(film())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.mp4").write_bytes(film())
    return tmp_path / "home"


def every_way(reader: MediaReader):
    yield from (reader.read_image, reader.image_size)
    yield from (reader.read_video, reader.outline_video, reader.check_video)


@pytest.mark.parametrize("suffix", ["png", "mp4", "jpg", "m3u8", "eps", "sdp"])
@pytest.mark.parametrize(
    "text",
    [
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret}\n",
        "ffconcat version 1.0\nfile a.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet><Representation mimeType="video/mp4"><BaseURL>{secret}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="{secret}"/></svg>',
    ],
    ids=["eps", "hls outside", "hls", "concat outside", "concat", "sdp", "dash", "svg"],
)
def test_files_that_lead_to_others_are_not_followed(home, monkeypatch, text, suffix):
    """Whatever their name, and whether they are files, bytes, or the frames of a video."""
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", None
    )  # a call would be a TypeError, with another message
    content = text.replace("{secret}", str(home.parent / "secret.mp4"))
    (home / f"x.{suffix}").write_text(content)
    for read in every_way(MediaReader((home,))):
        for entry in (f"x.{suffix}", content.encode(), {"path": f"x.{suffix}"}):
            with pytest.raises(RowProblem, match=r"not an image Pillow can read|cannot be decoded") as caught:
                read(entry)
            assert caught.value.kind == "unreadable_media" and "NoneType" not in str(caught.value)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "DDS", "TGA", "PCX", "SGI"])
def test_other_image_formats_are_refused(kind):
    reader = MediaReader((Path(),))
    content = encoded(picture((64, 64)), kind)
    for read in every_way(reader):
        with pytest.raises(RowProblem, match=r"JPEG or PNG or WEBP|cannot be decoded"):
            read(content)


@pytest.mark.parametrize("kind", FORMATS)
def test_usual_image_formats_are_read_as_before(kind):
    reader = MediaReader((Path(),))
    content = encoded(picture(), kind)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert reader.read_image(content).tobytes() == expected.tobytes()
    assert reader.image_size(content) == (60, 40)


@pytest.mark.parametrize(
    "container, codec",
    [
        *(("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")),
        *(("flv", "flv"), ("asf", "wmv2"), ("mpegts", "mpeg2video"), ("3gp", "mpeg4")),
    ],
)
def test_usual_video_formats_are_read(tmp_path, container, codec):
    content = film(container, codec)
    (tmp_path / "a.bin").write_bytes(content)
    reader = MediaReader((tmp_path,))
    for entry in (content, "a.bin"):
        assert len(reader.read_video(entry).frames) == 4 and reader.outline_video(entry).size == (64, 48)


def test_frames_are_measured_before_they_are_decoded():
    """By the header, and also when a film, or an animation, grows in the middle."""
    reader = MediaReader((Path(),), VideoConfig(frames_per_second=8.0), max_raw_pixels=64 * 48)
    assert len(reader.read_video(film("mpegts", "mpeg2video")).frames) > 3
    for container, codec in (("mp4", "mpeg4"), ("webm", "libvpx"), ("mpegts", "mpeg2video")):
        with pytest.raises(RowProblem, match="a video has 80 x 64 pixels, more than max_raw_pixels=3072"):
            reader.check_video(film(container, codec, size=(80, 64)))
    # The second half has a clock of its own, so that as many frames are expected as both have.
    growing = film("mpegts", "mpeg2video", 12) + film("mpegts", "mpeg2video", 12, (400, 300))
    with pytest.raises(RowProblem, match=r"cannot be decoded|more than max_raw_pixels|ends early"):
        reader.read_video({"video": growing, "nframes": 24})
    pages = [Image.new("RGB", size) for size in ((40, 30), (400, 300))]
    with pytest.raises(RowProblem, match="a frame of a video has 400 x 300 pixels"):
        reader.read_video(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


class OddError(Exception):
    pass


@pytest.mark.parametrize("error", [OddError(), AssertionError("x"), RecursionError("x"), StopIteration()])
def test_any_error_of_a_decoder_makes_a_bad_row(monkeypatch, error):
    def fails(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
    with pytest.raises(RowProblem, match=r"the image in the data cannot be decoded: \w") as caught:
        MediaReader((Path(),)).read_image(encoded(picture()))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_what_is_not_the_fault_of_a_row_is_passed_on(monkeypatch, error):
    def fails(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
    with pytest.raises(type(error)):
        MediaReader((Path(),)).read_image(encoded(picture()))


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())


@given(st.integers(20, 400), st.integers(20, 400), st.integers(10, 20_000), st.sampled_from(range(1, 9)))
def test_large_images_are_shrunk_to_the_bound(width, height, kept, orientation):
    """In the size that the header announces, upright, and like the image shrunk as a whole."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture((width, height)), "JPEG", quality=95, exif=exif)
    reader = MediaReader((Path(),), kept_pixels=kept)
    result = reader.read_image(content)
    whole = replace(reader, kept_pixels=KEPT_PIXELS).read_image(content)
    assert result.size == reader.image_size(content)
    if width * height <= kept:
        assert result.tobytes() == whole.tobytes()
        return
    assert kept * 0.5 < result.width * result.height <= kept or min(result.size) <= 4
    reference = whole.resize(result.size, Image.Resampling.BOX)
    assert difference(result, reference) < 255 / min(result.size) + 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("side", [64, 45, 17])
def test_large_images_of_any_mode(monkeypatch, mode, side):
    """Strips of few rows give what the whole image gives: for a whole divisor, exactly."""
    monkeypatch.setattr("vicur.media.images._STRIP", 300)
    image = ImageOps.grayscale(picture((128, 96))) if mode in ("1", "I;16", "I", "F") else picture((128, 96))
    image = (
        Image.fromarray(np.asarray(image).astype(np.uint16) * 16) if mode == "I;16" else image.convert(mode)
    )
    if mode == "RGBA":
        image.putalpha(ImageOps.grayscale(picture((128, 96))))
    reader = MediaReader((Path(),), kept_pixels=side * side * 3 // 4)
    for entry in (image, encoded(image, "TIFF")):
        result = reader.read_image(entry)
        whole = replace(reader, kept_pixels=KEPT_PIXELS).read_image(entry)
        factor = min(128 // result.width, 96 // result.height)
        expected = whole.reduce(factor) if factor > 1 else whole
        expected = expected.resize(result.size, Image.Resampling.BICUBIC)
        assert result.size == reader.image_size(entry) and result.tobytes() == expected.tobytes()


def test_a_large_image_in_memory_stays_as_it_is():
    image = Image.open(io.BytesIO(encoded(picture((256, 256)), "JPEG")))
    assert MediaReader((Path(),), kept_pixels=1000).read_image(image).size == (31, 31)
    assert image.size == (256, 256) and np.asarray(image).shape == (256, 256, 3)


def test_a_shrunk_image_does_not_become_too_thin():
    content = encoded(Image.new("L", (2000, 10)))
    for kept in range(100, 20_000, 37):
        width, height = MediaReader((Path(),), kept_pixels=kept).image_size(content)
        assert 1 <= width <= 200 * height and width * height <= max(kept, 200)


def test_images_larger_than_a_model_sees_are_shrunk():
    """9,000 x 9,000 pixels in a few kilobytes: at most 2**24 are kept."""
    content = encoded(Image.new("1", (9000, 9000)))
    assert MediaReader((Path(),)).image_size(content) == (4096, 4096)
    assert MediaReader((Path(),)).read_image(content).size == (4096, 4096)


def test_the_bound_follows_what_the_model_sees():
    assert DataConfig().kept_pixels == 2**24 == KEPT_PIXELS
    assert DataConfig(max_pixels=2**25).kept_pixels == 2**25
    assert DataConfig(max_pixels=2**22).kept_pixels == 2**24
    assert DataConfig(max_pixels=2**16).kept_pixels == 2**20


def test_the_frames_of_a_video_are_bounded_together(monkeypatch):
    """Four frames share 4,000 pixels, whether they come from a film, an animation or a list."""
    monkeypatch.setattr(videos, "KEPT_VIDEO_PIXELS", 4000)
    reader = MediaReader((Path(),), VideoConfig(frames_per_second=8.0, max_frames=4))
    frames = [picture((64, 48)).rotate(i) for i in range(4)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=125)
    for entry in (film(frames=4), animation, frames, [encoded(frame) for frame in frames]):
        video = reader.read_video(entry)
        assert len(video.frames) == 4 and video.size == (36, 27) == reader.outline_video(entry).size
    # What the data allow for each frame is never less than the model sees of it.
    wide = replace(reader, video=replace(reader.video, max_pixels=64 * 48))
    assert wide.read_video(film(frames=4)).size == (64, 48)


settings_of_rows = st.dictionaries(
    st.sampled_from([*videos.VIDEO_SETTINGS]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 20),
        st.sampled_from(
            [10**400, 10**9, 1e308, 5e-324, float("nan"), float("inf"), "2", "x", b"2", [], {}, 0.5]
        ),
        st.floats(),
    ),
    max_size=4,
)
FILM = film()
ANIMATION = encoded(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))], duration=90)


@settings(max_examples=60)
@given(settings_of_rows, st.sampled_from([FILM, ANIMATION, [encoded(picture())] * 3]))
def test_settings_of_any_value(asked, medium):
    """Numbers or not: a video, or a bad row; the outline tells the size either way."""
    reader = MediaReader((Path(),), max_raw_pixels=10**6)
    entry = {"video": medium, **asked}
    try:
        video = reader.read_video(entry)
    except RowProblem as problem:
        assert problem.reason
        return
    outline = reader.outline_video(entry)
    assert (outline.size, len(outline.frames)) == (video.size, len(video.frames))


@pytest.mark.parametrize("asked", [{"nframes": 10**9}, {"max_frames": 1e300}, {"min_frames": 2**16 + 1}])
def test_a_row_cannot_ask_for_any_number_of_frames(asked):
    """A header may claim to have them."""
    with pytest.raises(RowProblem, match="a whole number from 1 to 65536 was expected"):
        MediaReader((Path(),)).check_video({"video": FILM, **asked})
