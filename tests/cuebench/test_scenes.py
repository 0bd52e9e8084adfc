"""Scenes describe themselves truly: checked on pixels, by arithmetic and by counting."""

from __future__ import annotations

import collections
import math
import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from vicur.cuebench.draw import rasterise
from vicur.cuebench.generate import BUCKETS, majority_baseline, scenes
from vicur.cuebench.scenes import COLOURS, IN_DOMAIN, ChordsScene, SegmentsScene

CLEAN = replace(IN_DOMAIN, noise=0.0, break_probability=0.0, fading=0.0)


def take(family, split, count, seed=0):
    return list(islice(scenes(family, split, seed), count))


def ink(image, colour):
    """Pixels that are nearer to a colour than to any other and to the paper."""
    palette = np.array([*COLOURS.values(), (250, 250, 250)], dtype=float)
    distance = ((np.asarray(image, dtype=float)[:, :, None] - palette) ** 2).sum(-1)
    return distance.argmin(-1) == list(COLOURS).index(colour)


@pytest.mark.parametrize("index", range(20))
def test_cue_boxes_hold_all_ink_of_the_colour_they_name(index):
    scene = replace(take("segments", "train", 20)[index], style=CLEAN)
    image = scene.draw()
    for cue_box in scene.cue_boxes():
        left, top, right, bottom = (round(x) for x in cue_box.box)
        mask = np.zeros((64, 64), dtype=bool)
        mask[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
        found = ink(image, cue_box.name)
        strong = np.abs(np.asarray(image, dtype=float) - COLOURS[cue_box.name]).max(-1) < 25
        assert (found & mask).sum() >= 12
        assert not (strong & ~mask).any()


def test_boxes_hold_the_digit_that_the_cue_names():
    """The crop equals a fresh drawing of that digit and differs from every other digit's."""
    for scene in take("segments", "train", 10):
        clean = replace(scene, style=CLEAN)
        for cue_box in clean.cue_boxes():
            box = tuple(round(x) for x in cue_box.box)
            crop = np.asarray(clean.draw().crop(box), dtype=float)
            differences = {}
            for digit in range(1, 10):
                changed = tuple(
                    replace(s, digit=digit) if s.colour == cue_box.name else s for s in clean.segments
                )
                other = np.asarray(replace(clean, segments=changed).draw().crop(box), dtype=float)
                differences[str(digit)] = np.abs(crop - other).mean()
            assert differences.pop(cue_box.value) == 0
            assert min(differences.values()) > 3


def test_question_answer_cue_and_solution_agree():
    for scene in take("segments", "test", 200):
        first, second = (int(n) for n in re.findall(r" (\d)", scene.cue))
        assert scene.cue == f"The segments are {scene.first} {first} and {scene.second} {second}."
        expected = {"sum": first + second, "difference": abs(first - second)}
        assert int(scene.answer) == expected.get(scene.operation, max(first, second))
        assert scene.solution.startswith(f"I read {scene.first} {first} and {scene.second} {second}.")
        assert scene.solution.endswith(f"The answer is {scene.answer}.")
        assert scene.rationale.endswith(f"so the answer is {scene.answer}.")
        assert not re.search(r"\d", scene.question)


def test_same_seed_same_scenes_and_other_seed_others():
    ours, again, other = (take("segments", "train", 20, seed) for seed in (0, 0, 1))
    assert ours == again and ours != other
    assert np.array_equal(np.asarray(ours[0].draw()), np.asarray(again[0].draw()))


@pytest.mark.parametrize("family, count", [("segments", 300), ("chords", 40)])
def test_splits_are_disjoint_by_scene_hash(family, count):
    keys = {split: {s.key() for s in take(family, split, count, seed=3)} for split in BUCKETS}
    assert all(len(found) == count for found in keys.values())
    everything = set().union(*keys.values())
    assert len(everything) == count * len(BUCKETS)
    assert sorted(b for r in BUCKETS.values() for b in r) == list(range(100))


def test_out_of_domain_has_more_objects_another_background_and_more_noise():
    inside, outside = take("segments", "test", 50), take("segments", "test_ood", 50)
    assert max(len(s.segments) for s in inside) < min(len(s.segments) for s in outside)
    assert inside[0].style.background != outside[0].style.background
    assert inside[0].style.noise < outside[0].style.noise


def test_the_question_alone_is_worth_chance():
    """Answers are uniform within an operation: the best text-only guess gets (1/17 + 1/9 + 1/9) / 3."""
    train, test = take("segments", "train", 2000), take("segments", "test", 1000)
    chance = (1 / 17 + 1 / 9 + 1 / 9) / 3
    found = majority_baseline(train, test)
    assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / len(test))
    for operation, answers in (("sum", 17), ("difference", 9), ("maximum", 9)):
        counts = collections.Counter(s.answer for s in train if s.operation == operation)
        assert len(counts) == answers
        assert max(counts.values()) < 1.6 * sum(counts.values()) / answers


