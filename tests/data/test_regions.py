"""Boxes and clips in the forms in which data sets hold them, and the columns of the field."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.regions import BoxConfig, boxes_by_image, intervals_by_video, pixels
from vicur.data.sources import DataConfig, FileSource
from vicur.data.tables import ListTable
from vicur.data.views import Crop, view_of

BOX = [4.0, 2.0, 40.0, 30.0]


def png(size=(64, 48), seed=0) -> bytes:
    random = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def source_of(*rows, **settings) -> FileSource:
    return DataConfig(**settings).open(ListTable("a", (Path(),), list(rows)))


def row(**columns):
    return {"problem": "<image>?", "images": [png()], **columns}


@pytest.mark.parametrize(
    "value, images, expected",
    [
        (BOX, 1, [[BOX]]),
        ([BOX, BOX], 1, [[BOX, BOX]]),
        (json.dumps([BOX]), 1, [[BOX]]),
        (["AB", "7 cm", *BOX], 1, [[BOX]]),
        ([["AB", "7 cm", *BOX]], 1, [[BOX]]),
        ([{"bbox_2d": BOX, "label": "a cup"}], 1, [[BOX]]),
        ({"bbox_2d": BOX}, 1, [[BOX]]),
        ([[BOX, BOX]], 1, [[BOX, BOX]]),
        ([{"bbox": BOX, "image_id": 139}], 1, [[BOX]]),
        ([{"bbox": BOX, "image": "a.jpg"}], 1, [[BOX]]),
        (BOX, 0, []),
        ({}, 1, []),
        (" ", 1, []),
        ([{"bbox": BOX, "image": 1}, {"box": BOX, "image": 0}], 2, [[BOX], [BOX]]),
        ([[BOX], []], 2, [[BOX], []]),
        ([BOX[:0], [BOX, BOX]], 2, [[], [BOX, BOX]]),
        (None, 1, []),
        ("", 1, []),
        ([], 3, []),
    ],
)
def test_forms_of_boxes(value, images, expected):
    assert boxes_by_image(value, images) == expected


@pytest.mark.parametrize(
    "value, images, message",
    [
        (7, 1, "regions are a int"),
        ("a cup", 1, "regions are a str"),
        ([1, 2, 3], 1, "not a list of boxes of four numbers"),
        ([BOX, [1, 2]], 1, "not a list of boxes of four numbers"),
        ([BOX, {"bbox": BOX}], 1, "mix objects and lists"),
        ([{"bbox": BOX}], 2, "names the image None of 2"),
        ([{"bbox": BOX, "image": 2}], 2, "names the image 2 of 2"),
        ([{"label": "a cup"}], 1, "not a list of boxes"),
        ([BOX, BOX], 2, "must be a list of boxes for each"),
        ([True, 1, 2, 3], 1, "not a list of boxes"),
    ],
)
def test_what_is_not_a_box(value, images, message):
    with pytest.raises(RowProblem, match=message):
        boxes_by_image(value, images)


def test_units_and_formats_of_boxes():
    size = (200, 100)
    expected = (20.0, 10.0, 120.0, 60.0)
    assert pixels([20, 10, 120, 60], size, BoxConfig()) == expected
    assert pixels([20, 10, 100, 50], size, BoxConfig("xywh")) == expected
    assert pixels([0.1, 0.1, 0.6, 0.6], size, BoxConfig(unit="fractions")) == pytest.approx(expected)
    assert pixels([100, 100, 600, 600], size, BoxConfig(unit="thousandths")) == pytest.approx(expected)
    assert pixels([-1, 0, 201, 100.5], size, BoxConfig()) == (0, 0, 200, 100)  # cut off at the edge


@pytest.mark.parametrize(
    "box, message",
    [
        ([0.1, 0.1, 0.6, 0.6], "spans less than a pixel; set data.boxes.unit"),
        ([100, 100, 600, 600], "lies outside it; set data.boxes.format or data.boxes.unit"),
        ([20, 10, 20, 60], "spans nothing"),
        ([20, 60, 40, 10], "spans nothing"),
        ([float("nan"), 0, 1, 1], "spans nothing"),
        ([0, 0, float("inf"), 1], "spans nothing"),
        (["a", 0, 1, 1], "is not four numbers"),
        ([10**400, 0, 1, 1], "is not four numbers"),
    ],
)
def test_boxes_that_fit_no_image(box, message):
    with pytest.raises(RowProblem, match=message):
        pixels(box, (200, 100), BoxConfig())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox", "image", "a"]), inner)
    ),
    max_leaves=12,
)


@given(json_values, st.integers(0, 3))
def test_any_value_is_read_or_refused(value, count):
    for read in (boxes_by_image, intervals_by_video):
        try:
            by_medium = read(value, count)
        except RowProblem:
            continue
        assert by_medium == [] or len(by_medium) == count


@pytest.mark.parametrize(
    "value, videos, expected",
    [
        ([1, 2.5], 1, [[(1.0, 2.5)]]),
        ([[1, 2], [4, 5]], 1, [[(1.0, 2.0), (4.0, 5.0)]]),
        ("[[1, 2]]", 1, [[(1.0, 2.0)]]),
        ([[1, 2], [[4, 5], [6, 6]]], 2, [[(1.0, 2.0)], [(4.0, 5.0), (6.0, 6.0)]]),
        (None, 1, []),
    ],
)
def test_forms_of_clips(value, videos, expected):
    assert intervals_by_video(value, videos) == expected


def test_clips_that_end_before_they_start():
    with pytest.raises(RowProblem, match="from 3 to 2 s"):
        intervals_by_video([3, 2], 1)
    with pytest.raises(RowProblem, match="2 videos; clips must be a list of intervals for each"):
        intervals_by_video([[1, 2]], 2)


# ------------------------------------------------------------------------------------ columns of a row


@pytest.mark.parametrize("column", ["regions", "boxes", "bbox", "bboxs", "bbox_2d", "cue_boxes"])
def test_columns_of_boxes(column):
    source = source_of(row(**{column: [BOX]}))
    assert source[0].privilege.regions == ((tuple(BOX),),) and source.notes == []
    assert source[0].meta[column] == [BOX]  # also for reward functions
    assert source.outline(0).privilege == source[0].privilege


def test_boxes_refer_to_the_file_and_regions_to_the_image_that_is_kept():
    entry = {"bytes": png((80, 60)), "max_pixels": 1200}  # kept at 40 x 30
    source = source_of(row(images=[entry], bbox=[8, 12, 40, 30]))
    assert source[0].images[0].size == (40, 30)
    assert source[0].privilege.regions == (((4.0, 6.0, 20.0, 15.0),),)


def test_boxes_follow_images_that_the_text_reorders():
    columns = {"images": [png((64, 48)), png((50, 40))], "bbox": [[BOX], [[0, 0, 9, 9]]]}
    source = source_of({"problem": "<image 2> and <image 1>?", **columns})
    assert [image.size for image in source[0].images] == [(50, 40), (64, 48)]
    assert source[0].privilege.regions == (((0.0, 0.0, 9.0, 9.0),), (tuple(BOX),))


def test_an_image_that_is_shown_twice_has_its_boxes_twice():
    source = source_of({"problem": "<image 1>, again <image 1>?", "images": [png()], "bbox": [BOX]})
    assert source[0].privilege.regions == ((tuple(BOX),),) * 2


def test_a_column_with_the_name_of_regions_may_hold_something_else():
    rows = [row(bbox="a label"), row(bbox=[500, 0, 900, 40]), row(bbox=BOX), row(bbox=None)]
    source = source_of(*rows)
    assert [bool(sample.privilege.regions) for sample in source] == [False, False, True, False]
    (note,) = source.notes
    assert note.startswith(
        "regions are not read from the column bbox in 2 rows, the first: regions are a str"
    )
    assert source.applies(Crop()) == [False, True, True, False]  # by the text alone
    with pytest.raises(ValueError, match="2 of 4 rows are bad"):
        source_of(*rows, columns={"regions": "bbox"})
    ignored = source_of(*rows, columns={"regions": ""})
    assert not any(sample.privilege.regions for sample in ignored) and ignored.notes == []


def test_the_row_of_v_zero():
    """Its columns (arXiv 2606.25319): prompts and images of teacher and contrast beside the student's."""
    chat = lambda text: [{"role": "user", "content": text}]  # noqa: E731
    data = {
        "prompt": chat("<image>What is it?"),
        "images": [png()],
        "teacher_raw_prompt": chat("<image><image>Look at the crop."),
        "teacher_images": [png(), png((40, 40), 1)],
        "teacher_neg_images": [png((40, 40), 2)],
    }
    sample = source_of(data)[0]
    shown = view_of("teacher_prompt + images(privileged)").show(sample)
    assert [image.size for image in shown.images] == [(64, 48), (40, 40)]
    assert [part["type"] for part in shown.messages[0]["content"]] == ["image", "image", "text"]
    negative = view_of("images(negative)").show(sample)
    assert [image.size for image in negative.images] == [(40, 40)]
    assert negative.messages == sample.messages


