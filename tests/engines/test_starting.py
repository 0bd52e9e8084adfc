"""Faults of vLLM in this process end in a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vicur.vllm.backend import EngineError
from vicur.vllm.local import LocalEngine

pytestmark = pytest.mark.vllm


def test_a_cache_that_is_too_small_for_a_prompt(engine_student, engine_settings):
    with pytest.raises(EngineError, match=r"^vLLM does not start: .*(KV cache|max_model_len|max seq len)"):
        LocalEngine(engine_student, engine_settings, max_model_len=40_000_000)


def test_weights_that_do_not_fit(engine_student, engine_settings, monkeypatch):
    engine = LocalEngine(engine_student, replace(engine_settings, max_num_seqs=4), max_model_len=256)

    def wrong(self):
        yield "model.language_model.layers.0.mlp.down_proj.weight", torch.zeros(3, 5)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(type(engine_student), "current_weights", wrong)
            with pytest.raises(EngineError, match=r"^vLLM cannot load the student's weights: "):
                engine.load()
    finally:
        engine.close()
