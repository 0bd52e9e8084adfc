"""Teachers: frozen, following the student, or the student itself with its modules off."""

from __future__ import annotations

import copy

import pytest
import torch

from vicur.data.views import Plain
from vicur.models.adapters import LoRAConfig
from vicur.models.load import RecoveryConfig, StudentConfig, load_student
from vicur.models.sharding import local, shard
from vicur.scoring.chunks import sampled_log_probs
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig

LORA = LoRAConfig(rank=4, alpha=8.0)


def log_probs_of(scorer, samples, responses):
    return scorer.log_probs(samples, [[r] for r in responses], Plain())


def shake(model, seed=5):
    """Change all trained parameters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def lora_student(base_folder, recovery=False):
    config = RecoveryConfig(enabled=recovery, interval=2)
    loaded = load_student(StudentConfig(base_folder, config, lora=LORA))
    shake(loaded.model, seed=1)
    return loaded


def make(student, **settings):
    return Teacher.of(TeacherConfig(privilege="none", **settings), student, lora=LORA)


def test_a_frozen_self_teacher_stays_and_has_no_recovery(base, student, samples, responses):
    teacher = make(student)
    before = log_probs_of(Scorer(base), samples, responses)
    shake(student.model)
    teacher.update()
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), before)
    assert not any(p.requires_grad for p in teacher.loaded.model.parameters())


@pytest.mark.parametrize("keep", [False, True])
def test_a_live_teacher_is_the_student_of_the_moment(student, samples, responses, keep):
    teacher = make(student, update="live", keep_modules=keep)
    assert teacher.loaded.model is student.model
    shake(student.model)
    expected = copy.deepcopy(student)
    if not keep:
        for layer in expected.recovery.layers.values():
            layer.output.weight.data.zero_()
    assert torch.equal(
        log_probs_of(teacher.scorer, samples, responses), log_probs_of(Scorer(expected), samples, responses)
    )
    assert all(p.requires_grad for p in student.model.parameters())
    full = log_probs_of(Scorer(student), samples, responses)
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), full) == keep


def test_a_teacher_with_its_modules_is_a_copy_of_the_whole_student(student, samples, responses):
    teacher = make(student, keep_modules=True)
    assert teacher.loaded.recovery is not None and teacher.loaded.model is not student.model
    before = log_probs_of(Scorer(student), samples, responses)
    shake(student.model)
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), before)


@pytest.mark.parametrize("keep", [False, True])
def test_a_moving_average_follows_every_weight(student, keep):
    teacher = make(student, update="ema", ema_decay=0.75, keep_modules=keep)
    start = {name: p.detach().clone() for name, p in teacher.loaded.model.named_parameters()}
    assert any(name.startswith("recovery.") for name in start) == keep
    moved = dict(student.model.named_parameters())
    shake(student.model, 1)
    teacher.update()
    first = {name: moved[name].detach().clone() for name in start}
    shake(student.model, 2)
    teacher.update()
    for name, own in teacher.loaded.model.named_parameters():
        # 0.75 (0.75 s0 + 0.25 s1) + 0.25 s2
        expected = 0.5625 * start[name] + 0.1875 * first[name] + 0.25 * moved[name]
        torch.testing.assert_close(own.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_moving_average_of_a_half_precision_student_keeps_moving(base_folder, monkeypatch):
    """1 % of a small change is too small to be added to 1 in bfloat16, so the average is in float32."""
    student = load_student(StudentConfig(base_folder, dtype="bfloat16"))
    teacher = Teacher.of(TeacherConfig(update="ema", ema_decay=0.99), student)
    shard(student.policy, "full", torch.device("cpu"))
    teacher.shard("full", torch.device("cpu"))
    weights = [dict(loaded.model.named_parameters()) for loaded in (student, teacher.loaded)]
    name = "model.language_model.norm.weight"
    averaged, moved = weights[1][name], weights[0][name]
    with torch.no_grad():
        local(averaged).fill_(1.0)
        local(moved).fill_(1.03)
    for _ in range(300):
        teacher.update()
    assert averaged.dtype == torch.float32 and teacher.loaded.dtype == torch.bfloat16
    assert local(averaged).mean() == pytest.approx(1.03 - 0.03 * 0.99**300, abs=1e-4)


@pytest.mark.parametrize("recovery", [False, True])
def test_the_teacher_of_a_lora_student_is_its_base_at_no_extra_memory(
    base, base_folder, samples, responses, recovery
):
    student = lora_student(base_folder, recovery)
    teacher = make(student)
    assert teacher.loaded.model is student.model
    expected = log_probs_of(Scorer(base), samples, responses)
    own = log_probs_of(Scorer(student), samples, responses)
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), expected)
    assert (own - expected).abs().max() > 1e-3
    assert torch.equal(log_probs_of(Scorer(student), samples, responses), own)


def test_the_average_of_a_lora_student_is_a_second_adapter(base_folder, samples, responses):
    student = lora_student(base_folder)
    before = log_probs_of(Scorer(student), samples, responses)
    count = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    teacher = make(student, update="ema", ema_decay=0.0, keep_modules=True)
    assert teacher.loaded.model is student.model
    assert sum(p.numel() for p in student.model.parameters() if p.requires_grad) == count
    shake(student.model)
    after = log_probs_of(Scorer(student), samples, responses)
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), before)
    teacher.update()  # with a decay of 0 it arrives at once
    assert torch.equal(log_probs_of(teacher.scorer, samples, responses), after)
    assert torch.equal(log_probs_of(Scorer(student), samples, responses), after)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"update": "live"}, "without the adapters of a LoRA student is the frozen base"),
        ({"update": "ema"}, "without the adapters of a LoRA student is the frozen base"),
        ({"keep_modules": True}, "new adapters change nothing"),
        ({"update": "ema", "keep_modules": True}, "not its cue recovery module"),
    ],
)
def test_invalid_teachers_of_a_lora_student(base_folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make(lora_student(base_folder, recovery=True), **settings)


def test_a_teacher_that_shares_the_students_weights_is_not_offloaded(base_folder):
    with pytest.raises(ValueError, match=r"teacher\.update=live shares the student's"):
        TeacherConfig(update="live", offload=True)
    with pytest.raises(ValueError, match=r"self-teacher of a LoRA student shares the student's"):
        make(lora_student(base_folder), offload=True)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_offloaded_teacher_scores_the_same(base_folder, student, samples, responses, dtype, offload):
    """And what it scored stays valid: its head is a copy, as the gathered one is freed."""
    expected = log_probs_of(make(student, model=base_folder, dtype=dtype).scorer, samples, responses)
    teacher = make(student, model=base_folder, dtype=dtype, offload=offload)
    teacher.shard("full", torch.device("cpu"))
    assert teacher.loaded.policy.is_sharded == (offload or dtype == "bfloat16")
    reading = teacher.scorer.reading(torch.cat(responses))
    scores = teacher.scorer.scores(samples, [[r] for r in responses], Plain())
    with teacher.loaded.policy.unsharded():
        pass
    torch.testing.assert_close(sampled_log_probs(scores, reading), expected, rtol=1e-5, atol=1e-5)


def test_settings_of_another_checkpoint():
    with pytest.raises(ValueError, match="apply only to a self-teacher"):
        TeacherConfig(model="vicur:tiny-teacher", update="live")
    with pytest.raises(ValueError, match="ema_decay must be below 1"):
        TeacherConfig(ema_decay=1.0)


def test_another_checkpoint_in_half_precision(base, base_folder, student, samples, responses):
    teacher = make(student, model=base_folder, dtype="bfloat16")
    assert teacher.loaded.model.dtype == torch.bfloat16
    difference = log_probs_of(teacher.scorer, samples, responses) - log_probs_of(
        Scorer(base), samples, responses
    )
    assert 0 < difference.abs().max() < 0.3


def test_a_copy_in_half_precision_is_the_student_in_every_buffer(base_folder, samples, responses):
    """Rotary frequencies stay float32: if rounded, large positions would be rotated by whole radians."""
    student = load_student(StudentConfig(base_folder, dtype="bfloat16"))
    teacher = make(student)
    own, theirs = (dict(loaded.model.named_buffers()) for loaded in (teacher.loaded, student))
    assert own.keys() == theirs.keys() and any("inv_freq" in name for name in own)
    for name, buffer in own.items():
        assert buffer.dtype == theirs[name].dtype and torch.equal(buffer, theirs[name]), name
    assert torch.equal(
        log_probs_of(teacher.scorer, samples, responses), log_probs_of(Scorer(student), samples, responses)
    )


@pytest.mark.parametrize("update", ["live", "ema", "frozen"])
def test_a_changing_teacher_keeps_its_earlier_scores(base_folder, samples, responses, update):
    """Several updates of one rollout batch: old hidden states must not be combined with a new head."""
    student = load_student(StudentConfig(base_folder))
    teacher = make(student, update=update)
    reading = teacher.scorer.reading(torch.cat(responses))
    scores = teacher.scorer.scores(samples, [[r] for r in responses], Plain())
    before = sampled_log_probs(scores, reading)
    shake(student.model)
    teacher.update()
    assert torch.equal(sampled_log_probs(scores, reading), before)
    teacher.scorer.clear_cache()
    after = log_probs_of(teacher.scorer, samples, responses)
    assert torch.equal(after, before) == (update == "frozen")