def test_noise_and_breaks_only_change_pixels():
    scene = take("segments", "train", 1)[0]
    noisy, clean = scene.draw(), replace(scene, style=CLEAN).draw()
    assert np.abs(np.asarray(noisy, dtype=float) - np.asarray(clean, dtype=float)).mean() > 5
    assert replace(scene, style=CLEAN).cue_boxes() == scene.cue_boxes()


@pytest.mark.parametrize("scene", take("chords", "train", 12), ids=lambda s: s.key())
def test_chords_are_true_to_their_lengths(scene: ChordsScene):
    """Ends lie on the circle; pieces have the asked ratio; the theorem holds."""
    pa, pb, pc, pd = scene.lengths
    assert pa * pb == pc * pd and scene.answer == str(scene.lengths[scene.unknown])
    a, b, c, d = scene._ends()
    centre = (scene.SIZE / 2, scene.SIZE / 2)
    for end in (a, b, c, d):
        assert math.dist(end, centre) == pytest.approx(scene.RADIUS, abs=1e-6)
    assert math.dist(a, b) / math.dist(c, d) == pytest.approx((pa + pb) / (pc + pd))


def test_chord_labels_are_where_the_boxes_say():
    for scene in take("chords", "train", 5):
        clean = replace(scene, noise=0.0)
        paper, image = (252, 252, 252), clean.draw()
        dark = np.asarray(image.convert("L")) < 128
        for cue_box in clean.cue_boxes():
            left, top, right, bottom = (int(x) for x in cue_box.box)
            assert dark[top : bottom + 1, left : right + 1].sum() >= 8
        assert image.getpixel((1, 1)) == paper
        texts = [b.value for b in clean.cue_boxes()]
        assert texts.count("x") == 1
        assert all(text in scene.cue for text in texts)
        assert sorted(re.findall(r"\d+", scene.cue)) == sorted(text for text in texts if text != "x")


def test_breaks_remove_ink():
    from vicur.cuebench.draw import Stroke

    line = [Stroke(((4.0, 8.0), (60.0, 8.0)), (0, 0, 0), 2.0)]
    whole, broken = (
        np.asarray(rasterise(line, size=64, background=(255, 255, 255), break_probability=p, seed=1))
        for p in (0.0, 0.4)
    )
    assert (broken < 128).sum() < 0.8 * (whole < 128).sum()


def test_segments_are_one_to_a_cell():
    for scene in take("segments", "test_ood", 50):
        cells = [s.cell for s in scene.segments]
        assert len(set(cells)) == len(cells)
        for cue_box in scene.cue_boxes():  # a cell is the visual token that pretraining grounds
            left, top, right, bottom = cue_box.box
            column, line = (left + right) // 32, (top + bottom) // 32
            assert 4 * line + column == scene.segment(cue_box.name).cell
        assert isinstance(scene, SegmentsScene)
