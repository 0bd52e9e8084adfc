"""The sink's attention: a module that looks for one thing lights it, wherever it is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.diagnostics.attention import cells_in_boxes, mass_in_boxes, sink_attention
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.media.video import Video

GREY, WHITE = (90, 90, 90), (255, 255, 255)
SIDE = 16
"""Pixels of the side of an image that is one visual token."""


def spotted(size, spot=None) -> Image.Image:
    """A grey image with a white cell: (left, top, width, height) in pixels."""
    image = Image.new("RGB", size, GREY)
    if spot is not None:
        left, top, width, height = spot
        image.paste(WHITE, (left, top, left + width, top + height))
    return image


def problem(images=(), videos=(), text="What?", first="media") -> Sample:
    media = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
    words = [{"type": "text", "text": text}]
    content = media + words if first == "media" else words + media
    return Sample("p", ({"role": "user", "content": content},), tuple(images), tuple(videos))


@pytest.fixture(scope="module")
def seeker(shared_student):
    """A module that looks for white at layer 0, built by hand.

    Its vision tower and its first decoder layer mix no tokens, so that a visual token depends on its own
    pixels. A head's query and key are rank one: score = scale * (direction of white - grey) . state.
    """
    loaded = copy.deepcopy(shared_student)
    model = loaded.model.model
    for block in model.visual.blocks:
        block.attn.proj.weight.data.zero_()
        block.attn.proj.bias.data.zero_()
    model.language_model.layers[0].self_attn.o_proj.weight.data.zero_()
    white, grey = (states_after_layer_0(loaded, Image.new("RGB", (96, 96), c)) for c in (WHITE, GREY))
    sink = white[0]
    direction = (white[1:] - grey[1:]).mean(0)
    recovery = loaded.model.recovery
    module = recovery.layers["0"]
    head_size = len(sink) // module.heads
    up = torch.zeros(len(sink))
    up[::head_size] = 1.0
    with torch.no_grad():
        query = recovery.query_norm(sink)
        module.query.weight.copy_(torch.outer(up, query / query.dot(query)))
        module.key.weight.copy_(torch.outer(up, 60 * direction / direction.norm()))
    return loaded


def states_after_layer_0(loaded, image):
    """The states of the sink and of all visual tokens, as the module sees them at layer 0."""
    seen = {}
    forward = loaded.model.recovery.forward

    def spy(layer, hidden, plan):
        if layer == 0:
            norm = loaded.model.recovery.visual_norm
            visual = norm(hidden[plan.sink_sequence[:, None], plan.visual_column])[0]
            seen[layer] = torch.cat([hidden[plan.sink_sequence, plan.sink_column], visual])
        return forward(layer, hidden, plan)

    prompt = PromptEncoder.of(loaded).encode([Plain().show(problem([image]))])
    loaded.model.recovery.forward = spy
    with torch.no_grad():
        loaded.model(**build_sequences(prompt, [()], pad_id=0).model_inputs())
    del loaded.model.recovery.forward
    return seen[0]


def lit(maps, layer=0):
    """The pictures and cells with more than half of the attention."""
    return [
        (m.picture.kind, m.picture.index, m.picture.patch, *cell)
        for m in maps
        for cell in (m.at(layer) > 0.5).nonzero().tolist()
    ]


@pytest.mark.parametrize("row, column", [(0, 0), (1, 3), (2, 5), (3, 0)])
def test_the_patch_that_the_module_looks_at_is_lit(seeker, row, column):
    image = spotted((96, 64), (column * SIDE, row * SIDE, SIDE, SIDE))
    (maps,) = sink_attention(seeker, [problem([image])])
    assert maps[0].picture.shape == (4, 6)
    assert lit(maps) == [("image", 0, 0, row, column)]


@pytest.mark.parametrize(
    "size, limits, shape, factor",
    [
        ((192, 128), PixelLimits(max_pixels=96 * 64), (4, 6), 2.0),
        ((48, 32), PixelLimits(min_pixels=96 * 64), (4, 6), 0.5),
    ],
)
def test_the_patch_is_lit_where_the_image_was_resized(seeker, size, limits, shape, factor):
    side = int(factor * SIDE)
    image = spotted(size, (5 * side, 1 * side, side, side))
    (maps,) = sink_attention(seeker, [problem([image])], limits)
    assert maps[0].picture.shape == shape
    assert lit(maps) == [("image", 0, 0, 1, 5)]


def test_only_the_image_with_the_patch_is_lit(seeker):
    """Three images of different shapes: the white cell is in the second."""
    images = [spotted((64, 64)), spotted((96, 64), (32, 48, SIDE, SIDE)), spotted((32, 96))]
    (maps,) = sink_attention(seeker, [problem(images)])
    assert [m.picture.shape for m in maps] == [(4, 4), (4, 6), (6, 2)]
    assert lit(maps) == [("image", 1, 0, 3, 2)]


@pytest.mark.parametrize("patch", [0, 1, 2])
def test_only_the_frames_with_the_patch_are_lit(seeker, patch):
    """Six frames, of which two at a time are merged into a temporal patch."""
    frames = [spotted((96, 64), (64, 32, SIDE, SIDE) if i // 2 == patch else None) for i in range(6)]
    limits = PixelLimits(min_frame_pixels=96 * 64, max_frame_pixels=96 * 64)
    (maps,) = sink_attention(seeker, [problem(videos=[Video(tuple(frames), 2.0)])], limits)
    assert [(m.picture.patch, m.picture.shape) for m in maps] == [(i, (4, 6)) for i in range(3)]
    assert lit(maps) == [("video", 0, patch, 2, 4)]


def test_images_and_videos_in_the_order_of_the_prompt(seeker):
    """Video, image, video: the white cell is in the second video."""
    empty, last = spotted((64, 64)), spotted((64, 64), (16, 48, SIDE, SIDE))
    media = [{"type": kind} for kind in ("video", "image", "video")]
    sample = Sample(
        "mixed",
        ({"role": "user", "content": [*media, {"type": "text", "text": "What?"}]},),
        (empty,),
        (Video((empty, empty), 2.0), Video((empty, empty, last, last), 2.0)),
    )
    limits = PixelLimits(min_frame_pixels=64 * 64, max_frame_pixels=64 * 64)
    (maps,) = sink_attention(seeker, [sample], limits)
    names = [(m.picture.kind, m.picture.index, m.picture.patch) for m in maps]
    assert names == [("video", 0, 0), ("image", 0, 0), ("video", 1, 0), ("video", 1, 1)]
    assert lit(maps) == [("video", 1, 1, 3, 1)]


def test_every_head_has_its_own_map(seeker):
    """Only head 2 looks for white; the scores of the others are all 0, so their maps are even."""
    loaded = copy.deepcopy(seeker)
    module = loaded.recovery.layers["0"]
    rows = torch.arange(len(module.key.weight)) // (len(module.key.weight) // module.heads)
    module.key.weight.data[rows != 2] = 0.0
    (maps,) = sink_attention(loaded, [problem([spotted((96, 64), (80, 16, SIDE, SIDE))])])
    for head in range(4):
        expected = torch.full((4, 6), 0.0 if head == 2 else 1 / 24)
        expected[1, 5] = 1.0 if head == 2 else 1 / 24
        torch.testing.assert_close(maps[0].at(0, head), expected, atol=0.1 if head == 2 else 1e-6, rtol=0)


def test_all_maps_of_a_problem_together_are_a_distribution(shared_student, samples):
    several = problem([samples[0].images[0], spotted((96, 64))], [Video((spotted((64, 64)),) * 4, 2.0)])
    for maps in sink_attention(shared_student, [*samples[:2], several]):
        for layer in (0, 2):
            per_head = sum(m.layers[layer].sum((1, 2)) for m in maps)
            torch.testing.assert_close(per_head, torch.ones(4))
            assert all((m.layers[layer] > 0).all() for m in maps)
            heads = torch.stack([maps[0].at(layer, head) for head in range(4)])
            torch.testing.assert_close(maps[0].at(layer), heads.mean(0))
        assert list(maps[0].layers) == [0, 2]
        torch.testing.assert_close(maps[0].mean(), (maps[0].at(0) + maps[0].at(2)) / 2)
        torch.testing.assert_close(maps[0].mean(3), (maps[0].at(0, 3) + maps[0].at(2, 3)) / 2)


def difference(first, other):
    return {
        layer: max(
            float((a.layers[layer] - b.layers[layer]).abs().max()) for a, b in zip(first, other, strict=True)
        )
        for layer in first[0].layers
    }


LONGER = "Which number is beside the red segment, and how much is it more than the blue one?"


def test_the_question_changes_no_map_where_the_image_precedes_it(shared_student, samples):
    """Exactly: nothing that the sink sees comes after the image."""
    image = samples[0].images
    maps = sink_attention(shared_student, [problem(image), problem(image, text=LONGER)])
    assert difference(*maps) == {0: 0.0, 2: 0.0}


def test_the_question_changes_the_maps_where_it_precedes_the_image(shared_student, samples):
    image = samples[0].images
    questions = [problem(image, text=text, first="words") for text in ("What?", LONGER)]
    assert all(value > 1e-6 for value in difference(*sink_attention(shared_student, questions)).values())


def test_models_without_a_module_have_no_sink_attention(base, samples):
    with pytest.raises(ValueError, match="no cue recovery module"):
        sink_attention(base, samples[:1])


def test_problems_without_media_have_no_sink_attention(shared_student, samples):
    bare = replace(samples[0].without_media(), id="words")
    with pytest.raises(ValueError, match="Problem words has neither an image nor a video"):
        sink_attention(shared_student, [bare])


def test_share_in_boxes_on_a_worked_example():
    """An image of 30 x 20 pixels in 2 x 3 cells of 10 x 10. The box covers the centres (15, 5) and (25, 5) of
    the upper row, and only the edge of a cell below: .2 + .3; the other, the centre (5, 15): .1."""
    attention = torch.tensor([[0.15, 0.2, 0.3], [0.1, 0.05, 0.2]])
    boxes = [(12.0, 1.0, 30.0, 14.0), (0.0, 12.0, 8.0, 20.0)]
    assert mass_in_boxes(attention, boxes, (30, 20)) == pytest.approx(0.6)
    inside = [[False, True, True], [True, False, False]]
    assert cells_in_boxes((2, 3), boxes, (30, 20)).tolist() == inside
    assert mass_in_boxes(attention, [], (30, 20)) == 0.0
