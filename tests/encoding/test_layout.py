"""Sequences: positions, alignment, and shared prompts against repeated ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.views import Blind, Hinted, Plain
from vicur.encoding.layout import build_sequences, responses_per_sequence
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.scoring.term import Term


def test_positions_equal_the_models_own(base, samples):
    """Several images, none, and a hint: for each sequence what `get_rope_index` says for the whole
    sequence."""
    two = replace(
        samples[0],
        messages=(
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Compare"},
                    {"type": "image"},
                    {"type": "image"},
                    {"type": "text", "text": "now."},
                ],
            },
        ),
        images=(samples[0].images[0], samples[1].images[0].resize((96, 48))),
    )
    scorer = Scorer(base)
    shown = [Plain().show(two), Blind().show(samples[0]), Hinted("cue").show(samples[1])]
    prompts = scorer.encoder.encode(shown)
    response = torch.tensor([11, 12, 13])
    sequences = build_sequences(prompts, [[response]] * 3, pad_id=0, padding_side="left")
    expected, _ = base.model.model.get_rope_index(
        sequences.input_ids,
        image_grid_thw=sequences.media["image_grid_thw"],
        attention_mask=sequences.attention_mask.long(),
        mm_token_type_ids=sequences.token_types,
    )
    real = sequences.attention_mask
    assert torch.equal(sequences.position_ids[1:][:, real], expected[:, real])
    for row in range(3):
        count = int(real[row].sum())
        assert torch.equal(sequences.position_ids[0, row, real[row]], torch.arange(count))


def test_predicting_positions_precede_their_tokens(base, samples, responses):
    scorer = Scorer(base)
    prompts = scorer.encode(samples[:2], Plain())
    sequences = build_sequences(prompts, [responses[:2], responses[2:5]], pad_id=0)
    given_ids = torch.cat(responses[:5])
    assert torch.equal(sequences.response_ids, given_ids)
    following = sequences.input_ids[sequences.predicts_sequence, sequences.predicts_column + 1]
    first = torch.tensor([True, *(sequences.response_index.diff() > 0).tolist()])
    assert torch.equal(following[~first], given_ids[~first])
    last_of_prompt = torch.tensor([len(prompts[r]) - 1 for r in sequences.predicts_sequence[first].tolist()])
    assert torch.equal(sequences.predicts_column[first], last_of_prompt)


def test_an_empty_response_is_refused(base, samples):
    prompts = Scorer(base).encode(samples[:1], Plain())
    with pytest.raises(ValueError, match="has no token"):
        build_sequences(prompts, [[torch.tensor([], dtype=torch.long)]], pad_id=0)


def log_probs_and_gradients(loaded, samples, groups, *, share, **layout):
    scorer = Scorer(loaded, ScoringConfig(share_prompts="never"))
    loaded.model.zero_grad()
    prompts = scorer.encode(samples, Plain())
    if share:
        sequences = build_sequences(prompts, groups, pad_id=loaded.vocabulary.pad_id, **layout)
    else:
        sequences = scorer.sequences(prompts, groups)
    weights = torch.linspace(-1, 1, len(sequences.response_ids))
    term = Term("log_prob", lambda block: block.log_prob_C, weights)
    result = scorer.weighted_terms(sequences, [term], {})
    result.loss.backward()
    gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
    return result.values_JN[0], gradients


@pytest.mark.parametrize("layout", [{}, {"padding_side": "left"}, {"pad_to": 150}])
def test_shared_prompts_equal_repeated_prompts(student, samples, responses, layout):
    """Log-probs and gradients, with recovery, several images in the batch and groups of different sizes."""
    groups = [responses[:3], responses[3:5], responses[5:]]
    repeated, by_hand = log_probs_and_gradients(student, samples[:3], groups, share=False)
    shared, gradients = log_probs_and_gradients(student, samples[:3], groups, share=True, **layout)
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=2e-5)
    assert gradients.keys() == by_hand.keys()
    for name, gradient in gradients.items():
        scale = by_hand[name].abs().max().item()
        assert torch.allclose(gradient, by_hand[name], rtol=1e-3, atol=1e-4 * scale + 1e-6), name


@given(st.permutations(range(6)), st.integers(1, 6))
def test_order_and_split_change_nothing(shared_student, samples, responses, order, size):
    scorer = Scorer(shared_student, ScoringConfig(prompts_per_batch=size))
    straight = Scorer(shared_student).log_probs(samples, [[r] for r in responses], Plain())
    lengths = [len(r) for r in responses]
    expected = torch.cat([straight.split(lengths)[i] for i in order])
    mixed = scorer.log_probs(
        [samples[i] for i in order],
        [[responses[i]] for i in order],
        Plain(),
    )
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=2e-5)


def test_shared_prompts_under_eager_attention(student, samples, responses):
    """Eager attention adds the mask to its scores, so a boolean one would hardly mask at all."""
    ids = [responses[:3], responses[3:5]]
    result = []
    for implementation in ("sdpa", "eager"):
        student.model.set_attn_implementation(implementation)
        result.append(Scorer(student).log_probs(samples[:2], ids, Plain()))
    torch.testing.assert_close(*result, rtol=1e-4, atol=2e-5)


def test_padding_content_never_matters(student, samples, responses):
    """Another id in the padding gives the same numbers: nothing attends to it."""
    scorer = Scorer(student)
    prompts = scorer.encode(samples, Plain())
    result = []
    for pad_id in (477, 5):
        sequences = build_sequences(prompts, [[r] for r in responses], pad_id=pad_id, pad_to=99)
        result.append(scorer.run(sequences, lambda hidden, head: hidden).detach())
    assert torch.equal(*result)


@pytest.mark.parametrize(
    "prompt, lengths, hidden_size, expected",
    [
        (100, [20] * 4, 128, 4),  # cheap: one sequence
        (1800, [200] * 4, 2048, 4),  # a long prompt is worth sharing
        (1800, [4096] * 4, 2048, 1),  # the square of 18,184 tokens is not
        (50, [7], 128, 1),
    ],
)
def test_how_many_responses_share_a_sequence(prompt, lengths, hidden_size, expected):
    assert responses_per_sequence(prompt, lengths, hidden_size) == expected


def test_sequences_of_two_responses_keep_the_flat_order(base, samples, responses, monkeypatch):
    monkeypatch.setattr("vicur.scoring.scorer.responses_per_sequence", lambda *_: 2)
    scorer = Scorer(base)
    prompts = scorer.encode(samples[:2], Plain())
    sequences = scorer.sequences(prompts, [responses[:3], responses[3:6]])
    assert len(sequences.input_ids) == 4
    assert torch.equal(sequences.response_ids, torch.cat(responses))
    result = scorer.log_probs(samples[:2], [responses[:3], responses[3:6]], Plain())
    alone = Scorer(base, ScoringConfig(share_prompts="never"))
    expected = alone.log_probs(samples[:2], [responses[:3], responses[3:6]], Plain())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=2e-5)


def test_nan_in_padding_never_reaches_the_loss(student, samples, responses):
    """For any hidden states at positions that predict no response token."""
    scorer = Scorer(student)
    sequences = build_sequences(
        scorer.encode(samples[:3], Plain()), [[r] for r in responses[:3]], pad_id=0, pad_to=120
    )
    hidden = torch.full((*sequences.input_ids.shape, 8), torch.nan)
    hidden[sequences.predicts_sequence, sequences.predicts_column] = torch.randn(
        len(sequences.response_ids), 8
    )
    hidden.requires_grad_()
    sequences.predicting(hidden).square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
    elsewhere = torch.ones(hidden.shape[:2], dtype=torch.bool)
    elsewhere[sequences.predicts_sequence, sequences.predicts_column] = False
    assert not hidden.grad[elsewhere].any()
