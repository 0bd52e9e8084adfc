"""Which tokens of a response a pattern matches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.sample import Sample
from vicur.rollouts.rollout import Response, Rollouts
from vicur.rollouts.segments import segment_masks

PROBLEM = Sample("p", ())


class Letters:
    """A decoder with a token for each of its pieces."""

    pieces = ("<d>", "a c", "up", "</d>", " it", " is", " 4", "\n", "")

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.pieces[index] for index in ids)


def masks(*responses, **patterns):
    groups = tuple((Response(torch.tensor(ids), None, "stop"),) for ids in responses)
    rollouts = Rollouts((PROBLEM,) * len(groups), groups, (("",),) * len(groups))
    return {name: mask.tolist() for name, mask in segment_masks(rollouts, patterns, Letters()).items()}


def test_a_description_and_the_rest():
    found = masks([0, 1, 2, 3, 4, 5, 6], [4, 5, 6], description="<d>.*?</d>")
    assert found["description"] == [True] * 4 + [False] * 6
    assert found["rest"] == [False] * 4 + [True] * 6  # a response without a description is all rest


def test_a_token_belongs_to_a_segment_if_a_part_of_it_does():
    assert masks([0, 1, 2, 3], cup="cup")["cup"] == [False, True, True, False]
    assert masks([1, 7, 2], lines="a.*up")["lines"] == [True, True, True]  # over a line break
    assert masks([4, 8, 5], it="it")["it"] == [True, False, False]
    both = masks([0, 1, 2, 3, 6], first="a c", second="up")
    assert both["rest"] == [True, False, False, True, True]


def test_every_match_counts():
    assert masks([4, 6, 4, 6], four=" 4")["four"] == [False, True, False, True]


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=20),
    st.sampled_from([".", "<d>", "i", "4|up", "^", "zz"]),
)
def test_every_token_is_in_a_segment_or_in_the_rest(ids, pattern):
    found = masks(ids, one=pattern)
    assert [a or b for a, b in zip(found["one"], found["rest"], strict=True)] == [True] * len(ids)
    assert not any(a and b for a, b in zip(found["one"], found["rest"], strict=True))


def test_with_a_real_tokenizer(processor):
    tokenizer = processor.tokenizer
    text = "<describe>A red line.</describe> The answer is 7 cm."
    ids = tokenizer(text)["input_ids"]
    rollouts = Rollouts((PROBLEM,), ((Response(torch.tensor(ids), None, "stop"),),), ((text,),))
    mask = segment_masks(rollouts, {"d": "<describe>.*?</describe>"}, tokenizer)["d"]
    inside = [token for token, is_in in zip(ids, mask.tolist(), strict=True) if is_in]
    assert tokenizer.decode(inside).strip() == "<describe>A red line.</describe>"
