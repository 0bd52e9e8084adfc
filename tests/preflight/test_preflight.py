"""The preflight finds what goes wrong while the loss looks fine. Each fault is planted."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from vicur.bad_rows import BadRow, BadRowError
from vicur.data.sample import Sample
from vicur.data.views import Plain, teacher_view, view_of
from vicur.encoding.lengths import PromptMeter, Reader
from vicur.models.augment import save_augmented
from vicur.models.load import RecoveryConfig, StudentConfig, as_base, load_model, load_student
from vicur.objectives.objective import TEACHER, Look, Needs
from vicur.preflight.checks import (
    PreflightError,
    _problems_to_check,
    _respond,
    check_lengths,
    run_preflight,
)
from vicur.preflight.prompt_sizes import PromptSizes
from vicur.scoring.scorer import Scorer
from vicur.scoring.teacher import Teacher, TeacherConfig

NEEDS = Needs(log_probs={"old": Look("student", Plain())}, distributions={"teacher": Look("teacher", None)})


@pytest.fixture
def student():
    return load_student(StudentConfig("vicur:tiny-student"))


@pytest.fixture
def teacher(student):
    return Teacher.of(TeacherConfig(privilege="cue"), student)


def lengths(samples, student, teacher, max_new_tokens):
    """What is checked before any model is run."""
    readers = {"student": (Scorer(student), Plain())}
    if teacher is not None:
        readers["teacher"] = (teacher.scorer, teacher.view)
    for who, (scorer, view) in readers.items():
        meter = PromptMeter([Reader(who, view, scorer.encoder)])
        for row, sample in enumerate(samples):
            meter(row, sample)
        sizes = PromptSizes.of([*meter.measured.values()], who)
        yield check_lengths(who, sizes, 4096, max_new_tokens)


def checked(samples, student, teacher, needs=NEEDS, max_new_tokens=32, others=None, **kwargs):
    fitting = tuple(lengths(samples, student, teacher, max_new_tokens))
    teachers = ({} if teacher is None else {TEACHER: teacher}) | (others or {})
    found = run_preflight(samples, Scorer(student), teachers, needs, fitting=fitting, **kwargs)
    return found, {check.name: check.passed for check in found.checks}


def failure(samples, student, teacher, **kwargs):
    found, passed = checked(samples, student, teacher, **kwargs)
    with pytest.raises(PreflightError) as caught:
        found.raise_if_failed()
    return [name for name, own in passed.items() if own is False], str(caught.value)


def test_all_is_well(samples, student, teacher):
    found, passed = checked(samples, student, teacher)
    found.raise_if_failed()
    assert all(passed.values()) and len(passed) == 11
    assert found.student_prompt in found.teacher_prompt.replace("\n[Hint]: " + hint(samples[0]), "")


def hint(sample):
    shown = teacher_view("cue").show(sample).messages[-1]["content"][-1]["text"]
    return shown.removeprefix("\n[Hint]: ")


def test_without_a_teacher_only_the_student_is_looked_at(samples, student):
    found, passed = checked(samples, student, None)
    found.raise_if_failed()
    assert len(passed) == 4 and found.teacher_prompt is None


def test_a_teacher_that_is_not_given_the_pixels(samples, student, teacher, monkeypatch):
    """Its tower returns the same for every image: prompts and loss look as ever."""
    visual = teacher.loaded.model.model.visual
    forward = visual.forward

    def dark(pixels, *args, **kwargs):
        return forward(torch.zeros_like(pixels), *args, **kwargs)

    monkeypatch.setattr(visual, "forward", dark)
    for module in (visual.merger, *visual.deepstack_merger_list):
        module.linear_fc2.weight.data.zero_()
        module.linear_fc2.bias.data.zero_()
    names, message = failure(samples, student, teacher)
    assert "same weights, same view" in names
    assert "self-teacher differs from the student" in message


def test_a_teacher_that_says_the_same_without_the_image(samples, student, teacher, monkeypatch):
    """Its encoder leaves the media out of every prompt."""
    encoder = teacher.scorer.encoder
    encode = encoder.encode

    def drop_media(shown):
        text = [
            replace(
                one,
                messages=tuple(
                    {**m, "content": [p for p in m["content"] if p["type"] == "text"]} for m in one.messages
                ),
                images=(),
                videos=(),
            )
            for one in shown
        ]
        return encode(text)

    monkeypatch.setattr(encoder, "encode", drop_media)
    names, _ = failure(samples, student, teacher)
    assert "the teacher sees the image" in names


def test_a_teacher_without_weights(samples, student, teacher):
    teacher.loaded.model.lm_head.weight.data.zero_()
    names, message = failure(samples, student, teacher)
    assert "teacher's entropy is plausible" in names and "uniform" in message


def test_a_student_of_nan(samples, student, teacher):
    student.model.model.language_model.norm.weight.data.fill_(float("nan"))
    names, message = failure(samples, student, teacher)
    assert names[0] == "student's entropy is plausible" and "nan" in message


def test_a_teacher_that_reads_differently_each_time(samples, student, teacher, monkeypatch):
    norm = teacher.loaded.model.model.language_model.norm
    torch.manual_seed(0)
    handle = norm.register_forward_hook(lambda module, args, out: out + 0.3 * torch.randn_like(out))
    names, _ = failure(samples, student, teacher)
    handle.remove()
    assert "same view twice" in names


def test_a_self_teacher_with_other_weights(samples, student, teacher):
    torch.manual_seed(0)
    for parameter in teacher.loaded.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    names, message = failure(samples, student, teacher)
    assert names == ["same weights, same view"] and "nats per token at the start" in message


def test_a_teacher_by_name_is_checked_too(samples, student, teacher, base_folder):
    blank = Teacher(load_model(base_folder), Plain())
    for parameter in blank.loaded.model.parameters():
        parameter.data.zero_()
    names, message = failure(samples, student, teacher, others={"large": blank})
    assert "teacher large's entropy is plausible" in names and "the teacher large sees the image" in names
    assert "uniform distribution" in message


class Served:
    """A teacher that answers as one on servers does: with log-probs of given tokens."""

    def __init__(self, teacher, is_blind=False):
        self.scorer, self.view, self.encoder = teacher.scorer, teacher.view, teacher.scorer.encoder
        self.is_blind = is_blind

    def log_probs(self, samples, responses, view, attempts=None):
        return self.scorer.log_probs(samples, responses, Plain() if self.is_blind else view)


def test_a_teacher_on_servers_and_one_by_name_are_both_checked(samples, student, base_folder):
    served = Served(Teacher(load_model("vicur:tiny-teacher"), teacher_view("cue")))
    needs = Needs(
        log_probs={"old": Look("student"), TEACHER: Look(TEACHER), "large": Look("large", view_of("blank"))}
    )
    own = {"large": Teacher.of(TeacherConfig(privilege="none"), student)}
    found, passed = checked(samples, student, None, needs, others=own, served=served)
    found.raise_if_failed()
    assert passed["the teacher is shown its privilege"] and passed["the teacher sees the image"]
    assert passed["same weights, same view, the teacher large"] and passed["the teacher large sees the image"]
    assert f"[Hint]: {hint(samples[0])}" in found.teacher_prompt
    blind = Served(served, is_blind=True)
    names, message = failure(samples, student, None, needs=needs, others=own, served=blind)
    assert names == ["the teacher sees the image"] and "the teacher's servers are the same" in message


def test_a_view_in_hindsight_is_no_view_of_a_student(samples, student, teacher):
    needs = Needs(log_probs={"old": Look("student", view_of("verdict"))})
    names, message = failure(samples, student, teacher, needs=needs)
    assert names == ["no privilege reaches the student"] and "verdict shows the student a hint" in message


def test_a_hint_in_a_student_view(samples, student, teacher):
    needs = Needs(log_probs={"old": Look("student", teacher_view("cue"))})
    names, message = failure(samples, student, teacher, needs=needs)
    assert names == ["no privilege reaches the student"] and "cue shows the student a hint" in message


def test_a_hint_in_the_problem_itself(samples, student, teacher):
    def spoiled(sample: Sample) -> Sample:
        (message,) = sample.messages
        content = [*message["content"], {"type": "text", "text": " " + hint(sample)}]
        return replace(sample, messages=({**message, "content": content},))

    names, message = failure(list(map(spoiled, samples)), student, teacher)
    assert names == ["no privilege reaches the student"] and "contains its cue" in message


def test_prompts_that_do_not_fit(samples, student, teacher):
    names, message = failure(samples, student, teacher, max_new_tokens=4090)
    assert names == ["student's prompts fit", "teacher's prompts fit"] and "4096 positions" in message
    assert message.endswith("Lower rollout.sampling.max_new_tokens.")


def test_no_model_is_run_where_a_prompt_does_not_fit(samples, student, teacher, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a model was run")

    for loaded in (student, teacher.loaded):
        monkeypatch.setattr(loaded.model, "forward", forbidden)
        monkeypatch.setattr(loaded.model.model, "forward", forbidden)
    failure(samples, student, teacher, max_new_tokens=4090)
    with pytest.raises(AssertionError, match="a model was run"):
        checked(samples, student, teacher)


@pytest.mark.parametrize(
    "longest, new, fits, fix",
    [
        (900, 100, True, ""),
        (901, 100, False, "data.max_pixels, or skip such problems with data.max_prompt_tokens=900."),
        (300, 701, False, "Lower rollout.sampling.max_new_tokens."),
        (990, 1000, False, "Lower rollout.sampling.max_new_tokens."),
    ],
)
def test_lengths_against_positions(longest, new, fits, fix):
    sizes = PromptSizes(7, 200.0, longest, "problem-3", 100.0, 800, 1e6)
    check = check_lengths("student", sizes, 1000, new)
    assert check.passed is fits
    assert fits or ("problem-3" in check.finding and check.finding.endswith(fix))


def test_the_teachers_limit_is_a_setting_of_its_own():
    sizes = PromptSizes(7, 200.0, 950, "problem-3", 100.0, 800, 1e6)
    assert "data.max_teacher_prompt_tokens=900." in check_lengths("teacher", sizes, 1000, 100).finding


def test_a_privilege_that_nobody_has_and_one_that_says_nothing(samples, student):
    view = teacher_view("cue")
    teacher = Teacher(as_base(student), view)
    bare = [replace(s, privilege=replace(s.privilege, cue=None)) for s in samples]
    _, passed = checked(bare, student, teacher)
    assert passed["the teacher is shown its privilege"] is None


def test_text_only_data_has_nothing_to_see(samples, student, teacher):
    def text_only(sample: Sample) -> Sample:
        (message,) = sample.messages
        content = [part for part in message["content"] if part["type"] == "text"]
        return replace(sample, images=(), messages=({**message, "content": content},))

    bare = list(map(text_only, samples))
    names, message = failure(bare, student, teacher)
    assert names == ["problems have images"] and "data.columns.images" in message
    found, passed = checked(bare, student, teacher, text_only=True)
    found.raise_if_failed()
    assert passed["the teacher sees the image"] is None


def test_another_model_is_not_compared_with_the_student(samples, student):
    loaded = load_model("vicur:tiny-teacher")
    other = Teacher(replace(loaded, vocabulary=student.vocabulary), Plain())
    found, passed = checked(samples, student, other)
    found.raise_if_failed()
    assert passed["same weights, same view"] is None
    assert passed["the teacher is shown its privilege"] is None
    assert passed["the teacher sees the image"] is True


def test_the_first_problems_may_be_text(samples, student, teacher):
    def text_only(sample: Sample) -> Sample:
        (message,) = sample.messages
        content = [part for part in message["content"] if part["type"] == "text"]
        return replace(sample, images=(), messages=({**message, "content": content},))

    mixed = [text_only(samples[0]), *samples[1:]]
    _, passed = checked(mixed, student, teacher)
    assert passed["the teacher sees the image"] is True


def test_it_changes_nothing(samples, student, teacher):
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    checked(samples, student, teacher)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.model.state_dict().items())


class Truncated(Sequence):
    """The first problem cannot be read."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index == 0:
            raise BadRowError("train.parquet", BadRow(0, None, "unreadable_media", "is truncated"))
        return self.samples[index]


