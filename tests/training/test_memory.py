"""The estimate of a run's memory, against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from vicur.data.views import Plain
from vicur.models.load import StudentConfig, load_student
from vicur.objectives.objective import Look, Needs
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig
from vicur.training.memory import Workload, estimate_memory

WORK = Workload(
    prompts=8,
    siblings=2,
    prompt_tokens=100,
    teacher_prompt_tokens=120,
    response_tokens=50,
    micro_batch=2,
    scoring_batch=1,
    decoding_batch=1,
    checkpointing=False,
)
NEEDS = Needs(log_probs={"old": Look("student", Plain())}, distributions={"teacher": Look("teacher", None)})


def test_tokens_of_a_step():
    assert WORK.generated == 8 * 2 * 50
    # the student with gradient, its old log-probs, the teacher once
    assert WORK.scored(NEEDS) == 8 * ((100 + 100) + (100 + 100) + (120 + 100))


def test_weights_states_and_activations(base_folder):
    student = load_student(StudentConfig(base_folder))
    count = sum(p.numel() for p in student.model.parameters())
    teacher = Teacher.of(TeacherConfig(), student)
    found = estimate_memory(Scorer(student), teacher, NEEDS, WORK)
    assert found["student's weights"] == 4 * count
    assert found["its gradient and AdamW's moments"] == 12 * count
    assert found["teacher's weights"] == 4 * count
    # 8 prompts, 2 x 50 tokens, one distribution, 64 float32 numbers
    assert found["distributions of a rollout batch, as hidden states"] == 8 * 100 * 64 * 4
    # 2 prompts of 200 tokens, 4 layers, 17 states of 64 float32 numbers
    assert found["update: activations of a micro-batch"] == 2 * 200 * 64 * 4 * 4 * 17
    less = estimate_memory(Scorer(student), teacher, NEEDS, replace(WORK, checkpointing=True))
    assert less["update: activations of a micro-batch"] == 2 * 200 * 64 * 4 * (4 + 17)
    decoding = estimate_memory(Scorer(student), teacher, NEEDS, replace(WORK, decoding_batch=1000))
    # 4 layers, 2 heads of 16, keys and values, float32
    assert decoding["decoding: keys and values"] == 1000 * 2 * 150 * 2 * 4 * 2 * 16 * 4


def test_half_precision_and_shared_weights(base_folder):
    student = load_student(StudentConfig(base_folder, dtype="bfloat16"))
    count = sum(p.numel() for p in student.model.parameters())
    teacher = Teacher.of(TeacherConfig(update="live"), student)
    found = estimate_memory(Scorer(student), teacher, NEEDS, WORK)
    assert found["student's weights"] == (2 + 4) * count
    assert found["its gradient and AdamW's moments"] == 12 * count
    assert "teacher's weights" not in found
    assert student.model.dtype == torch.bfloat16
