"""The split of a student's loss over several texts (ViCuR eq. 18): the loss is information plus the rest."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.data.views import Hinted, Plain
from vicur.scoring.scorer import Scorer
from vicur.scoring.terms import divergence_of_each, divergence_of_mixture, mixture_information
from vicur.worth.measure import PrivilegeConfig, measure_privileges
from vicur.worth.report import student_loss_table
from vicur.worth.responses import StudentResponses
from vicur.worth.summary import privilege_worth
from vicur.worth.texts import with_text

CONFIG = PrivilegeConfig(kinds=("cue",), blind=False, blind_hinted=False, shuffled=False)


def log_probs(seed, count, sharpness):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count + 1, 5, 11, generator=generator, dtype=torch.float64)
    *log_q, log_p = logits.log_softmax(-1)
    return log_q, log_p


@given(st.integers(0, 999), st.integers(1, 6), st.floats(0.0, 30.0))
def test_the_loss_is_information_plus_the_rest(seed, count, sharpness):
    log_q, log_p = log_probs(seed, count, sharpness)
    total = mixture_information(log_q) + divergence_of_mixture(log_q, log_p)
    torch.testing.assert_close(divergence_of_each(log_q, log_p), total, atol=1e-6, rtol=1e-6)


def test_two_certain_teachers_and_a_uniform_student():
    """q1 = (1, 0), q2 = (0, 1), p = (1/2, 1/2): the loss is log 2, all of it information."""
    log_q = [torch.tensor([[1.0, 1e-30]]).log(), torch.tensor([[1e-30, 1.0]]).log()]
    log_p = torch.tensor([[0.5, 0.5]]).log()
    log_2 = torch.tensor([2.0]).log()
    torch.testing.assert_close(divergence_of_each(log_q, log_p), log_2)
    torch.testing.assert_close(mixture_information(log_q), log_2)
    assert divergence_of_mixture(log_q, log_p).abs().item() < 1e-6


def test_models_give_the_same_as_arithmetic_on_their_log_probs(student, base, samples, responses):
    """The student differs from the teacher by its recovery module, so the rest is not 0 either."""
    texts = ["The segments are red 1 and blue 1.", "The segments are green 9 and pink 8."]
    several = {"cue": {sample.id: texts for sample in samples}}
    answered = StudentResponses(
        tuple(range(len(samples))),
        tuple((ids,) for ids in responses),
        tuple(("",) for _ in samples),
        tuple((True,) for _ in samples),
    )
    teacher, learner = Scorer(base), Scorer(student)
    tokens = measure_privileges(teacher, samples, answered, CONFIG, several=several, student=learner)
    loss, rest = tokens.student_loss["cue"].double(), tokens.student_rest["cue"].double()
    torch.testing.assert_close(loss, tokens.information["cue"].double() + rest, atol=2e-5, rtol=2e-5)
    assert rest.mean() > 1e-3 and (loss - rest).mean() > 1e-3

    groups = [[ids] for ids in responses]
    kept = base.vocabulary.scored_ids("shared")

    def log_probs_of(scorer, problems, view):
        scores = scorer.scores(problems, groups, view)
        return (scores.hidden_ND @ scores.head_WD.T)[:, kept].double().log_softmax(-1)

    log_q = [
        log_probs_of(teacher, [with_text(sample, "cue", text) for sample in samples], Hinted("cue"))
        for text in texts
    ]
    log_p = log_probs_of(learner, samples, Plain())
    torch.testing.assert_close(loss, divergence_of_each(log_q, log_p), atol=1e-4, rtol=1e-3)
    split = privilege_worth(tokens)["cue"].student_loss
    assert split.loss.value == pytest.approx(split.information.value + split.rest.value, abs=2e-5)
    assert split.share.value == pytest.approx(split.information.value / split.loss.value)
    assert {"student_loss_cue", "student_rest_cue"} <= set(tokens.rows()[0])


def test_without_several_texts_there_is_nothing_to_split(base, samples, responses):
    answered = StudentResponses((0,), ((responses[0],),), (("",),), ((True,),))
    with pytest.raises(ValueError, match="a column cues with a list of texts"):
        measure_privileges(Scorer(base), samples, answered, CONFIG, student=Scorer(base))
    tokens = measure_privileges(Scorer(base), samples, answered, CONFIG)
    worth = privilege_worth(tokens)
    assert worth["cue"].student_loss is None and student_loss_table(worth) is None


def test_some_problems_may_lack_several_texts(base, samples, responses):
    several = {"cue": {samples[0].id: ["Red 1.", "Blue 9."]}}
    answered = StudentResponses(
        (0, 1), ((responses[0],), (responses[1],)), (("",), ("",)), ((True,), (True,))
    )
    tokens = measure_privileges(
        Scorer(base), samples, answered, CONFIG, several=several, student=Scorer(base)
    )
    assert tokens.student_loss["cue"].isnan().sum() == len(responses[1])
    assert tokens.rows()[1]["student_loss_cue"] is None
    alone = replace(answered, index=(0,), ids=((responses[0],),), texts=(("",),), correct=((True,),))
    only = measure_privileges(Scorer(base), samples, alone, CONFIG, several=several, student=Scorer(base))
    both, first = (privilege_worth(each)["cue"].student_loss for each in (tokens, only))
    assert both.loss.value == pytest.approx(first.loss.value, rel=1e-4)


def test_from_the_command_line(tmp_path, capsys):
    data, out = tmp_path / "problems.parquet", tmp_path / "out"
    write_parquet("segments", "test", 3, data)
    table = pq.read_table(data)
    cues = table["cue"].to_pylist()
    lists = [[cue, cues[0], "Nothing."] for cue in cues]
    pq.write_table(table.append_column("cues", pa.array(lists, pa.list_(pa.string()))), data)
    words = ["cues", "worth", "--data", str(data), "--student", "vicur:tiny-student", "--output", str(out)]
    small = ["--group-size", "1", "--kinds", "cue", "sampling.max_new_tokens=4"]
    assert main([*words, *small, "--student-loss"]) == 0
    assert "= information" in capsys.readouterr().out
    conditions = json.loads((out / "worth.json").read_text())["conditions"]
    split = next(condition for condition in conditions if condition["name"] == "cue")["student_loss"]
    total = split["information"]["value"] + split["rest"]["value"]
    assert split["loss"]["value"] == pytest.approx(total, abs=2e-5) and total > 0
