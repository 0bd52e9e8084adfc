from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.sample import Privilege
from vicur.data.sources import FileSource
from vicur.data.views import Blind, Hinted, combined
from vicur.worth.texts import others, outline, several_texts, text_of, with_text

few_words = st.lists(
    st.sampled_from(["red 3", "red  3", " red 3", "blue 5", "green 7", "9", "x = 2"]), min_size=2
)
many_words = st.lists(st.text(max_size=8), min_size=2, max_size=40)


def same(one: str, other: str) -> bool:
    return one.split() == other.split()


@given(few_words | many_words, st.integers(0, 10**9))
def test_no_problem_is_shown_its_own_text_or_an_equal_one(texts, seed):
    keys = [f"sample {i}" for i in range(len(texts))]
    if all(same(text, texts[0]) for text in texts):
        with pytest.raises(ValueError, match=r"All \d+ texts are the same"):
            others(keys, texts, seed)
        return
    found = others(keys, texts, seed)
    assert all(i != j and not same(texts[i], texts[j]) for i, j in enumerate(found))
    most = max(sum(same(text, other) for other in texts) for text in texts)
    if 2 * most <= len(texts):
        assert sorted(found) == list(range(len(texts))), "each text is shown once"


@given(many_words, st.randoms(use_true_random=False), st.integers(0, 99))
def test_who_gets_which_text_does_not_depend_on_order(texts, random, seed):
    texts = [*texts, "one text", "another text"]
    order = list(range(len(texts)))
    random.shuffle(order)
    # An id that has a text's words in it must not be able to change what happens.
    keys = [f"{i}/{text}" for i, text in enumerate(texts)]
    found = others(keys, texts, seed)
    moved = others([keys[i] for i in order], [texts[i] for i in order], seed)
    assert [texts[order[moved[order.index(i)]]] for i in range(len(texts))] == [texts[j] for j in found]


def test_another_seed_another_derangement():
    texts = [str(i) for i in range(50)]
    assert others(texts, texts, 0) == others(texts, texts, 0) != others(texts, texts, 1)


def test_the_only_other_text_is_used_for_all():
    """Three of four read "yes": whoever says so is shown the one "no"."""
    assert others(["a", "b", "c", "d"], ["yes", "yes", "no", "yes"], 0)[:2] == [2, 2]


def test_without_image_but_with_the_hint(samples):
    sample = samples[0]
    shown, blind = combined([Hinted("cue"), Blind()]).show(sample), Blind().show(sample)
    hinted = Hinted("cue").show(sample)
    assert shown.images == () and shown.videos == ()
    assert shown.messages[-1]["content"] == [
        *blind.messages[-1]["content"],
        hinted.messages[-1]["content"][-1],
    ]
    assert sample.privilege.cue in shown.messages[-1]["content"][-1]["text"]
    view = combined([Hinted("cue"), Blind()])
    assert view.applies(sample) and view != combined([Hinted("answer"), Blind()])
    with pytest.raises(ValueError, match="has no cue"):
        combined([Hinted("cue"), Blind()]).show(replace(sample, privilege=Privilege()))


def test_a_given_text_is_the_only_privilege(samples):
    changed = with_text(samples[0], "rationale", "Look twice.")
    assert changed.privilege == Privilege(rationale="Look twice.")
    assert changed.messages == samples[0].messages and changed.id == samples[0].id


def test_an_empty_text_is_none(samples):
    assert text_of(samples[0], "cue") == samples[0].privilege.cue
    assert text_of(with_text(samples[0], "cue", " \n"), "cue") is None
    assert text_of(with_text(samples[0], "cue", "A circle."), "answer") is None


@pytest.mark.parametrize(
    ("held", "found"),
    [
        (None, ()),
        (["a", "b", "a"], ("a", "b", "a")),
        (("a", " ", "b"), ("a", "b")),
        (json.dumps(["a", "b"]), ("a", "b")),
    ],
)
def test_several_texts_of_the_data(samples, held, found):
    meta = {} if held is None else {"cues": held}
    assert several_texts(replace(samples[0], meta=meta), "cue") == found
    assert several_texts(replace(samples[0], meta=meta), "rationale") == ()


@pytest.mark.parametrize("held", ["no list", json.dumps({"a": 1}), [1, 2], [{"text": "a"}], "[" * 200_000])
def test_several_texts_that_are_none(samples, held):
    with pytest.raises(ValueError, match="cues must be a list of texts"):
        several_texts(replace(samples[0], meta={"cues": held}), "cue")


def test_texts_of_a_file_need_no_image(tmp_path, samples):
    path = tmp_path / "data.jsonl"
    samples[0].images[0].save(tmp_path / "a.png")
    row = {"id": "a", "images": ["a.png"], "problem": "<image>Which?", "cue": "A.", "cues": ["A.", "B."]}
    path.write_text(json.dumps(row) + "\n")
    found = outline(FileSource(path), 0)
    assert text_of(found, "cue") == "A." and several_texts(found, "cue") == ("A.", "B.")
    with pytest.raises(AssertionError, match="no pixels"):
        found.images[0].load()
    assert outline(samples, 1) is samples[1]
