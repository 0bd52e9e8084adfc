"""PyTorch as an engine against `model.generate`, later scoring, and the configured distribution."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vicur.data.views import Hinted, Plain
from vicur.encoding.layout import build_sequences
from vicur.models.load import as_base
from vicur.rollouts.processors import SamplingConfig, sampling_log_probs
from vicur.rollouts.randomness import stream_key, uniforms
from vicur.rollouts.torch_engine import TorchEngine, pick
from vicur.scoring.scorer import Scorer, ScoringConfig


def sample(loaded, prompts, ids, config, **kwargs):
    batch = kwargs.pop("batch", 64)
    return TorchEngine(loaded, batch).sample(prompts, ids, config, **kwargs)


@pytest.mark.parametrize("which", ["base", "student"])
def test_greedy_equals_generate(which, samples, request):
    loaded = request.getfixturevalue(which)
    scorer = Scorer(loaded)
    prompts = scorer.encode(samples[:3], Plain()) + scorer.encode(samples[3:], Hinted("cue"))
    config = SamplingConfig(temperature=0.0, max_new_tokens=12)
    ours = sample(loaded, prompts, [s.id for s in samples], config)
    for prompt, own in zip(prompts, ours, strict=True):
        inputs = build_sequences([prompt], [()], pad_id=0).model_inputs()
        del inputs["position_ids"]
        out = loaded.model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=list(loaded.vocabulary.forbidden_ids),
        )[0, len(prompt) :]
        assert own[0].ids.tolist() == out.tolist()[: len(own[0].ids)]
        assert len(own[0].ids) == len(out)


def test_sampled_log_probs_equal_a_later_scoring(shared_student, samples):
    scorer = Scorer(shared_student, ScoringConfig(vocabulary="sampleable"))
    config = SamplingConfig(max_new_tokens=10)
    ids = [s.id for s in samples]
    rollouts = sample(shared_student, scorer.encode(samples, Plain()), ids, config, group_size=3)
    scored = scorer.log_probs(samples, [[r.ids for r in own] for own in rollouts], Plain())
    sampled = torch.cat([r.log_probs for own in rollouts for r in own])
    torch.testing.assert_close(scored, sampled.float(), rtol=1e-4, atol=1e-4)


def test_more_responses_continue_the_numbers(shared_student, samples):
    prompts = Scorer(shared_student).encode(samples, Plain())
    ids, config = [s.id for s in samples], SamplingConfig(max_new_tokens=8)
    whole = sample(shared_student, prompts, ids, config, group_size=5)
    more = sample(shared_student, prompts, ids, config, group_size=2, first=3)
    for all_of_them, last in zip(whole, more, strict=True):
        assert [r.ids.tolist() for r in last] == [r.ids.tolist() for r in all_of_them[3:]]


def test_same_seed_same_responses_whatever_the_batch(shared_student, samples):
    prompts = Scorer(shared_student).encode(samples, Plain())
    ids, config = [s.id for s in samples], SamplingConfig(max_new_tokens=8)

    def tokens(order, **kwargs):
        own = sample(shared_student, [prompts[i] for i in order], [ids[i] for i in order], config, **kwargs)
        return {ids[i]: [r.ids.tolist() for r in o] for i, o in zip(order, own, strict=True)}

    straight = tokens(range(6), group_size=2, seed=3, step=5)
    assert tokens(range(6), group_size=2, seed=3, step=5) == straight
    assert tokens([4, 1, 0, 5, 2, 3], group_size=2, seed=3, step=5, batch=4) == straight
    first = {key: own[:1] for key, own in straight.items()}
    assert tokens(range(6), group_size=1, seed=3, step=5) == first  # a smaller group: the same first
    assert tokens(range(6), group_size=2, seed=4, step=5) != straight
    assert tokens(range(6), group_size=2, seed=3, step=6) != straight
    assert all(own[0] != own[1] for own in straight.values())


def test_special_tokens_are_never_sampled_and_limits_hold(base, samples):
    """Even if the model wants nothing but an image placeholder."""
    loaded = copy.deepcopy(base)
    banned = loaded.vocabulary.forbidden_ids
    with torch.no_grad():
        weight = loaded.model.lm_head.weight
        weight[list(banned)] = 4 * weight.abs().max() * torch.ones_like(weight[list(banned)])
    prompts = Scorer(loaded).encode(samples, Plain())
    for own in sample(
        loaded, prompts, [s.id for s in samples], SamplingConfig(max_new_tokens=9), group_size=2
    ):
        for response in own:
            assert not set(response.ids.tolist()) & set(banned)
            stopped = response.ids[-1].item() in loaded.vocabulary.stop_ids
            assert response.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(response.ids) == 9
            assert not set(response.ids[:-1].tolist()) & set(loaded.vocabulary.stop_ids)
            assert len(response.log_probs) == len(response.ids)


def test_token_frequencies_follow_the_requested_distribution():
    """20,000 draws by the sampler's own uniforms, chi-square against the processed distribution."""
    torch.manual_seed(0)
    logits = torch.randn(1, 8)
    for config in (
        SamplingConfig(),
        SamplingConfig(0.5),
        SamplingConfig(top_p=0.7),
        SamplingConfig(top_k=3),
    ):
        log_probs = sampling_log_probs(logits, torch.zeros(1, 8), config)
        keys = [stream_key(0, 0, str(i), 0) for i in range(20_000)]
        draws = torch.from_numpy(uniforms(keys, position=3))
        slots = pick(log_probs.expand(len(keys), -1), draws)
        counts = np.bincount(slots.numpy(), minlength=8)
        expected = log_probs.exp()[0].numpy() * len(keys)
        assert not counts[expected == 0].any()
        keep = expected > 0
        assert stats.chisquare(counts[keep], expected[keep]).pvalue > 1e-3


