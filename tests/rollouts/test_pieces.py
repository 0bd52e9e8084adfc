"""The texts of tokens join to the text of the response, whatever characters the tokens divide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.rollouts.pieces import pieces_of

TEXTS = ["x = 3", "Größe é", "図形の角度は 30° です。", "a 🙂👩‍👩‍👧 b\n\n", "\ufffd and \ufffd", "", "नमस्ते"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(processor, text):
    tokenizer = processor.tokenizer
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    pieces = pieces_of(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text + tokenizer.eos_token


@given(st.text(max_size=20))
def test_any_text(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(ids, tokenizer)) == tokenizer.decode(ids)


def test_the_last_token_of_a_character_has_it(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("a図b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5  # three bytes, one token each
    assert pieces_of(ids, tokenizer) == ["a", "", "", "図", "b"]
    assert pieces_of(ids[:3], tokenizer) == ["a", "", "\ufffd"]  # cut off inside the character


def test_tokens_without_text_of_their_own_are_not_lost(processor):
    """Every text is that of its token where characters are whole."""
    tokenizer = processor.tokenizer
    ids = tokenizer("The answer is 12.", add_special_tokens=False)["input_ids"]
    assert pieces_of(ids, tokenizer) == [tokenizer.decode([i]) for i in ids]