def test_a_problem_that_cannot_be_read_is_passed_over(samples):
    chosen = inspect.unwrap(_problems_to_check)  # a check of types would take a problem to look at
    assert [sample.id for sample in chosen(Truncated(samples))] == [s.id for s in samples[1:3]]
    with pytest.raises(BadRowError):
        chosen(Truncated(samples[:1]))


def test_response_tokens_that_are_shifted_between_views(samples, student, teacher, monkeypatch):
    sequences = teacher.scorer.sequences

    def shifted(prompts, responses):
        moved = [[torch.cat([ids[1:], ids[:1]]) for ids in own] for own in responses]
        return sequences(prompts, moved)

    monkeypatch.setattr(teacher.scorer, "sequences", shifted)
    names, _ = failure(samples, student, teacher)
    assert "same response in every view" in names


def test_a_self_teacher_with_its_modules_is_compared_with_the_student(samples):
    config = RecoveryConfig(enabled=True, interval=2, output_init="normal")
    student = load_student(StudentConfig("vicur:tiny-student", config))
    for keep, expected in ((True, True), (False, None)):
        teacher = Teacher.of(TeacherConfig(privilege="cue", keep_modules=keep), student)
        _, passed = checked(samples, student, teacher)
        assert passed["same weights, same view"] is expected


