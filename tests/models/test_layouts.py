"""Recovery gives each sample the same result as alone, however samples are laid out in a batch.

The released code of the paper pools every visual token of a packed sequence into one sink, and takes a wrong
sink if a sequence is padded on both sides.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forward import student_gathering_in
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vicur.compat import cache_argument, cache_of
from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.media.video import Video

CLOSE = {"rtol": 1e-4, "atol": 3e-5}


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def problem(name, text, images=(), videos=()):
    media = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
    message = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
    return Sample(id=name, messages=(message,), images=tuple(images), videos=tuple(videos))


PROBLEMS = [
    problem("one image", "What is the sum?", [picture(0, 64, 64)]),
    problem("another", "How long is red?", [picture(1, 96, 48)]),
    problem("three images", "Which is longest?", [picture(i, 32 + 16 * i, 32) for i in range(2, 5)]),
    problem("video", "What moves?", videos=[Video(tuple(picture(i, 48, 32) for i in range(4)), 2.0)]),
    problem(
        "both", "Compare.", [picture(9, 32, 64)], [Video(tuple(picture(i, 32, 32) for i in range(2)), 1.0)]
    ),
    problem("text only", "List all segments."),
]


@pytest.fixture(scope="module", params=["first", "question"])
def shared_student(base_folder, request):
    """A student whose first token gathers, and one in which the end of the question does."""
    return student_gathering_in(request.param, base_folder)


@pytest.fixture(scope="module")
def prompts(shared_student):
    encoder = PromptEncoder(shared_student.processor, shared_student.model.model.get_rope_index)
    return [encoder.encode([Plain().show(one)])[0] for one in PROBLEMS]


@pytest.fixture(scope="module")
def alone(shared_student, prompts):
    """The logits of each prompt in a batch of its own."""
    return [run(shared_student, build_sequences([p], [()], pad_id=0).model_inputs())[0] for p in prompts]


@torch.no_grad()
def run(loaded, inputs):
    return loaded.model(**inputs, use_cache=False).logits


def placed(prompts, rows, length):
    """Model inputs with prompts at given places: `rows` holds lists of (prompt, first column)."""
    inputs = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "mm_token_type_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "position_ids": torch.zeros(4, len(rows), length, dtype=torch.long),
    }
    part = torch.full((len(rows), length), -1)
    media = {}
    for i, row in enumerate(rows):
        for number, (index, first) in enumerate(row):
            prompt = prompts[index]
            columns = slice(first, first + len(prompt))
            inputs["input_ids"][i, columns] = prompt.input_ids
            inputs["mm_token_type_ids"][i, columns] = prompt.token_types
            inputs["position_ids"][0, i, columns] = torch.arange(len(prompt))
            inputs["position_ids"][1:, i, columns] = prompt.positions
            part[i, columns] = number
            for name, tensor in prompt.media.items():
                media.setdefault(name, []).append(tensor)
    return inputs | {name: torch.cat(tensors) for name, tensors in media.items()}, part


def compare(logits, rows, prompts, alone):
    for i, row in enumerate(rows):
        for index, first in row:
            own = logits[i, first : first + len(prompts[index])]
            torch.testing.assert_close(own, alone[index], **CLOSE)


@given(st.data())
@settings(max_examples=15)
def test_padding_on_both_sides(shared_student, prompts, alone, data):
    chosen = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=3))
    starts = [data.draw(st.integers(0, 9)) for _ in chosen]
    length = max(s + len(prompts[i]) for i, s in zip(chosen, starts, strict=True)) + data.draw(
        st.integers(0, 7)
    )
    rows = [[(index, start)] for index, start in zip(chosen, starts, strict=True)]
    inputs, part = placed(prompts, rows, length)
    logits = run(shared_student, inputs | {"attention_mask": (part >= 0).long()})
    compare(logits, rows, prompts, alone)


@given(st.lists(st.integers(0, len(PROBLEMS) - 1), min_size=2, max_size=4))
@settings(max_examples=12)
def test_packed_sequences(shared_student, prompts, alone, chosen):
    """Several samples in one sequence without padding, separated by their positions alone, or by a mask."""
    firsts = np.cumsum([0] + [len(prompts[i]) for i in chosen])
    rows = [list(zip(chosen, firsts[:-1].tolist(), strict=True))]
    inputs, part = placed(prompts, rows, int(firsts[-1]))
    compare(run(shared_student, inputs), rows, prompts, alone)
    causal = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool).tril()
    same = (part[:, :, None] == part[:, None, :]) & causal
    mask = torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)[:, None]
    compare(run(shared_student, inputs | {"attention_mask": mask}), rows, prompts, alone)


@given(st.data())
@settings(max_examples=12)
def test_shared_prefix_sequences(shared_student, prompts, data):
    """Responses that share a prompt get the same as with a separate copy of the prompt each."""
    index = data.draw(st.integers(0, len(prompts) - 1))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    group = [torch.randint(8, 200, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    side = data.draw(st.sampled_from(["left", "right"]))
    other = data.draw(st.integers(0, len(prompts) - 1))
    shared = build_sequences(
        [prompts[index], prompts[other]], [group, group[:1]], pad_id=0, padding_side=side
    )
    repeated = build_sequences([prompts[index]] * len(group), [[response] for response in group], pad_id=0)
    logits, expected = (run(shared_student, inputs.model_inputs()) for inputs in (shared, repeated))
    count = sum(lengths)
    torch.testing.assert_close(shared.predicting(logits)[:count], repeated.predicting(expected), **CLOSE)


@given(st.lists(st.integers(0, len(PROBLEMS) - 1), min_size=1, max_size=3), st.integers(0, 5))
@settings(max_examples=8)
@torch.no_grad()
def test_prefill_and_decoding_equal_one_forward(shared_student, prompts, chosen, extra):
    response = torch.tensor([11, 25, 40, 9])
    own = [prompts[i] for i in chosen]
    full = [build_sequences([p], [[response]], pad_id=0) for p in own]
    expected = torch.stack([inputs.predicting(run(shared_student, inputs.model_inputs())) for inputs in full])
    start = build_sequences(
        own, [()] * len(own), pad_id=0, padding_side="left", pad_to=max(map(len, own)) + extra
    )
    model = shared_student.model
    step = model(**start.model_inputs(), use_cache=True)
    result, mask = [step.logits[:, -1]], start.attention_mask
    for t, token in enumerate(response[:-1]):
        mask = torch.cat([mask, mask.new_ones(len(own), 1)], 1)
        text = torch.tensor([len(p) + t for p in own])
        rotary = torch.tensor([p.next_position + t for p in own])
        step = model(
            input_ids=token.expand(len(own), 1),
            attention_mask=mask,
            position_ids=torch.stack([text, rotary, rotary, rotary])[:, :, None],
            **cache_argument(cache_of(step)),
            use_cache=True,
        )
        result.append(step.logits[:, -1])
    torch.testing.assert_close(torch.stack(result, 1), expected, **CLOSE)


@torch.no_grad()
def test_a_text_only_sample_is_untouched_beside_others(shared_student, prompts):
    """Bit for bit equal to the model with the module off."""
    inputs, part = placed(prompts, [[(0, 0)], [(5, 3)]], 80)
    inputs["attention_mask"] = (part >= 0).long()
    text = slice(3, 3 + len(prompts[5]))
    on = run(shared_student, inputs)
    with shared_student.model.without_recovery():
        off = run(shared_student, inputs)
    assert torch.equal(on[1, text], off[1, text])
    assert (on[0, : len(prompts[0])] - off[0, : len(prompts[0])]).abs().max() > 1e-3
