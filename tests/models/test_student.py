"""The student as a transformers model: equal to its base, saved, loaded, generating."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from forward import logits_of, prompts_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import vicur  # noqa: F401  registers the model
from vicur.compat import cache_argument, cache_of, checkpoint_activations
from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.models.load import (
    RecoveryConfig,
    StudentConfig,
    copy_of,
    load_model,
    load_student,
)
from vicur.scoring.scorer import Scorer


def test_fresh_student_equals_its_base_bit_for_bit(base, base_folder, samples):
    fresh = load_student(StudentConfig(base_folder, RecoveryConfig(enabled=True, interval=2)))
    assert torch.equal(logits_of(fresh, samples), logits_of(base, samples))
    names = {n for n, _ in fresh.model.named_parameters()} - {n for n, _ in base.model.named_parameters()}
    assert all(name.startswith("recovery.") for name in names)
    assert len(names) == 2 * 4 + 2  # layers 0 and 2, four matrices each, two norms


@pytest.mark.parametrize("output_init", ["zero", "normal"])
def test_a_fresh_module_starts_as_configured(base_folder, output_init):
    config = RecoveryConfig(enabled=True, interval=2, output_init=output_init)
    recovery = load_student(StudentConfig(base_folder, config)).recovery
    for module in recovery.layers.values():
        for name in ("query", "key", "value", "output"):
            weight = getattr(module, name).weight
            if name == "output" and output_init == "zero":
                assert not weight.any()
            else:
                assert 0.018 < weight.std() < 0.022 and weight.mean().abs() < 0.002
    assert (recovery.query_norm.weight == 1).all() and (recovery.visual_norm.weight == 1).all()
    assert recovery.query_norm.eps == 1e-6


def test_module_changes_the_logits(base, student, samples):
    assert (logits_of(student, samples) - logits_of(base, samples)).abs().max() > 1e-3


def test_text_only_prompt_is_untouched(base, student, samples):
    from vicur.data.views import Blind

    encoders = [PromptEncoder(x.processor, x.model.model.get_rope_index) for x in (base, student)]
    sequences = [
        build_sequences(e.encode([Blind().show(samples[0])]), [()], pad_id=0).model_inputs() for e in encoders
    ]
    with torch.no_grad():
        assert torch.equal(base.model(**sequences[0]).logits, student.model(**sequences[1]).logits)


def test_recovery_acts_after_deepstack(student, samples):
    """The module at layer 0 must see the states to which DeepStack features were already added."""
    loaded, seen = student, {}
    recovery = loaded.model.recovery
    forward = recovery.forward

    def spy(layer, hidden, plan):
        seen[layer] = hidden.detach().clone()
        return forward(layer, hidden, plan)

    recovery.forward = spy
    out = {}
    text = loaded.model.model.language_model
    handle = text.layers[0].register_forward_hook(lambda m, a, o: out.update(layer0=o.detach().clone()))
    logits_of(loaded, samples[:1])
    handle.remove()
    prompt = prompts_of(loaded, samples[:1])[0]
    visual = prompt.token_types > 0
    changed = (seen[0][0] - out["layer0"][0]).abs().amax(-1) > 1e-6
    assert torch.equal(changed, visual)


def test_save_and_auto_load_give_the_same_logits(student, samples, tmp_path):
    student.save(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again) is type(student.model)
    loaded = load_model(str(tmp_path))
    assert torch.equal(logits_of(loaded, samples), logits_of(student, samples))


def test_padding_side_and_amount_change_nothing(student, samples):
    right = logits_of(student, samples)
    for kwargs in (
        {"padding_side": "left"},
        {"padding_side": "left", "pad_to": 90},
        {"pad_to": 90},
    ):
        torch.testing.assert_close(logits_of(student, samples, **kwargs), right, rtol=1e-4, atol=2e-5)


def test_batch_equals_one_sample_at_a_time(student, samples):
    together = logits_of(student, samples)
    alone = torch.cat([logits_of(student, [sample]) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=2e-5)


def test_decoding_after_prefill_equals_one_forward(student, samples, responses):
    for sample, response in zip(samples[:3], responses[:3], strict=True):
        prompt = prompts_of(student, [sample])[0]
        sequences = build_sequences([prompt], [[response]], pad_id=0)
        with torch.no_grad():
            full = student.model(**sequences.model_inputs()).logits[0]
            start = build_sequences([prompt], [()], pad_id=0).model_inputs()
            step = student.model(**start, use_cache=True)
            assert torch.allclose(step.logits[0, -1], full[len(prompt) - 1], atol=2e-5)
            cache = cache_of(step)
            for i, token in enumerate(response):
                end = len(prompt) + i + 1
                step = student.model(
                    input_ids=token[None, None],
                    attention_mask=torch.ones(1, end, dtype=torch.long),
                    position_ids=sequences.position_ids[:, :, end - 1 : end],
                    **cache_argument(cache),
                    use_cache=True,
                )
                torch.testing.assert_close(step.logits[0, -1], full[end - 1], rtol=1e-4, atol=2e-5)


def generation_inputs(student, samples):
    inputs = build_sequences(prompts_of(student, samples), [()] * len(samples), pad_id=0).model_inputs()
    del inputs["position_ids"]  # generate makes its own
    return inputs


@torch.no_grad()
def test_chunked_prefill_is_refused(student, samples):
    inputs = generation_inputs(student, samples[:1])
    with pytest.raises(ValueError, match=r"in one prefill.*Chunked prefill.*not supported"):
        student.model.generate(**inputs, max_new_tokens=2, do_sample=False, prefill_chunk_size=8)


@torch.no_grad()
def test_a_reused_prefix_cache_is_refused(student, samples):
    """The second turn of a chat on top of the first one's cache."""
    inputs = generation_inputs(student, samples[:1])
    cache = cache_of(student.model(**inputs, use_cache=True))
    with pytest.raises(ValueError, match=r"in one prefill.*but 2 token\(s\) came on top of a cache"):
        student.model(input_ids=torch.tensor([[5, 6]]), **cache_argument(cache), use_cache=True)