def recovering(output_init, model="vicur:tiny-student"):
    return load_student(StudentConfig(model, RecoveryConfig(True, interval=2, output_init=output_init)))


def start(samples, student, **kwargs):
    """The check of the recovery module."""
    found, _ = checked(samples, student, None, **kwargs)
    return next(check for check in found.checks if check.name == "cue recovery at the start")


def test_a_zero_start_is_exactly_the_base(samples):
    check = start(samples, recovering("zero"), max_start_kl=0.0)
    assert check.passed is True
    assert "recovery 0 nats per token, up to 0; |change|/|h_sink| 0 (layer 0), 0 (layer 2)" in check.finding


def damaged():
    """A fresh module whose output is 30 times as large as a normal start: at this size that is what it takes
    to be seen in the predictions."""
    torch.manual_seed(0)
    student = recovering("normal")
    for module in student.recovery.layers.values():
        module.output.weight.data.mul_(30)
    return student


def test_a_start_that_the_fresh_module_damages(samples):
    student = damaged()
    found, passed = checked(samples, student, None, max_start_kl=1e-4)
    with pytest.raises(PreflightError, match=r"student\.recovery\.max_start_kl=0\.0001 nats per token"):
        found.raise_if_failed()
    assert [name for name, ok in passed.items() if ok is False] == ["cue recovery at the start"]
    assert start(samples, student, max_start_kl=None).passed is True
    assert start(samples, student, max_start_kl=0.1).passed is True


