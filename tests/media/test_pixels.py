"""Sizes of images and frames as the model sees them: limits, true times, and the processor's own numbers."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen3_vl import processing_qwen3_vl, video_processing_qwen3_vl

from vicur.data.sample import Sample
from vicur.data.views import Degraded, Masked, Plain, Shown
from vicur.encoding.prompts import PromptEncoder
from vicur.media.pixels import PixelLimits, VisualSizes
from vicur.media.video import Video

SIDE = 16
"""Pixels a side of the tiny processor's visual token."""

sides = st.integers(1, 300)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 200 * min(size))


def picture(size, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def film(count, size, rate=2.0) -> Video:
    return Video(tuple(picture(size, i) for i in range(count)), rate)


def encoder(base, limits=None) -> PromptEncoder:
    return PromptEncoder(base.processor, base.model.model.get_rope_index, limits)


def shown(images=(), videos=()) -> Shown:
    content = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
    message = {"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}
    return Shown((message,), tuple(images), tuple(videos))


def encode(encoder, **media):
    return encoder.encode([shown(**media)])[0]


@given(sizes, st.integers(1, 100), st.integers(0, 100))
def test_images_have_as_many_tokens_as_the_limits_allow(shared_student, size, low, more):
    """A token is 16 x 16 pixels. An image cannot have less than one."""
    limits = PixelLimits(min_pixels=low * SIDE**2, max_pixels=(low + more) * SIDE**2)
    prompt = encode(encoder(shared_student, limits), images=[picture(size)])
    tokens = int((prompt.token_types == 1).sum())
    # Rounding to whole tokens may miss a narrow range on either side: (1, 1) between 2 and 2 tokens has 4.
    if more >= low + 2 * max(1, (max(size) / min(size)) ** 0.5 * low**0.5):
        wide = max(size) / min(size) > low + more  # thinner than a row of single tokens can show
        assert low <= tokens
        assert tokens <= low + more or wide
    assert tokens == encoder(shared_student, limits).sizes.image_tokens(size)


def test_limits_by_hand(base):
    """160 x 80 pixels are 10 x 5 tokens. At most 3,200 pixels: half as long and wide, 5 x 2 (rounded down);
    at least 51,200: twice as long and wide."""
    for limits, tokens in (
        (None, 50),
        (PixelLimits(max_pixels=3200), 10),
        (PixelLimits(min_pixels=51_200), 200),
    ):
        prompt = encode(encoder(base, limits), images=[picture((160, 80))])
        assert int((prompt.token_types == 1).sum()) == tokens
        assert len(prompt.media["pixel_values"]) == 4 * tokens


@pytest.mark.parametrize("counts", [(2,), (4,), (8,), (2, 8), (1, 5)])
def test_limits_on_frames_hold_for_videos_of_any_length(base, counts):
    """Frames of 160 x 80 pixels with at most 3,200: 5 x 2 tokens for each two frames."""
    limits = PixelLimits(max_frame_pixels=3200)
    prompt = encode(encoder(base, limits), videos=[film(count, (160, 80)) for count in counts])
    assert prompt.media["video_grid_thw"].tolist() == [[-(-count // 2), 4, 10] for count in counts]
    limits = PixelLimits(min_frame_pixels=51_200)
    prompt = encode(encoder(base, limits), videos=[film(count, (160, 80)) for count in counts])
    assert prompt.media["video_grid_thw"].tolist() == [[-(-count // 2), 20, 40] for count in counts]


@given(sizes, st.integers(1, 9), st.integers(4, 100))
@example((160, 80), 5, 46)
def test_no_frame_exceeds_its_limit(processor, size, count, tokens):
    """Also for an odd number of frames, which the processor rounds when it bounds all frames together."""
    result = VisualSizes(processor, PixelLimits(max_frame_pixels=tokens * SIDE**2)).frame_tokens(count, size)
    assert result <= tokens or max(size) / min(size) > tokens


def test_limits_on_images_do_not_touch_frames_and_the_other_way_round(base):
    limits = PixelLimits(max_pixels=3200)
    prompt = encode(encoder(base, limits), images=[picture((160, 80))], videos=[film(2, (160, 80))])
    assert (prompt.media["image_grid_thw"].tolist(), prompt.media["video_grid_thw"].tolist()) == (
        [[1, 4, 10]],
        [[1, 10, 20]],
    )


# transformers takes a side of 1 or 3 pixels for the channels; ours reach it as channels first.
@given(sizes.filter(lambda size: min(size) > 3), st.integers(2, 12))
def test_frames_without_limits_are_the_processors_own(shared_student, size, count):
    """The same number of pixels, with the same values, as from the processor itself."""
    own = shared_student.processor.video_processor(
        videos=[list(film(count, size).frames)],
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        return_tensors="pt",
    )
    prompt = encode(encoder(shared_student), videos=[film(count, size)])
    assert torch.equal(prompt.media["video_grid_thw"], own["video_grid_thw"])
    assert torch.equal(prompt.media["pixel_values_videos"], own["pixel_values_videos"])


@given(
    sizes.filter(lambda size: min(size) > 3),
    st.integers(1, 6),
    st.integers(1, 60_000),
    st.integers(0, 120_000),
)
@example((128, 80), 2, 10_000, 0)  # 10,240 pixels a frame are within 1.05 times 10,000
def test_frame_sizes_of_processors_with_other_bounds(processor, size, count, fewest, more):
    """The reference's cap leaves each frame at least 1.05 times the whole video's lower bound."""
    bounds = {"shortest_edge": fewest, "longest_edge": fewest + more}
    own = processor.video_processor.__class__(size=bounds, patch_size=8, merge_size=2, temporal_patch_size=2)
    frames = [[Image.new("RGB", size)] * max(count, 2)]
    grid = own(frames, do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt")
    sizes_of = VisualSizes(SimpleNamespace(image_processor=None, video_processor=own), PixelLimits())
    height, width = sizes_of.frame_size(count, size)
    assert grid["video_grid_thw"].tolist() == [[sizes_of.frame_groups(count), height // 8, width // 8]]


def test_a_long_video_shares_its_budget(base):
    """The tiny processor's 512 x 512 pixels over 16 frames: 128 x 128 each, 8 x 8 tokens."""
    prompt = encode(encoder(base), videos=[film(16, (400, 400))])
    assert prompt.media["video_grid_thw"].tolist() == [[8, 16, 16]]


@pytest.mark.parametrize(
    "count, rate, times",
    [(4, 2.0, ["0.2", "1.2"]), (3, 1.0, ["0.5", "2.0"]), (4, 0.5, ["1.0", "5.0"]), (1, 1.0, ["0.0"])],
)
def test_the_model_reads_the_true_times(base, count, rate, times):
    """Two frames are one group, labelled with their mean time. A single frame is shown twice."""
    prompt = encode(encoder(base), videos=[film(count, (32, 32), rate)])
    text = base.processor.tokenizer.decode(prompt.input_ids)
    assert re.findall(r"<(\d+\.\d) seconds>", text) == times


def test_transformers_does_not_warn(base, monkeypatch):
    """It warns once per process through its logger, of guessed frame rates and of missing caps."""
    warnings_logged = []
    for module in (processing_qwen3_vl, video_processing_qwen3_vl):
        for level in ("warning", "warning_once"):
            monkeypatch.setattr(module.logger, level, lambda *message: warnings_logged.append(message))
    encode(encoder(base), images=[picture((32, 32))], videos=[film(3, (32, 32)), film(1, (64, 48))])
    assert warnings_logged == []


def test_views_keep_times_and_sizes(base):
    video = film(3, (48, 32), 0.7)
    sample = Sample("v", shown(videos=[video]).messages, videos=(video,))
    for view in (Degraded(), Masked()):
        (changed,) = view.show(sample).videos
        assert changed.frames_per_second == 0.7 and changed.size == video.size
        assert all(a.tobytes() != b.tobytes() for a, b in zip(changed.frames, video.frames, strict=True))
        assert torch.equal(
            encode(encoder(base), videos=[changed]).input_ids, encode(encoder(base), videos=[video]).input_ids
        )
    assert Plain().show(sample).videos == (video,)


def test_a_configured_bound_overrides_the_checkpoints(processor):
    """The tiny processor's bounds are 256 and 262,144 pixels."""
    for limits, bounds in (
        (PixelLimits(), (256, 262_144)),
        (PixelLimits(max_pixels=100), (100, 100)),
        (PixelLimits(min_pixels=300_000), (300_000, 300_000)),
        (PixelLimits(300, 400), (300, 400)),
    ):
        result = VisualSizes(processor, limits).image_bounds
        assert (result["shortest_edge"], result["longest_edge"]) == bounds


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PixelLimits(min_pixels=0), "min_pixels must be at least 1, not 0"),
        (lambda: PixelLimits(min_pixels=5, max_pixels=4), r"min_pixels \(5\) is above max_pixels \(4\)"),
        (lambda: PixelLimits(min_frame_pixels=5, max_frame_pixels=4), r"video\.min_pixels \(5\) is above"),
    ],
)
def test_invalid_limits(make, message):
    with pytest.raises(ValueError, match=message):
        make()
