"""Every way in which an engine is known to see another image or other weights, planted, is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comparing import BOUND, difference, picture

pytestmark = pytest.mark.vllm
FAR = 1e-3
"""A corruption makes a larger difference than this, in nats."""


@pytest.fixture
def same_text(kinds):
    """Problems with a long text before the image that differ only in the image."""
    return [
        replace(kinds["long system prompt"], id=f"same {seed}", images=(picture(seed, 96, 96),))
        for seed in range(40, 44)
    ]


def test_a_cache_without_salt_hands_one_image_to_another(same_text, engine, engine_student, monkeypatch):
    engine.forget()
    assert difference(engine, engine_student, same_text, siblings=2) <= BOUND
    monkeypatch.setattr("vicur.vllm.inputs.prompt_digest", lambda ids, media: "")
    engine.forget()
    # A client that sends no salt computes its whole prompt: the scheduler sees to it.
    assert difference(engine, engine_student, same_text, siblings=2) <= BOUND
    monkeypatch.setattr("vicur.vllm.scheduler.prompt_digest", lambda ids, media: "")
    engine.forget()
    assert difference(engine, engine_student, same_text, siblings=2) > FAR
    monkeypatch.undo()
    engine.forget()


def test_a_split_prompt_is_refused(same_text, engine, engine_student, monkeypatch):
    from vicur.vllm.backend import EngineError

    scheduler = engine.scheduler
    monkeypatch.setattr(scheduler.scheduler_config, "enable_chunked_prefill", True)
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", 64)
    engine.forget()
    with pytest.raises(EngineError, match=r"would be split after 64 tokens, but its last visual token is"):
        difference(engine, engine_student, same_text[:1])
    monkeypatch.setattr("vicur.vllm.scheduler.check_whole", lambda *arguments: None)
    # Greedy: vLLM cannot rewind a seed on a CPU, as it does after a part of a prompt.
    assert difference(engine, engine_student, same_text[:1], temperature=0.0) > FAR
    monkeypatch.undo()
    engine.forget()


def test_recovery_reads_the_whole_residual_stream(kinds, engine, engine_student, monkeypatch):
    monkeypatch.setattr("vicur.vllm.model.residual_stream", lambda hidden, residual: hidden)
    engine.forget()
    assert difference(engine, engine_student, [kinds["one image"]]) > FAR
    monkeypatch.undo()
    engine.forget()


def test_weights_that_were_not_pushed(kinds, engine, engine_student):
    batch = [kinds["one image"], kinds["text only"]]
    weight = engine_student.model.lm_head.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.05)
    try:
        assert difference(engine, engine_student, batch) > FAR
        engine.load()
        assert difference(engine, engine_student, batch) <= BOUND
    finally:
        with torch.no_grad():
            weight.copy_(original)
        engine.load()
    assert difference(engine, engine_student, batch) <= BOUND
