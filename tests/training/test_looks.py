"""What each model is shown in training: the student's own view, hindsight, several teachers, the gap."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from vicur.data.views import Attempt, Augmented, Blind, Degraded, Hinted, Plain, combined, view_of
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.objective import OLD, TEACHER, UNPRIVILEGED, Look, Needs
from vicur.objectives.sampled import SampledTokenOPD
from vicur.rewards.grader import Grade
from vicur.rollouts.rollout import Response, Rollouts
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig, load_teachers
from vicur.training.optimizer import Optimizer, OptimizerConfig
from vicur.training.scoring import BatchScorer, ScoredBatch, attempts_of
from vicur.training.update import Updater


@pytest.fixture(scope="module")
def rollouts(samples, responses):
    """Three problems with two responses each; the first response to each is right."""
    pairs = tuple(
        (Response(a, None, "stop"), Response(b, None, "stop"))
        for a, b in zip(responses[:3], responses[3:], strict=True)
    )
    texts = tuple((f"The answer is {s.answer}.", "None.") for s in samples[:3])
    return Rollouts(tuple(samples[:3]), pairs, texts)


@pytest.fixture(scope="module")
def teacher(other_weights):
    return other_weights


def updated(scorer, objective, rollouts):
    """The per-token numbers of an update's gradient."""
    loaded = scorer.student.loaded
    needs = scorer.with_gap_split(objective.needs(1))
    batch = scorer.score_references(scorer.score_rollouts(rollouts, needs, 1, None), needs)
    weighed = objective.weigh(batch.scored_tokens(scorer.student.device))
    optimizer = Optimizer(loaded.model, OptimizerConfig(), total_steps=1)
    return Updater(scorer.student, optimizer, 3).gradient(batch, weighed, needs), batch


# ------------------------------------------------------------------------------------- student's view