def test_the_start_is_measured_as_it_is(samples):
    """KL and change of the sink, computed by hand: all responses are scored with and without the module."""
    student = damaged()
    scorer = Scorer(student)
    changes, remove = changes_of_sinks(student.recovery)
    check = start(samples, student, max_start_kl=None)
    remove()
    ids = [[ids] for ids in _respond(scorer, samples[:2])]
    log_p = []
    for context in (nullcontext, student.model.without_recovery):
        with context():
            log_p.append(log_probs_by_hand(student, scorer, samples[:2], ids))
    kl = (log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1)
    assert f"{kl.mean():.2g} nats per token, up to {kl.max():.2g};" in check.finding
    assert kl.mean() > 1e-4
    means = [f"{mean:.2g} (layer {layer})" for layer, mean in changes.items()]
    assert len(means) == 2 and check.finding.endswith(f"|change|/|h_sink| {', '.join(means)}")


def changes_of_sinks(recovery):
    """|change| / |h_sink| of each layer's first pass, filled in while the model runs; how to stop that."""
    sinks, changes = [], {}
    hooks = [recovery.query_norm.register_forward_hook(lambda _, inputs, __: sinks.append(inputs[0]))]

    def note(layer):
        def hook(_, __, output):
            if layer not in changes:
                ratios = output[0].norm(dim=-1) / sinks[-1].norm(dim=-1)
                changes[layer] = float(ratios.mean())

        return hook

    hooks += [module.register_forward_hook(note(layer)) for layer, module in recovery.layers.items()]
    return changes, lambda: [hook.remove() for hook in hooks]


def log_probs_by_hand(student, scorer, samples, ids):
    sequences = scorer.sequences(scorer.encode(samples, Plain()), ids)
    with torch.no_grad():
        logits = student.model(**sequences.model_inputs()).logits
    predicting = sequences.predicting(logits)
    return predicting[:, student.vocabulary.scored_ids("shared")].double().log_softmax(-1)


def test_a_trained_module_may_differ_from_its_base(samples, tmp_path):
    """A checkpoint of `vicur init` is fresh, also after it was saved; what a run saves of it is trained."""
    torch.manual_seed(0)
    save_augmented(damaged(), "base", RecoveryConfig(True, output_init="normal"), tmp_path / "fresh")
    fresh = load_student(StudentConfig(str(tmp_path / "fresh")))
    assert start(samples, fresh, max_start_kl=1e-4).passed is False
    fresh.save(tmp_path / "trained")
    trained = load_student(StudentConfig(str(tmp_path / "trained")))
    check = start(samples, trained, max_start_kl=1e-4)
    assert check.passed is True and "The module is trained" in check.finding


def test_a_resumed_run_is_not_measured_at_its_start(samples):
    check = start(samples, damaged(), max_start_kl=1e-4, resumes=True)
    assert check.passed is None and "continues from a checkpoint" in check.finding
