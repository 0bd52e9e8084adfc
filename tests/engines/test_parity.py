"""The engine's log-probs against the trainer's: every kind of prompt, with and without recovery."""

from __future__ import annotations

import pytest
from comparing import BOUND, difference

pytestmark = pytest.mark.vllm
KINDS = ("one image", "three images", "video", "video and image", "long system prompt", "text only")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_prompt(kind, temperature, kinds, engine, engine_student, report):
    largest = difference(engine, engine_student, [kinds[kind]], siblings=4, temperature=temperature)
    assert report(f"{kind}, K=4, T={temperature:g}", largest) <= BOUND


def test_a_mixed_batch_of_32(kinds, samples, engine, engine_student, report):
    mixed = [*kinds.values(), *samples] * 3
    largest = difference(engine, engine_student, mixed[:32], siblings=2, most=24)
    assert report("mixed batch of 32, K=2", largest) <= BOUND
