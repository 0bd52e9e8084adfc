"""A sink at the end of the question: where it is, what it depends on, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from forward import student_gathering_in
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from vicur.data.views import Plain, view_of
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.models.load import RecoveryConfig, StudentConfig, load_model, load_student
from vicur.models.recovery import RecoveryObserver, RecoveryPlan, Turns

START, END, IMAGE = 90, 91, 7


@pytest.fixture(scope="module", params=["first", "question"])
def gathering(base_folder, request):
    return student_gathering_in(request.param, base_folder, interval=1)


@pytest.fixture(scope="module")
def question_student(base_folder):
    return student_gathering_in("question", base_folder)


def asked(sample, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return replace(sample, messages=({"role": "user", "content": content},))


def maps_of(loaded, sample, view=None):
    """The attention of the sink in each layer."""
    encoder = PromptEncoder(loaded.processor, loaded.model.model.get_rope_index)
    inputs = build_sequences(encoder.encode([(view or Plain()).show(sample)]), [()], pad_id=0).model_inputs()
    with RecoveryObserver(loaded.recovery, keep_attention=True) as observer, torch.no_grad():
        loaded.model(**inputs)
    return [torch.stack(maps) for maps in observer.attention.values()]


def test_only_the_end_of_the_question_depends_on_a_question_after_the_image(gathering, samples):
    one, other = (asked(samples[0], text) for text in ("How long is red?", "Which segment is blue?"))
    differences = [
        float((a - b).abs().max())
        for a, b in zip(maps_of(gathering, one), maps_of(gathering, other), strict=True)
    ]
    if gathering.model.config.recovery_sink == "first":
        assert differences == [0.0] * 4
    else:
        assert differences[0] > 0 and min(differences[1:]) > 1e-5
    first = view_of("question_first")
    differences = [
        float((a - b).abs().max())
        for a, b in zip(maps_of(gathering, one, first), maps_of(gathering, other, first), strict=True)
    ]
    assert max(differences) > 1e-6


def test_the_last_of_the_users_turns_is_the_question():
    #      system        user with image     assistant     user              answer
    ids = [START, 1, END, START, IMAGE, 2, END, START, 3, END, START, 4, END, START, 5, END, 0]
    visual = torch.tensor([[token == IMAGE for token in ids]])
    turns = Turns(torch.tensor([ids]), START, END)
    plan = RecoveryPlan.of(visual, None, None, (1, len(ids)), torch.device("cpu"), turns)
    assert (plan.sink_sequence.tolist(), plan.sink_column.tolist()) == ([0], [12])
    assert plan.visual_column.tolist() == [[4]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_packed_samples_have_their_own_questions(shapes):
    ids, positions, expected = [], [], []
    for images, words, answer in shapes:
        sample = [START, *[IMAGE] * images, *[1] * words, END, START, *[2] * answer, END]
        expected.append(len(ids) + images + words + 1)
        ids += sample
        positions += range(len(sample))
    visual = torch.tensor([[token == IMAGE for token in ids]])
    turns = Turns(torch.tensor([ids]), START, END)
    plan = RecoveryPlan.of(visual, None, torch.tensor([positions]), (1, len(ids)), torch.device("cpu"), turns)
    assert plan.sink_column.tolist() == expected


def test_a_prompt_that_is_no_chat_is_refused(question_student):
    prompt = torch.tensor([[START, IMAGE, END]])
    turns = Turns(prompt, START, END)
    with pytest.raises(ValueError, match="must be a chat whose turns begin with"):
        RecoveryPlan.of(prompt == IMAGE, None, None, (1, 3), torch.device("cpu"), turns)
    model = question_student.model
    with torch.no_grad():  # without an image nothing is gathered, so any text will do
        model(**build_sequences([EncodedPrompt.of_text([5, 6])], [()], pad_id=0).model_inputs())


def test_embeddings_instead_of_tokens_are_refused(question_student, samples):
    encoder = PromptEncoder(question_student.processor, question_student.model.model.get_rope_index)
    inputs = build_sequences(encoder.encode([Plain().show(samples[0])]), [()], pad_id=0).model_inputs()
    embeds = question_student.model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="must be called with input_ids"):
        question_student.model(inputs_embeds=embeds, **inputs)


def test_the_sink_is_saved_with_the_model(question_student, samples, tmp_path):
    question_student.save(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.recovery_sink == "question"
    tokenizer = question_student.processor.tokenizer
    assert again.config.recovery_turn_ids == tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    loaded = load_model(str(tmp_path))
    for ours, theirs in zip(maps_of(loaded, samples[0]), maps_of(question_student, samples[0]), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="gathers in the sink question, not first"):
        load_student(StudentConfig(str(tmp_path), RecoveryConfig(sink="first")))
    assert load_student(StudentConfig(str(tmp_path))).model.config.recovery_sink == "question"


def test_generation_gathers_once_at_the_end_of_the_question(question_student, samples):
    encoder = PromptEncoder(question_student.processor, question_student.model.model.get_rope_index)
    content = [{"type": "image", "image": samples[0].images[0]}, {"type": "text", "text": "?"}]
    inputs = encoder.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with RecoveryObserver(question_student.recovery) as observer, torch.no_grad():
        question_student.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert [len(ratios) for ratios in observer.change_ratios().values()] == [1, 1]


def test_a_tokenizer_without_turns(base_folder, monkeypatch):
    from vicur.models import load

    monkeypatch.setattr(load, "TURN_TOKENS", ("<|im_start|>", "<|turn_over|>"))
    with pytest.raises(ValueError, match=r"this one has no <\|turn_over\|>"):
        load_student(StudentConfig(base_folder, RecoveryConfig(enabled=True, sink="question")))


def test_the_first_sink_stays_the_default(base_folder):
    loaded = load_student(StudentConfig(base_folder, RecoveryConfig(enabled=True)))
    assert loaded.model.config.recovery_sink == "first" and loaded.model.config.recovery_turn_ids is None