def sizes(images):
    return [image.size for image in images]


@pytest.mark.parametrize(
    "content",
    [
        "<image>A part of it: <crop>What is it?",
        [{"type": "image"}, {"type": "text", "text": "A part of it: <crop>What is it?"}],
        [{"type": "image", "image": png()}, {"type": "text", "text": "A part of it: <crop>What is it?"}],
    ],
)
def test_a_teacher_prompt_with_crops_beside_the_image(content):
    """V-Zero's launcher: <image> is an image of the student, <crop> one of the teacher's."""
    data = row(
        teacher_prompt=[{"role": "user", "content": content}],
        teacher_images=[png((40, 40), 1)],
        teacher_neg_images=[png((32, 36), 2)],
    )
    source = source_of(data)
    assert source.checked == source.decoded == 3
    sample = source[0]
    for view, crop in (("teacher_prompt", (40, 40)), ("teacher_prompt + images(negative)", (32, 36))):
        shown = view_of(view).show(sample)
        assert sizes(shown.images) == [(64, 48), crop] and shown.images[0] is sample.images[0]
        assert [part["type"] for part in shown.messages[0]["content"]] == ["image", "text", "image", "text"]
        assert [p["text"] for p in shown.messages[0]["content"] if "text" in p] == [
            "A part of it: ",
            "What is it?",
        ]
    both = view_of("teacher_prompt + images(privileged)").show(sample)
    assert both == view_of("teacher_prompt").show(sample)
    assert sizes(view_of("images(privileged)").show(sample).images) == [(40, 40)]