def test_the_student_learns_from_what_it_is_shown(shared_student, teacher, rollouts):
    student = Scorer(copy.deepcopy(shared_student), view=Degraded(0.2))
    scorer = BatchScorer(student, Teacher(teacher, Plain()), seed=0)
    update, batch = updated(scorer, SampledTokenOPD(), rollouts)
    direct = Scorer(shared_student)
    degraded = direct.log_probs(rollouts.samples, rollouts.response_ids, Degraded(0.2))
    plain = direct.log_probs(rollouts.samples, rollouts.response_ids, Plain())
    torch.testing.assert_close(batch.log_probs[OLD], degraded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(update.tokens["student_log_prob"].float(), degraded, rtol=1e-4, atol=1e-4)
    assert (plain - degraded).abs().max() > 1e-2


def test_looks_of_the_student_add_to_its_own_view():
    own = {"student": Degraded(0.2), "teacher": Hinted("cue")}
    assert Look("student").resolved(own) == Degraded(0.2)
    assert Look("student", Blind()).resolved(own) == combined([Degraded(0.2), Blind()])
    assert Look("teacher").resolved(own) == Hinted("cue")
    assert Look("teacher", "student").resolved(own) == Degraded(0.2)
    assert Look("teacher", Blind()).resolved(own) == Blind()


def test_a_random_view_is_drawn_anew_at_every_step(shared_student, rollouts):
    student = Scorer(shared_student, view=Augmented(0.5))
    scorer = BatchScorer(student, None, seed=0)
    pixels = []
    for step in (1, 2, 1):
        scorer.begin_step(step)
        assert student.view == Augmented(0.5, draw=step)
        pixels.append(student.encode(rollouts.samples, student.view)[0].media["pixel_values"])
    assert torch.equal(pixels[0], pixels[2]) and not torch.equal(pixels[0], pixels[1])


def test_a_random_look_is_drawn_anew_at_every_step(shared_student, teacher, rollouts):
    scorer = BatchScorer(Scorer(shared_student), Teacher(teacher, Plain()), seed=0)
    needs = Needs(log_probs={"a": Look("teacher", view_of("masked(0.5, 8)"))})
    found = []
    for step in (1, 2, 1):
        scorer.begin_step(step)
        found.append(scorer.score_rollouts(rollouts, needs, step, None).log_probs["a"])
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


# ------------------------------------------------------------------------------------------- hindsight


def test_responses_and_what_became_of_them(rollouts):
    right, wrong = Grade(1.0, True), Grade(0.0, False)
    first, second, third = attempts_of(rollouts, [right, wrong, wrong, None, right, right])
    answers = [group[0] for group in rollouts.texts]
    assert first == [Attempt(answers[0], True, None), Attempt("None.", False, answers[0])]
    assert second == [Attempt(answers[1], False, None), Attempt("None.", None, None)]
    assert third == [Attempt(answers[2], True, "None."), Attempt("None.", True, answers[2])]


@pytest.mark.parametrize("view", ["verdict", "solution", "verdict + cue", "crop + solution"])
def test_a_teacher_in_hindsight_reads_every_response_under_its_own_prompt(
    shared_student, teacher, rollouts, view
):
    scorer = BatchScorer(Scorer(shared_student), Teacher(teacher, view_of(view)), seed=0)
    needs = Needs(log_probs={TEACHER: Look("teacher")}, distributions={"q": Look("teacher")})
    batch = scorer.score_rollouts(rollouts, needs, 1, None)
    alone = []
    plain = Scorer(teacher)
    for number, (sample, group) in enumerate(zip(rollouts.samples, rollouts.response_ids, strict=True)):
        for ids, attempt in zip(group, batch.attempts[number], strict=True):
            prompt = plain.encoder.encode([view_of(view).show(sample, attempt)])
            sequences = plain.sequences(prompt, [[ids]])
            scores = plain.run(sequences, lambda hidden, head: hidden @ head.T).log_softmax(-1)
            alone.append(scores.gather(-1, ids[:, None])[:, 0].detach())
    torch.testing.assert_close(batch.log_probs[TEACHER], torch.cat(alone), rtol=1e-3, atol=2e-3)
    unseen = plain.log_probs(rollouts.samples, rollouts.response_ids, Plain())
    assert (batch.log_probs[TEACHER] - unseen).abs().max() > 1e-2


def test_a_scorer_is_not_asked_for_hindsight_without_responses(shared_student, rollouts):
    with pytest.raises(AssertionError, match="needs the responses and their grades"):
        Scorer(shared_student).scores(rollouts.samples, rollouts.response_ids, view_of("verdict"))


# --------------------------------------------------------------------------------------- several teachers


def test_teachers_by_name_share_weights_that_are_the_same(shared_student, base_folder):
    frozen = TeacherConfig(privilege="cue")
    configs = {
        "teacher": frozen,
        "crop": TeacherConfig(privilege="crop"),
        "large": TeacherConfig(model=base_folder, privilege="none"),
        "slow": TeacherConfig(update="ema", privilege="none"),
        "slow_cue": TeacherConfig(update="ema", privilege="cue"),
    }
    teachers = load_teachers(configs, shared_student)
    assert list(teachers) == list(configs)
    assert [t.view.name for t in teachers.values()] == ["cue", "crop", "plain", "plain", "cue"]
    assert teachers["crop"].loaded is teachers["teacher"].loaded
    assert teachers["slow_cue"].loaded is teachers["slow"].loaded is not teachers["crop"].loaded
    # The moving average takes one step per update, not two.
    assert teachers["slow"].average is not None and teachers["slow_cue"].average is None
    assert teachers["slow_cue"].tensors() == {} != teachers["slow"].tensors()


def test_looks_of_teachers_by_name(shared_student, teacher, rollouts):
    others = {"crop": Teacher(teacher, view_of("crop"))}
    scorer = BatchScorer(Scorer(shared_student), Teacher(teacher, Hinted("cue")), 0, others=others)
    needs = Needs(
        log_probs={"a": Look("crop"), "b": Look("teacher"), "c": Look("crop", Plain())},
    )
    batch = scorer.score_rollouts(rollouts, needs, 1, None)
    direct = Scorer(teacher)
    for name, view in {"a": view_of("crop"), "b": Hinted("cue"), "c": Plain()}.items():
        expected = direct.log_probs(rollouts.samples, rollouts.response_ids, view)
        torch.testing.assert_close(batch.log_probs[name], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="needs the model large"):
        scorer.score_rollouts(rollouts, Needs(log_probs={"a": Look("large")}), 1, None)


# -------------------------------------------------------------------------------------------- the gap


@pytest.mark.parametrize("objective", [SampledTokenOPD(), DivergenceOPD()], ids=["sampled", "KL"])
def test_the_gap_is_the_sum_of_privilege_and_capability(shared_student, teacher, rollouts, objective):
    scorer = BatchScorer(Scorer(copy.deepcopy(shared_student)), Teacher(teacher, Hinted("cue")), seed=0)
    update, _ = updated(scorer, objective, rollouts)
    tokens = update.tokens
    torch.testing.assert_close(tokens["gap"], tokens["privilege_gap"] + tokens["capability_gap"])
    direct = Scorer(teacher)
    hinted, plain = (
        direct.log_probs(rollouts.samples, rollouts.response_ids, view) for view in (Hinted("cue"), Plain())
    )
    torch.testing.assert_close(tokens["privilege_gap"].float(), hinted - plain, rtol=1e-3, atol=1e-4)
    assert update.summaries["privilege_gap"] == update.summaries["capability_gap"] == "parts"


def test_what_the_gap_is_split_against(shared_student, teacher):
    needs = SampledTokenOPD().needs(1)
    split = lambda view, own=None: BatchScorer(  # noqa: E731
        Scorer(shared_student, view=own), Teacher(teacher, view), seed=0
    ).with_gap_split(needs)
    assert split(Plain()) == needs  # nothing to split
    assert split(Hinted("cue")).log_probs[UNPRIVILEGED].resolved({"student": Plain()}) == Plain()
    assert UNPRIVILEGED in split(Plain(), Degraded()).log_probs
    without = Needs(log_probs={OLD: Look("student")})
    scorer = BatchScorer(Scorer(shared_student), Teacher(teacher, Hinted("cue")), seed=0)
    assert scorer.with_gap_split(without) == without  # no gap is recorded


def test_a_part_of_a_batch_keeps_its_segments(rollouts):
    count = len(rollouts.response_index)
    batch = ScoredBatch(rollouts, (None,) * 6, segments={"a": torch.arange(count) % 2 == 0})
    part = batch.part(slice(1, 3))
    assert torch.equal(part.segments["a"], batch.segments["a"][rollouts.tokens(slice(1, 3))])
    assert replace(part).scored_tokens(torch.device("cpu")).segments["a"] is part.segments["a"]
