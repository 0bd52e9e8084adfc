"""The scorer: its cache of prompts, and unsupported heads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vicur.data.views import Degraded, Plain
from vicur.models.load import LoadedModel
from vicur.scoring.scorer import Scorer, ScoringConfig


def counted(scorer):
    """The number of prompts in each call of the encoder."""
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
    """Another object with equal contents is encoded again, and nothing of the old batch is kept."""
    scorer = Scorer(base)
    calls = counted(scorer)
    scorer.encode(samples[:3], Plain())
    twin = copy.deepcopy(samples[0])
    assert torch.equal(*(s.input_ids for s in (scorer.encode([twin], Plain())[0], whole_of(base, twin))))
    scorer.encode(samples[:3], Plain())
    scorer.clear_cache()
    scorer.encode(samples[:3], Plain())
    assert calls == [3, 1, 3, 3]


def whole_of(base, sample):
    return Scorer(base).encode([sample], Plain())[0]


def test_an_adapted_head_is_refused(base):
    class Adapted(nn.Linear):
        """A wrapper of a layer, as LoRA libraries insert it."""

    head = base.model.lm_head
    base.model.lm_head = Adapted(head.in_features, head.out_features, bias=False)
    with pytest.raises(ValueError, match="LM head is of type Adapted; only a plain matrix"):
        LoadedModel.of(base.model, base.processor)


@pytest.mark.parametrize("which", ["sampleable", "shared"])
def test_scores_are_normalised_over_the_scoring_vocabulary(base, samples, responses, which):
    """Against the model's own logits; a special token that dominates counts in one setting only."""
    head = base.model.lm_head.weight
    head.data[base.vocabulary.forbidden_ids[0]] *= 20.0
    scorer = Scorer(base, ScoringConfig(vocabulary=which))
    result = scorer.log_probs(samples[:2], [[ids] for ids in responses[:2]], Plain())
    expected = []
    for sample, ids in zip(samples[:2], responses[:2], strict=True):
        sequences = scorer.sequences(scorer.encode([sample], Plain()), [[ids]])
        with torch.no_grad():
            logits = base.model(**sequences.model_inputs()).logits[0, -len(ids) - 1 : -1].double()
        logits[:, len(base.processor.tokenizer) :] = -torch.inf
        if which == "sampleable":
            logits[:, list(base.vocabulary.forbidden_ids)] = -torch.inf
        expected.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids])
    torch.testing.assert_close(result.double(), torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_special_token_in_a_response_has_no_score_unless_it_is_in_the_vocabulary(base, samples):
    ids = torch.tensor([5, base.processor.tokenizer.convert_tokens_to_ids("<|im_start|>")])
    with pytest.raises(ValueError, match=r"token ids that cannot be scored.*scoring\.vocabulary"):
        Scorer(base, ScoringConfig(vocabulary="sampleable")).log_probs(samples[:1], [[ids]], Plain())
    scorer = Scorer(base, ScoringConfig(vocabulary="shared"))
    assert scorer.log_probs(samples[:1], [[ids]], Plain()).isfinite().all()


def test_invalid_settings():
    with pytest.raises(ValueError, match="prompts_per_batch must be at least 1"):
        ScoringConfig(prompts_per_batch=0)
