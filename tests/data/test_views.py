"""What each view shows, and that no privilege ever reaches the student."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.sample import Privilege, Sample
from vicur.data.views import Blind, Hinted, Plain
from vicur.scoring.scorer import Scorer


def text_of(shown):
    return "".join(p.get("text", f"<{p['type']}>") for m in shown.messages for p in m["content"])


def test_hint_stands_after_the_question_on_a_new_line(samples):
    sample = samples[0]
    plain = text_of(Plain().show(sample))
    assert text_of(Hinted("cue").show(sample)) == f"{plain}\n[Hint]: {sample.privilege.cue}"
    assert text_of(Hinted("answer").show(sample)) == f"{plain}\n[Hint]: {sample.answer}"
    assert Hinted("cue").show(sample).images == sample.images


def test_hint_goes_to_the_last_user_message(samples):
    first = samples[0].messages[0]
    chat = (
        first,
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "And then?"}]},
    )
    shown = Hinted("cue").show(replace(samples[0], messages=chat))
    assert [len(m["content"]) for m in shown.messages] == [2, 1, 2]


def test_teacher_prompt_replaces_the_messages(samples):
    prompt = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look well."}]},)
    sample = replace(samples[0], privilege=Privilege(teacher_prompt=prompt))
    assert text_of(Hinted("teacher_prompt").show(sample)) == "<image>Look well."


def test_missing_privilege(samples):
    bare = replace(samples[0], privilege=Privilege())
    assert Hinted("cue").show(bare) == Plain().show(bare)
    assert not Hinted("cue").applies(bare) and Plain().applies(bare)
    with pytest.raises(ValueError, match="has no cue"):
        Hinted("cue", missing="error").show(bare)


def test_blind_keeps_the_words_and_drops_the_media(samples):
    shown = Blind().show(samples[0])
    assert shown.images == () and text_of(shown) == text_of(Plain().show(samples[0]))[len("<image>") :]


def test_placeholders_must_match_media(samples):
    with pytest.raises(ValueError, match=r"1 image placeholder\(s\), but the sample has 0"):
        replace(samples[0], images=())


def tensors_of(prompt):
    return [prompt.input_ids, prompt.token_types, prompt.positions, *prompt.media.values()]


words = st.text(min_size=1, max_size=30)


@given(words, words, words, st.integers(0, 5))
def test_student_views_do_not_depend_on_answer_or_privilege(
    shared_student, samples, answer, rationale, cue, index
):
    """Bit-identical tensors whatever the answer and every privilege are; the teacher's change."""
    encoder = Scorer(shared_student).encoder
    sample = samples[index]
    other: Sample = replace(
        sample,
        answer=answer,
        privilege=Privilege(answer, rationale, cue, ({"role": "user", "content": []},)),
        target_response=rationale,
    )
    for view in (Plain(), Blind()):
        ours, theirs = encoder.encode([view.show(sample), view.show(other)])
        pairs = list(zip(tensors_of(ours), tensors_of(theirs), strict=True))
        assert pairs and all(torch.equal(a, b) for a, b in pairs)
    if cue != sample.privilege.cue:
        ours, theirs = encoder.encode([Hinted("cue").show(sample), Hinted("cue").show(other)])
        assert not torch.equal(ours.input_ids, theirs.input_ids)
