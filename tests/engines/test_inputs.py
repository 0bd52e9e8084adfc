"""What vLLM is given: images of a prompt, salts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.views import Plain
from vicur.encoding.prompts import PromptEncoder
from vicur.vllm.inputs import pictures_of, salt_of
from vicur.vllm.salts import Medium, prompt_digest

MERGE = 2


@pytest.fixture(scope="module")
def prompts(kinds, shared_student):
    encoder = PromptEncoder.of(shared_student)
    return {name: encoder.encode([Plain().show(sample)])[0] for name, sample in kinds.items()}


def test_every_visual_token_belongs_to_one_image(prompts):
    counts = {name: len(pictures_of(prompt, MERGE)) for name, prompt in prompts.items()}
    # Five frames make three groups of two, three frames two.
    expected = {"one image": 1, "three images": 3, "video": 3, "video and image": 3, "text only": 0}
    assert {name: counts[name] for name in expected} == expected
    for prompt in prompts.values():
        pictures = pictures_of(prompt, MERGE)
        covered = torch.zeros(len(prompt), dtype=torch.long)
        for picture in pictures:
            offset, length, _ = picture.medium
            covered[offset : offset + length] += 1
            time, height, width = picture.grid.tolist()
            assert (time, height * width) == (1, MERGE**2 * length) and len(picture.pixels) == height * width
        assert torch.equal(covered, (prompt.token_types > 0).long())
    both = pictures_of(prompts["video and image"], MERGE)
    assert [p.medium.offset for p in both] == sorted(p.medium.offset for p in both)


def test_pixels_that_do_not_fit_the_tokens_are_refused(prompts):
    prompt = prompts["one image"]
    larger = prompt.media["image_grid_thw"] * torch.tensor([1, 2, 1])
    with pytest.raises(ValueError, match="visual tokens of a prompt do not fit its images"):
        pictures_of(replace(prompt, media={**prompt.media, "image_grid_thw": larger}), MERGE)
    fewer = replace(prompt, token_types=torch.ones_like(prompt.token_types))
    with pytest.raises(ValueError, match="more visual tokens than its images"):
        pictures_of(fewer, MERGE)


def test_a_salt_stands_for_images_and_weights(prompts):
    prompt = prompts["three images"]
    pictures = pictures_of(prompt, MERGE)
    salt = salt_of(prompt, pictures, 1)
    assert salt_of(prompt, pictures_of(prompt, MERGE), 1) == salt
    assert salt_of(prompt, pictures, 2) != salt
    other = dict(prompt.media)
    other["pixel_values"] = other["pixel_values"].clone()
    other["pixel_values"][-1, 0] += 1e-3
    changed = replace(prompt, media=other)
    assert salt_of(changed, pictures_of(changed, MERGE), 1) != salt
    after = torch.tensor([5, 6, 7])
    continued = replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, after]),
        token_types=torch.cat([prompt.token_types, torch.zeros_like(after)]),
        positions=torch.cat([prompt.positions, after.expand(3, -1)], 1),
    )
    assert salt_of(continued, pictures_of(continued, MERGE), 1) == salt, "a response shares the prefill"
    text = prompts["text only"]
    assert salt_of(text, [], 1) == salt_of(prompt.of_text([1, 2]), [], 1), (
        "blocks without images are keyed by tokens"
    )


@given(st.lists(st.integers(0, 9), min_size=6, max_size=12), st.integers(0, 5), st.integers(0, 9))
def test_digests_depend_on_everything_up_to_the_last_visual_token(ids, place, value):
    media = [Medium(1, 2, "a"), Medium(4, 1, "b")]
    digest = prompt_digest(ids, media)
    changed = [*ids[:place], value, *ids[place + 1 :]]
    is_same = changed[:5] == ids[:5]
    assert (prompt_digest(changed, media) == digest) == is_same
    assert prompt_digest(ids, media[::-1]) == digest
    assert prompt_digest(ids, [Medium(1, 2, "b"), Medium(4, 1, "a")]) != digest
    assert prompt_digest(ids, []) == ""
