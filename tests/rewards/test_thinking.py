"""Thinking between tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.rewards.thinking import opened_thought, without_thoughts


@pytest.mark.parametrize(
    ("text", "rest", "open_"),
    [
        ("The box is red.", "The box is red.", False),
        ("<think>a</think>b", "b", False),
        ("a</think>b", "b", False),
        ("a<think>b", "", True),
        ("<think>a</think>b<think>c", "", True),
        ("a</THINK>b</think>c", "c", False),
        ("I think that < 3", "I think that < 3", False),
    ],
)
def test_the_text_after_the_thinking(text, rest, open_):
    assert without_thoughts(text) == (rest, open_)


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("<|im_start|>assistant\n<think>\n", "<think>\n"), ("assistant\n", ""), ("<think>\n\n</think>\n\n", "")],
)
def test_a_thought_that_the_prompt_opens(prompt, opened):
    assert opened_thought(prompt) == opened


@given(st.text(alphabet="<>/think ab"))
def test_any_text_gives_its_own_end_or_nothing(text):
    rest, opened = without_thoughts(text)
    assert text.endswith(rest) and (rest == "" or not opened)
