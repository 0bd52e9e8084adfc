"""Chunked log-probs against plain autograd and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.models.load import LoadedModel
from vicur.models.vocabulary import check_same_vocabulary
from vicur.scoring.vocabulary import sampled_log_probs


def reference(hidden, head, ids, kept):
    """log softmax over the kept columns, then the column of each id."""
    logits = (hidden @ head.T)[:, kept]
    columns = torch.tensor([kept.tolist().index(i) for i in ids.tolist()])
    return logits.log_softmax(-1)[torch.arange(len(ids)), columns]


@given(st.integers(1, 9), st.integers(1, 10), st.integers(0, 2**31))
def test_equals_plain_autograd(tokens, chunk, seed):
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    kept = torch.randperm(12)[:8].sort().values
    ids = kept[torch.randint(8, (tokens,))]
    weights = torch.randn(tokens, dtype=torch.float64)
    found, expected = (
        sampled_log_probs(hidden, head, ids, kept, chunk),
        reference(hidden, head, ids, kept),
    )
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad((weights * found).sum(), (hidden, head))
    theirs = torch.autograd.grad((weights * expected).sum(), (hidden, head))
    torch.testing.assert_close(ours, theirs)
    removed = sorted(set(range(12)) - set(kept.tolist()))
    assert not ours[1][removed].any()


def test_gradcheck():
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    kept, ids = torch.tensor([0, 2, 3, 5]), torch.tensor([5, 0, 2, 2])
    assert torch.autograd.gradcheck(lambda h, w: sampled_log_probs(h, w, ids, kept, 3), (hidden, head))


def test_worked_number():
    """Logits 0, ln 2, ln 3 over three kept words: probabilities 1/6, 2/6, 3/6."""
    head = torch.tensor([0.0, 2.0, 3.0]).log().nan_to_num(neginf=0.0)[:, None]
    head = torch.cat([head, torch.tensor([[50.0]])])  # a removed word that would dominate
    found = sampled_log_probs(torch.ones(3, 1), head, torch.arange(3), torch.arange(3))
    torch.testing.assert_close(found.exp(), torch.tensor([1 / 6, 2 / 6, 3 / 6]))


def test_bfloat16_is_scored_in_float32():
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8).bfloat16(), torch.randn(30, 8).bfloat16()
    found = sampled_log_probs(hidden, head, torch.arange(5), torch.arange(30))
    assert found.dtype == torch.float32
    expected = reference(hidden.double(), head.double(), torch.arange(5), torch.arange(30))
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)


def test_a_removed_token_cannot_be_scored():
    with pytest.raises(ValueError, match=r"cannot be scored: \[1\]"):
        sampled_log_probs(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([1]), torch.tensor([0, 2]))


def test_media_and_chat_tokens_are_removed_and_end_of_turn_stays(base: LoadedModel):
    tokenizer, vocabulary = base.processor.tokenizer, base.vocabulary
    kept = set(vocabulary.kept_ids.tolist())
    for token in (
        "<|im_start|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
    ):
        assert tokenizer.convert_tokens_to_ids(token) not in kept
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in kept
    assert vocabulary.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert len(kept) == len(tokenizer) - 6


class FakeTokenizer:
    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: i for i, token in enumerate(self.tokens)}


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ("abc", "abc", None),
        ("abc", "abd", "3 and 3 tokens.*id 2 is 'c' for the student and 'd' for the teacher"),
        ("abc", "ab", "3 and 2 tokens.*id 2 is 'c' for the student and nothing"),
        ("ab", "abc", "2 and 3 tokens.*id 2 is nothing for the student and 'c'"),
    ],
)
def test_vocabulary_mismatch_names_the_first_token(ours, theirs, message):
    if message is None:
        check_same_vocabulary(FakeTokenizer(*ours), FakeTokenizer(*theirs))
    else:
        with pytest.raises(ValueError, match=message):
            check_same_vocabulary(FakeTokenizer(*ours), FakeTokenizer(*theirs))
