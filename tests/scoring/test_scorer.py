"""The scorer: its memory of prompts, and heads that it cannot read."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vicur.data.views import Degraded, Plain
from vicur.scoring.scorer import Scorer, ScoringConfig


def counted(scorer):
    """How many prompts its encoder was given, call by call."""
    calls, encode = [], scorer.encoder.encode
    scorer.encoder.encode = lambda shown: calls.append(len(shown)) or encode(shown)
    return calls


def test_prompts_of_a_batch_are_made_once_also_for_its_parts(base, samples):
    scorer = Scorer(base)
    calls = counted(scorer)
    whole = scorer.encode(samples, Plain())
    assert scorer.encode(samples[2:4], Plain()) == whole[2:4]
    scorer.encode(samples[:2], Degraded())
    scorer.encode(samples, Degraded())
    assert calls == [6, 2, 4]


def test_other_samples_are_never_taken_for_known_ones(base, samples):
    """Equal contents, another object: made again. And nothing of the old batch is kept."""
    scorer = Scorer(base)
    calls = counted(scorer)
    scorer.encode(samples[:3], Plain())
    twin = copy.deepcopy(samples[0])
    assert torch.equal(*(s.input_ids for s in (scorer.encode([twin], Plain())[0], whole_of(base, twin))))
    scorer.encode(samples[:3], Plain())
    scorer.forget()
    scorer.encode(samples[:3], Plain())
    assert calls == [3, 1, 3, 3]


def whole_of(base, sample):
    return Scorer(base).encode([sample], Plain())[0]


def test_an_adapted_head_is_refused(base):
    class Adapted(nn.Linear):
        """What a LoRA library puts in the place of a layer."""

    head = base.model.lm_head
    base.model.lm_head = Adapted(head.in_features, head.out_features, bias=False)
    with pytest.raises(ValueError, match="LM head is of type Adapted; only a plain matrix"):
        Scorer(base)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="samples_per_batch must be at least 1"):
        ScoringConfig(samples_per_batch=0)