def test_uniforms_are_uniform_and_independent_of_neighbours():
    keys = [stream_key(1, step, "a", 0) for step in range(5000)]
    columns = np.stack([uniforms(keys, position) for position in range(4)])
    assert stats.kstest(columns.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.06
    assert (columns >= 0).all() and (columns < 1).all()


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0.1, 1.0), st.integers(0, 12))
def test_cut_offs_keep_the_most_likely_tokens(logits, top_p, top_k):
    tensor = torch.tensor([logits], dtype=torch.float64)
    config = SamplingConfig(top_p=top_p, top_k=top_k)
    result = sampling_log_probs(tensor, torch.zeros_like(tensor), config)[0]
    kept = torch.isfinite(result)
    assert kept[tensor[0].argmax()]
    torch.testing.assert_close(result.exp().sum().item(), 1.0)
    if not kept.all():
        assert tensor[0][kept].min() >= tensor[0][~kept].max() - 1e-12
    if 0 < top_k < len(logits) and len(set(logits)) == len(logits):
        assert kept.sum() <= top_k
    if top_k == 0 and top_p < 1 and len(set(logits)) == len(logits):
        probabilities = tensor[0].softmax(-1)
        mass, smallest = probabilities[kept].sum(), probabilities[kept].min()
        assert mass >= top_p - 1e-9 and mass - smallest < top_p + 1e-9


def test_presence_penalty_is_subtracted_from_tokens_already_used():
    logits, present = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    result = sampling_log_probs(logits, present, SamplingConfig(presence_penalty=1.5))
    expected = torch.tensor([[1.0, -0.5, 1.0]], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(result, expected)


def test_a_draw_never_picks_an_impossible_token():
    log_probs = torch.tensor([[0.5, 0.0, 0.5, 0.0]]).log()
    for draw, slot in ((0.0, 0), (0.4999, 0), (0.5, 2), (1 - 2**-53, 2)):
        assert pick(log_probs, torch.tensor([draw], dtype=torch.float64)).tolist() == [slot]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -2}, {"max_new_tokens": 0}])
def test_invalid_settings_are_rejected(bad):
    with pytest.raises(ValueError, match="must be"):
        SamplingConfig(**bad)


def test_a_model_is_sampled_in_its_mode(base, student, samples):
    """The self-teacher of a student shares its model, and answers without its recovery module."""
    config = SamplingConfig(temperature=0.0, max_new_tokens=8)
    prompts = Scorer(base).encode(samples, Plain())
    ids = [s.id for s in samples]

    def answers(loaded):
        return [own[0].ids.tolist() for own in sample(loaded, prompts, ids, config)]

    assert answers(as_base(student)) == answers(base) != answers(student)