@torch.no_grad()
def test_an_image_in_a_later_turn_is_refused(student, samples):
    first, second = (generation_inputs(student, [sample]) for sample in samples[:2])
    cache = cache_of(student.model(**first, use_cache=True))
    del second["attention_mask"]
    with pytest.raises(ValueError, match=r"in one prefill.*some of an image or video"):
        student.model(**second, **cache_argument(cache), use_cache=True)


@torch.no_grad()
def test_inputs_that_recovery_rejects_work_without_it(student, samples):
    """Only that it runs: before transformers 5.20 a chunked prefill gives visual tokens other positions."""
    inputs = generation_inputs(student, samples[:1])
    with student.model.without_recovery():
        whole, chunked = (
            student.model.generate(**inputs, max_new_tokens=3, do_sample=False, **kwargs)
            for kwargs in ({}, {"prefill_chunk_size": 64})
        )
    assert whole.shape == chunked.shape


def test_gradients_reach_the_whole_module(student, samples, responses):
    scorer = Scorer(student)
    sequences = scorer.sequences(scorer.encode(samples, Plain()), [[r] for r in responses])
    scorer.run(sequences, lambda hidden, head: (hidden @ head.T).square().sum()).backward()
    recovery = student.model.recovery
    for name, parameter in recovery.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_gradient_checkpointing_gives_the_same_gradients(student, samples, responses):
    def gradients(model_student):
        scorer = Scorer(model_student)
        model_student.model.train()
        sequences = scorer.sequences(scorer.encode(samples[:2], Plain()), [[r] for r in responses[:2]])
        scorer.run(sequences, lambda hidden, head: (hidden @ head.T).square().sum()).backward()
        return {n: p.grad for n, p in model_student.model.named_parameters() if p.grad is not None}

    plain = gradients(student)
    checkpointed = copy.deepcopy(student)
    checkpointed.model.zero_grad()
    checkpoint_activations(checkpointed.model)
    again = gradients(checkpointed)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_copy_has_its_own_module(student, samples):
    """Hooks must follow the copy: its module, not the original's, must act in it."""
    duplicate = copy.deepcopy(student)
    before = logits_of(duplicate, samples[:1])
    for parameter in student.model.recovery.parameters():
        parameter.data.zero_()
    assert torch.equal(logits_of(duplicate, samples[:1]), before)


def test_stock_copy_is_the_student_without_its_module(base, student, samples):
    copied = copy_of(student, with_recovery=False)
    assert torch.equal(logits_of(copied, samples), logits_of(base, samples))
    assert copied.recovery is None


def test_generate_runs_with_the_module(student, samples):
    prompt = prompts_of(student, samples[:1])[0]
    inputs = build_sequences([prompt], [()], pad_id=0).model_inputs()
    del inputs["position_ids"]  # generate makes its own
    out = student.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > len(prompt)


@pytest.mark.parametrize("change, message", [("drop", "lacks weights: "), ("add", "unexpected weights: ")])
def test_checkpoints_with_other_keys_are_refused(base_folder, tmp_path, change, message):
    folder = tmp_path / "broken"
    shutil.copytree(base_folder, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    if change == "drop":
        del weights[name]
    else:
        name = "model.language_model.stray.weight"
        weights[name] = torch.zeros(2)
    save_file(weights, file, metadata={"format": "pt"})
    for load in (load_model, lambda path: load_student(StudentConfig(path, RecoveryConfig(enabled=True)))):
        with pytest.raises(ValueError, match=message) as caught:
            load(str(folder))
        assert name in str(caught.value)


def test_a_recovery_checkpoint_is_trained_on_as_it_is(student, samples, tmp_path):
    student.save(tmp_path)
    with pytest.raises(ValueError, match=r"student\.recovery\.enabled=false"):
        load_student(StudentConfig(str(tmp_path), RecoveryConfig(enabled=False)))
    result = load_student(StudentConfig(str(tmp_path)))
    assert torch.equal(logits_of(result, samples), logits_of(student, samples))
    again = load_student(StudentConfig(str(tmp_path), RecoveryConfig(enabled=True, interval=2)))
    assert again.recovery is not None
    with pytest.raises(ValueError, match=r"has cue recovery after layers \[0, 2\]"):
        load_student(StudentConfig(str(tmp_path), RecoveryConfig(enabled=True, interval=3)))


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(student, tmp_path, monkeypatch):
    def full_disk(self, folder, **options):
        (folder / "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(student.model), "save_pretrained", full_disk)
    with pytest.raises(OSError, match=r"cannot be written: .*No space left"):
        student.save(tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="No checkpoint 'vicur:huge' ships"):
        load_model("vicur:huge")


def test_config_says_where_recovery_acts(student, tmp_path):
    student.save(tmp_path)
    config = json.loads(Path(tmp_path / "config.json").read_text())
    assert (config["model_type"], config["recovery_layers"]) == ("vicur_qwen3_vl", [0, 2])
