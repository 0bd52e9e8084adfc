"""Helpers of several tests of models."""

from __future__ import annotations

import torch

from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.models.load import RecoveryConfig, StudentConfig, load_student


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


def student_gathering_in(sink, folder, interval=2):
    """A student with a recovery module that does something, and this sink."""
    torch.manual_seed(1)
    config = RecoveryConfig(enabled=True, interval=interval, output_init="normal", sink=sink)
    loaded = load_student(StudentConfig(folder, config))
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded
