"""Helpers of several tests of models."""

from __future__ import annotations

import torch

from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder


def prompts_of(loaded, samples):
    """The prompts that a model makes of samples."""
    encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index)
    return encoder.encode([Plain().show(sample) for sample in samples])


@torch.no_grad()
def logits_of(loaded, samples, **kwargs):
    """The logits at all tokens of the prompts, without padding."""
    prompts = prompts_of(loaded, samples)
    sequences = build_sequences(prompts, [()] * len(prompts), pad_id=loaded.vocabulary.pad_id, **kwargs)
    inputs = sequences.model_inputs(loaded.dtype)
    return loaded.policy.decode(**inputs).logits[sequences.attention_mask]