def test_other_than_one_negative_image_for_a_crop():
    data = row(
        teacher_prompt="<image>A <crop>?",
        teacher_images=[png((40, 40), 1)],
        teacher_neg_images=[png((32, 36), 2), png((32, 36), 3)],
    )
    shown = view_of("teacher_prompt + images(negative)").show(source_of(data)[0])
    assert sizes(shown.images) == [(64, 48), (32, 36), (32, 36)]
    assert [part["type"] for part in shown.messages[0]["content"]] == [
        "image",
        "text",
        "image",
        "image",
        "text",
    ]


def test_crops_beside_a_video_and_a_system_prompt():
    content = [{"type": "video"}, {"type": "text", "text": "Whole: <crop>?"}]
    data = {
        "problem": "<video>?",
        "videos": [[png((16, 16), 4), png((16, 16), 5)]],
        "teacher_prompt": [{"role": "user", "content": content}],
        "teacher_images": [png((40, 40), 1)],
    }
    sample = source_of(data, system_prompt="Use <crop>.")[0]
    system, question = view_of("teacher_prompt").show(sample).messages
    assert system["content"] == [{"type": "text", "text": "Use <crop>."}]
    assert [part["type"] for part in question["content"]] == ["video", "text", "image", "text"]


def test_a_crop_that_is_closed_is_a_tag():
    data = row(teacher_prompt="<image>Answer as <crop>x, y</crop>.")
    (question,) = view_of("teacher_prompt").show(source_of(data)[0]).messages
    assert question["content"][1]["text"] == "Answer as <crop>x, y</crop>."


def test_a_teacher_prompt_with_crops_alone():
    data = row(teacher_prompt="<crop>?", teacher_images=[png((40, 40), 1)])
    assert sizes(view_of("teacher_prompt").show(source_of(data)[0]).images) == [(40, 40)]


@pytest.mark.parametrize(
    "columns, reason",
    [
        ({"teacher_images": []}, r"has 1 <crop> placeholder\(s\) for 0 image\(s\) for the teacher"),
        ({"teacher_images": [png(), png()]}, r"has 1 <crop> placeholder\(s\) for 2 image"),
        ({"teacher_prompt": "<image><image><crop>?"}, r"has 2 <image> placeholder\(s\) for 1 image"),
        ({"teacher_prompt": "<image 1><crop>?"}, "beside placeholders with a number"),
        (
            {
                "teacher_prompt": [
                    {"role": "user", "content": [{"type": "image", "image": png((9, 9))}, "<crop>"]}
                ]
            },
            "<crop> beside an image of its own",
        ),
    ],
)
def test_crops_that_do_not_fit(columns, reason):
    data = row(**{"teacher_prompt": "<image><crop>?", "teacher_images": [png()]} | columns)
    with pytest.raises(ValueError, match=reason):
        source_of(data)


def test_the_row_of_vision_opd():
    data = row(bbox_images=[png((40, 40), 1)], teacher_prompt="<image>?", null_images=[png((64, 48), 2)])
    sample = source_of(data)[0]
    assert view_of("images(privileged)").show(sample).images == sample.privilege.images
    assert sample.privilege.images[0].size == (40, 40)
    assert sample.privilege.negative_images[0].size == (64, 48)


def test_a_broken_privileged_image_makes_its_row_bad():
    source = source_of(row(), row(teacher_images=["gone.png"]), bad_rows="skip")
    assert len(source) == 1 and source.bad_rows[0].kind == "missing_media"
    assert len(source_of(row(teacher_images=["gone.png"]), columns={"privileged_images": ""})) == 1


def test_a_problem_without_its_media_has_no_regions():
    source = source_of(row(bbox=BOX, teacher_images=[png()]))
    bare = source[0].without_media()
    assert not bare.images and not bare.privilege.regions and not bare.privilege.images
