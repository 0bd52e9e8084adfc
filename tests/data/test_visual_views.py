"""Views of regions, of other media, of blank and changed media: what they show, and to whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vicur.bad_rows import RowProblem
from vicur.data.sample import Privilege, Sample
from vicur.data.views import (
    Attempt,
    Augmented,
    Blind,
    Crop,
    Degraded,
    Erased,
    Hinted,
    Media,
    OrPlain,
    Plain,
    combined,
    in_hindsight,
    is_privileged,
    student_view,
    teacher_view,
    view_of,
)
from vicur.data.views.named import NAMED
from vicur.data.views.regions import LARGEST_RATIO, LEAST_SIDE, crop_area
from vicur.media.images import SizeOnly
from vicur.media.video import Video
from vicur.scoring.scorer import Scorer


def noise(size, seed=0):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def problem(*, images=1, frames=0, **privilege) -> Sample:
    """A problem with images of 96 x 64 pixels and a video of 2 frames a second."""
    pictures = tuple(noise((96, 64), seed) for seed in range(images))
    videos = (Video(tuple(noise((64, 64), 50 + i) for i in range(frames)), 2.0),) if frames else ()
    content = [{"type": "image"}] * images + [{"type": "video"}] * bool(frames)
    message = {"role": "user", "content": [*content, {"type": "text", "text": "What is there?"}]}
    return Sample("p", (message,), pictures, videos, privilege=Privilege(**privilege))


def tensors_of(prompt):
    return [prompt.input_ids, prompt.token_types, prompt.positions, *prompt.media.values()]


def same_tensors(scorer, first, second):
    ours, theirs = scorer.encoder.encode([first, second])
    return all(torch.equal(a, b) for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True))


# ------------------------------------------------------------------------------------- crop and erased


def test_a_crop_of_the_whole_image_is_the_plain_view(shared_student):
    whole = problem(regions=(((0.0, 0.0, 96.0, 64.0),),))
    assert same_tensors(Scorer(shared_student), Crop().show(whole), Plain().show(whole))
    part = problem(regions=(((10.0, 8.0, 90.0, 60.0),),))
    assert not same_tensors(Scorer(shared_student), Crop().show(part), Plain().show(part))


def test_a_crop_holds_the_pixels_of_its_boxes():
    sample = problem(images=2, regions=(((8.0, 4.0, 40.0, 30.0), (20.0, 10.0, 60.5, 40.0)), ()))
    cropped, whole = Crop().show(sample).images
    assert np.array_equal(np.asarray(cropped), np.asarray(sample.images[0])[4:40, 8:61])
    assert whole is sample.images[1]
    assert Crop(0.5).show(sample).images[0].size == (
        87,
        58,
    )  # 60.5 + 26.25 and 40 + 18; the rest ends at the edge


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=3),
    st.floats(0, 2),
)
def test_a_crop_holds_its_boxes_and_is_large_enough(width, height, fractions, margin):
    boxes = tuple(
        (min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height)
        for a, b, c, d in fractions
    )
    left, top, right, bottom = crop_area(boxes, (width, height), margin)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    for box in boxes:
        assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]
    assert right - left >= min(LEAST_SIDE, width) and bottom - top >= min(LEAST_SIDE, height)
    across, down = right - left, bottom - top
    assert across * LARGEST_RATIO >= down or across == width
    assert down * LARGEST_RATIO >= across or down == height


def test_erased_paints_the_regions_over_and_nothing_else(shared_student):
    sample = problem(images=2, regions=(((8.0, 4.0, 40.0, 30.0),), ()))
    first, second = Erased().show(sample).images
    before, after = np.asarray(sample.images[0]), np.asarray(first)
    inside = np.zeros((64, 96), dtype=bool)
    inside[4:30, 8:40] = True
    assert np.array_equal(after[~inside], before[~inside])
    assert (after[inside] == before.reshape(-1, 3).mean(0).round()).all()
    assert second is sample.images[1]
    assert keeps_tokens(shared_student, Erased(), sample)


def keeps_tokens(shared_student, view, sample):
    """Whether a view changes pixels and nothing else of a prompt."""
    scorer = Scorer(shared_student)
    plain, other = scorer.encode([sample], Plain())[0], scorer.encode([sample], view)[0]
    assert view.keeps_tokens and (plain.token_types > 0).any()
    assert all(
        torch.equal(other.media[name], tensor) == name.endswith("grid_thw")
        for name, tensor in plain.media.items()
    )
    return all(torch.equal(a, b) for a, b in zip(tensors_of(plain)[:3], tensors_of(other)[:3], strict=True))


@pytest.mark.parametrize("name", ["blank", "degraded(0.1)", "masked", "augmented", "erased"])
def test_views_that_change_pixels_keep_the_visual_tokens(shared_student, name):
    sample = problem(images=2, regions=(((8.0, 4.0, 40.0, 30.0),), ((0.0, 0.0, 96.0, 64.0),)))
    assert keeps_tokens(shared_student, view_of(name), sample)


def test_regions_are_those_of_the_problems_own_images():
    sample = problem(regions=(((8.0, 4.0, 40.0, 30.0),),), negative_images=(noise((50, 50)),))
    with pytest.raises(ValueError, match="needs the problem's own images, whole"):
        combined([Crop(), Erased()]).show(sample)
    with pytest.raises(ValueError, match=r"cannot be combined with images\(...\)"):
        view_of("images(negative) + crop")
    with pytest.raises(ValueError, match="has no regions for the view crop"):
        Crop().show(problem())
    with pytest.raises(ValueError, match="margin of a region must be at least 0"):
        Crop(-0.1)


def test_crops_of_outlines_have_the_size_of_crops():
    sample = problem(regions=(((8.0, 4.0, 60.0, 40.0),),))
    outline = replace(sample, images=(SizeOnly((96, 64)),))
    for view in (Crop(), Crop(0.2), Erased(), Degraded()):
        assert view.show(outline).images[0].size == view.show(sample).images[0].size


# ---------------------------------------------------------------------------------------- other media


def test_privileged_images_stand_where_the_problems_own_stood(shared_student):
    crops = (noise((64, 64), 7), noise((96, 64), 8))
    sample = replace(problem(), privilege=Privilege(images=crops, negative_images=(noise((64, 32), 9),)))
    shown = Media("privileged").show(sample)
    assert shown.images == crops
    assert [part["type"] for part in shown.messages[0]["content"]] == ["image", "image", "text"]
    assert Media("negative").show(sample).images == sample.privilege.negative_images
    assert len(Scorer(shared_student).encode([sample], Media("privileged"))[0].media["image_grid_thw"]) == 2
    with pytest.raises(ValueError, match="has no privileged images or videos"):
        Media("privileged").show(problem())


def test_media_for_a_problem_without_any():
    text = replace(problem(images=0), privilege=Privilege(images=(noise((64, 64)),)))
    shown = Media("privileged").show(text)
    assert [part["type"] for part in shown.messages[0]["content"]] == ["image", "text"]


def test_frames_of_the_clips_keep_their_times(shared_student):
    sample = problem(images=0, frames=8, clips=(((0.9, 1.6), (3.4, 3.4)),))
    (video,) = view_of("frames").show(sample).videos
    assert video.seconds == (1.0, 1.5, 3.5)  # of the frames at 0, 0.5, ... 3.5 s; the last is the nearest
    assert video.frames == tuple(sample.videos[0].frames[i] for i in (2, 3, 7))
    (few,) = view_of("frames + frames(2)").show(sample).videos
    assert few.seconds == (1.0, 3.5)
    (even,) = view_of("frames(2)").show(sample).videos
    assert len(even.frames) == 2 and not is_privileged(view_of("frames(2)"))
    text = shared_student.processor.tokenizer.decode(
        Scorer(shared_student).encode([sample], view_of("frames"))[0].input_ids
    )
    assert "<1.2 seconds>" in text and "<3.5 seconds>" in text  # of pairs of frames, as the model merges them
    with pytest.raises(ValueError, match="has no clue intervals"):
        view_of("frames").show(problem(frames=2))


def test_the_order_of_question_and_image():
    sample = problem(images=2)
    kinds = [part["type"] for part in view_of("question_first").show(sample).messages[0]["content"]]
    assert kinds == ["text", "image", "image"]
    hinted = view_of("question_first + cue").show(replace(sample, privilege=Privilege(cue="c")))
    assert [part.get("text", "*") for part in hinted.messages[0]["content"]] == [
        "What is there?",
        "\n[Hint]: c",
        "*",
        "*",
    ]
    assert view_of("image_first").show(sample) == Plain().show(sample)


def test_augmented_media_depend_on_sample_image_and_step_alone():
    sample = problem(images=2)
    view = Augmented(0.5)
    first, again = view.show(sample).images, view.show(sample).images
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    assert view.at_step(3).show(sample).images[0].tobytes() != first[0].tobytes()
    assert view.show(replace(sample, id="q")).images[0].tobytes() != first[0].tobytes()
    assert Augmented(0).show(sample).images[0].tobytes() == sample.images[0].tobytes()
    assert view_of("cue + augmented").at_step(3) == combined([Hinted("cue"), view.at_step(3)])


# --------------------------------------------------------------------------------- names and combinations


@pytest.mark.parametrize(
    "name",
    [
        *(
            "plain",
            "cue",
            "column:caption",
            "crop",
            "crop(0.25)",
            "erased(0.1)",
            "images(negative)",
            "frames",
        ),
        *("frames(4)", "blind", "blank", "degraded(0.5)", "masked(0.3, 8)", "augmented(0.2)", "verdict"),
        *("cue + crop", "teacher_prompt + images(privileged)", "cue + blind + question_first"),
    ],
)
def test_a_views_name_is_how_it_is_written(name):
    assert view_of(name).name == name and view_of(view_of(name).name) == view_of(name)


def test_texts_come_before_media_whatever_the_order():
    assert view_of("crop + cue") == view_of("cue + crop") == combined([Crop(), Hinted("cue")])
    assert view_of("crop+cue") == view_of("crop + cue") and view_of("column:a+b") == Hinted("column:a+b")
    assert view_of("plain + cue") == Hinted("cue") and combined([]) == Plain()
    sample = problem(cue="c", regions=(((8.0, 4.0, 60.0, 40.0),),))
    shown = view_of("crop + cue").show(sample)
    assert shown.messages == Hinted("cue").show(sample).messages
    assert shown.images[0].tobytes() == Crop().show(sample).images[0].tobytes()
    assert not view_of("crop + cue").applies(problem(cue="c"))
    assert teacher_view("crop + cue").show(problem(cue="c")) == Plain().show(problem(cue="c"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("cues", r"has no part 'cues' \(cue\?\): a view is plain, cue"),
        ("cue + corp", r"has no part 'corp' of 'cue \+ corp' \(crop\?\)"),
        ("degraded(2)", r"written degraded\(ratio\): A degraded view needs a ratio"),
        ("degraded(a)", r"written degraded\(ratio\): could not convert"),
        ("images", r"written images\(privileged\) or images\(negative\)"),
        ("images(good)", "neither privileged nor negative"),
        ("frames(0)", "at least 1 of them"),
        ("frames(2.5)", "not a whole number"),
        ("blind(1)", "written blind"),
        ("column:", "has no part"),
        ("", "has no part ''"),
    ],
)
def test_mistakes_in_a_view(text, message):
    with pytest.raises(ValueError, match=message):
        view_of(text)


def test_a_teacher_prompt_about_other_images():
    prompt = ({"role": "user", "content": [{"type": "image"}, {"type": "image"}]},)
    sample = replace(
        problem(), privilege=Privilege(teacher_prompt=prompt, images=(noise((9, 9)), noise((8, 8))))
    )
    with pytest.raises(RowProblem, match=r'2 image placeholder\(s\) for 1 .* "teacher_prompt \+ images'):
        view_of("teacher_prompt").show(sample)
    assert len(view_of("teacher_prompt + images(privileged)").show(sample).images) == 2
    inside = replace(sample, privilege=replace(sample.privilege, prompt_crops=(True, True)))
    assert view_of("teacher_prompt").show(inside).images == sample.privilege.images
    hinted = replace(inside, privilege=replace(inside.privilege, cue="c"))
    both = view_of("cue + teacher_prompt").show(hinted).messages[-1]["content"]
    assert both[-1] == {"type": "text", "text": "\n[Hint]: c"} and len(both) == 3


# ------------------------------------------------------------------------------- what students may see


ARGUMENTS = {"images": ("privileged",)}
ALL = {name: named.make(*ARGUMENTS.get(name, ())) for name, named in NAMED.items()} | {
    "images(negative)": view_of("images(negative)"),
    "frames(2)": view_of("frames(2)"),
    "column": view_of("column:note"),
}
words = st.text(min_size=1, max_size=20)


def privileged_in_every_way(text, seed):
    """A privilege in which everything depends on the arguments."""
    random = np.random.default_rng(seed)
    left, top = random.integers(0, 40, 2)
    return Privilege(
        answer=text,
        rationale=text,
        cue=text,
        teacher_prompt=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},),
        images=(noise((64, 64), seed),),
        videos=(Video((noise((64, 64), seed),), 1.0),),
        negative_images=(noise((32, 64), seed),),
        regions=(((float(left), float(top), left + 20.0, top + 20.0),),),
        clips=(((0.0, float(1 + seed % 3)),),),
    )


@given(words, words, st.integers(0, 99), st.integers(100, 199))
def test_no_privilege_of_any_kind_reaches_a_student(shared_student, text, other_text, seed, other_seed):
    """Every view that a student may have gives bit-identical tensors whatever the privilege; no other view
    does."""
    scorer = Scorer(shared_student)
    sample = replace(problem(frames=8), privilege=privileged_in_every_way(text, seed), meta={"note": text})
    note = f"{other_text}*" if other_text == text else other_text
    other = replace(
        sample,
        answer=note,
        privilege=privileged_in_every_way(note, other_seed),
        meta={"note": note},
        target_response=note,
    )
    for view in ALL.values():
        if in_hindsight(view):
            continue
        if not is_privileged(view):
            assert same_tensors(scorer, view.show(sample), view.show(other)), view.name
        elif view.name not in ("frames", "teacher_prompt"):  # these may agree, or take one more video
            assert view.show(sample) != view.show(other), view.name


@pytest.mark.parametrize("name", ALL)
def test_a_student_is_refused_every_privileged_view(name):
    written = ALL[name].name
    privileged = {"cue", "rationale", "answer", "teacher_prompt", "verdict", "solution", "crop", "erased"}
    privileged |= {"images", "images(negative)", "frames", "column"}
    assert is_privileged(ALL[name]) == (name in privileged)
    assert is_privileged(OrPlain(ALL[name])) == is_privileged(ALL[name])
    if name in privileged:
        with pytest.raises(ValueError, match="which only a teacher may see"):
            student_view(written, "student.view")
        with pytest.raises(ValueError, match="would show the student"):
            student_view(f"degraded + {written}", "student.view")
    else:
        assert student_view(written) == ALL[name]


# ------------------------------------------------------------------------------------------- hindsight


def test_a_teacher_may_see_what_became_of_the_response():
    sample = problem()
    said = lambda view, attempt: view.show(sample, attempt).messages[0]["content"][-1]["text"]  # noqa: E731
    assert said(view_of("verdict"), Attempt("3 cm", correct=False)) == (
        "\n[Attempt]: 3 cm\n[Verdict]: incorrect"
    )
    assert said(view_of("verdict"), Attempt("3 cm")) == "\n[Attempt]: 3 cm"
    assert said(view_of("solution"), Attempt("3 cm", False, "It is 4.")) == "\n[Solution]: It is 4."
    assert view_of("solution").show(sample, Attempt("3 cm")) == Plain().show(sample)
    both = view_of("verdict + crop")
    assert in_hindsight(both) and in_hindsight(OrPlain(both)) and not in_hindsight(Crop())
    assert view_of("verdict").show(sample) == Plain().show(sample)  # before there is a response
    assert not in_hindsight(Blind())
