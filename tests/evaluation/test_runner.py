"""Evaluations: what is asked, stored, graded and left out."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vicur.bad_rows import BadRow, BadRowError
from vicur.data.sources import FileSource
from vicur.data.views import Degraded, Plain
from vicur.encoding.prompts import PromptEncoder
from vicur.evaluation.controls import Control, OtherMedia, control_view
from vicur.evaluation.responders import ModelResponder
from vicur.evaluation.responses import ResponseStore
from vicur.evaluation.results import SCHEMA
from vicur.evaluation.runner import EvaluationConfig, evaluate, resume_evaluation
from vicur.progress import Progress
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig

CONFIG = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=4), prompts_per_batch=2)


class Problems(list):
    """Samples of which some turn out unreadable, once the evaluation runs: the check of types that
    these tests run under looks at samples too."""

    bad: frozenset[int] = frozenset()

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRowError("data", BadRow(index, f"id {index}", "unreadable_media", "is truncated"))
        return super().__getitem__(index)


class Breaks(Progress):
    """Makes problem 5 unreadable."""

    def __init__(self, problems):
        super().__init__("test", transient=True)
        self.problems = problems

    def over(self, items, count):
        self.problems.bad = frozenset({5})
        yield from super().over(items, count)


class Interrupts(Progress):
    """Ctrl-C after the first batch."""

    def over(self, items, count):
        for number, item in enumerate(items):
            if number == 1:
                raise KeyboardInterrupt
            yield item


def run(student, samples, store=None, bar=None, **options):
    bar = bar or Progress("test", transient=True)
    if store is None:
        return evaluate(student, samples, CONFIG, bar, **options)
    return resume_evaluation(opens(student), samples, CONFIG, bar, store, **options)


def opens(student, config=CONFIG):
    return lambda: nullcontext(ModelResponder(make_engine(student), config.sampling))


def no_model():
    raise AssertionError("every response is there already")


@pytest.fixture
def problems(samples):
    """Gold answers: none, unreadable, and some that can be graded against."""
    answers = [None, "\\frac{", *(sample.answer for sample in samples[2:])]
    return [replace(sample, answer=answer) for sample, answer in zip(samples, answers, strict=True)]


def test_the_table_holds_what_a_reader_must_know(shared_student, problems):
    source = Problems(problems)
    found = run(shared_student, source, bar=Breaks(source), skip_bad_rows=True)
    table = found.table()
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [*(problem.id for problem in problems[:5]), "id 5"]
    assert rows[2]["gold"] == problems[2].answer and rows[2]["correct"] in (True, False)
    assert rows[0]["correct"] is None and rows[0]["excluded"] == "no gold answer"
    assert rows[5]["response"] is None and rows[5]["excluded"] == "unreadable rows: row 5: is truncated"
    for row in rows[:5]:
        assert row["finish_reason"] == "length" and row["response_tokens"] == len(row["response_ids"]) == 4
        assert (row["correct"] is None) == (row["excluded"] is not None)
    assert found.truncated == 5 and sum(found.excluded.values()) + len(found.graded) == 6
    source = Problems(problems)
    with pytest.raises(BadRowError):
        run(shared_student, source, bar=Breaks(source))


def test_an_interrupted_evaluation_resumes(shared_student, problems, tmp_path):
    """What the first batch gave is kept; the rest is sampled later, and is the same."""
    whole = run(shared_student, problems)
    with (
        ResponseStore(tmp_path / "r.parquet", {"a": 1}) as store,
        pytest.raises(KeyboardInterrupt),
    ):
        run(shared_student, problems, store, Interrupts("test"))
    with ResponseStore(tmp_path / "r.parquet", {"a": 1}) as store:
        assert list(store) == [problem.id for problem in problems[:2]]
        rest = run(shared_student, problems, store=store)
        store.finish(rest.table())
    assert rest.responses == whole.responses and rest.correct == whole.correct
    with ResponseStore(tmp_path / "r.parquet", {"a": 1}) as store:
        config = RewardConfig(correct_from=0.0)  # then a wrong response counts as right
        bar = Progress("test", transient=True)
        again = resume_evaluation(no_model, problems, CONFIG, bar, store, grader=Grader(config))
    assert again.responses == whole.responses and all(again.graded)


@pytest.mark.parametrize("change", ["question", "missing"])
def test_responses_to_other_problems_are_refused(shared_student, problems, tmp_path, change):
    with ResponseStore(tmp_path / "r.parquet", {}) as store:
        run(shared_student, problems[:3], store=store)
    if change == "question":
        text = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Another?"}]}
        others = [replace(problems[0], messages=(text,)), *problems[1:3]]
    else:
        others = problems[1:3]
    said = "has changed since" if change == "question" else "is not among the problems"
    with (
        ResponseStore(tmp_path / "r.parquet", {}) as store,
        pytest.raises(ValueError, match=f"{problems[0].id}, which {said}"),
    ):
        run(shared_student, others, store=store)
    with ResponseStore(tmp_path / "r.parquet", {}, overwrite=True) as store:
        found = run(shared_student, others, store=store)
    assert len(found.answers) == len(others)


def test_a_thought_that_the_prompt_opens_is_part_of_the_turn(shared_student, problems, monkeypatch):
    """Cut off inside of it, a response must not be graded by the numbers it thought of."""
    monkeypatch.setattr("vicur.rollouts.generator.opened_thought", lambda end: "<think>\n")
    found = run(shared_student, problems[2:4])
    assert all(response.startswith("<think>\n") for response in found.responses)


def test_a_function_of_the_users_may_grade_nothing(shared_student, problems, tmp_path):
    (tmp_path / "own.py").write_text("def grade(response, gold, meta):\n    return None\n")
    grader = Grader(RewardConfig(function=f"{tmp_path}/own.py:grade"))
    found = run(shared_student, problems[2:4], grader=grader)
    assert found.graded == [] and found.excluded == {"rewards.function returned None": 2}
    assert found.unextracted == 0


SAMPLED = EvaluationConfig(SamplingConfig(temperature=1.0, max_new_tokens=6), prompts_per_batch=4, samples=3)


def test_several_responses_are_averaged_over_problems(shared_student, samples, tmp_path, monkeypatch):
    """avg@3 is the mean of the problems' means; fewer responses are a part of more."""
    bar = Progress("test", transient=True)
    whole = evaluate(shared_student, samples, SAMPLED)
    assert len(whole.answers) == 3 * len(samples) and whole.samples == 3
    assert [answer.stored.number for answer in whole.answers[:4]] == [0, 1, 2, 0]
    by_hand = [sum(correct) / 3 for correct in whole.by_problem.values()]
    assert whole.accuracy.value == pytest.approx(100 * sum(by_hand) / len(by_hand))
    assert sum(whole.right_counts) == len(samples) and len(whole.right_counts) == 4
    with ResponseStore(tmp_path / "r.parquet", {}) as store:
        single = replace(SAMPLED, samples=1)
        first = resume_evaluation(opens(shared_student, single), samples, single, bar, store)
        sampled = numbers_sampled(monkeypatch)
        more = resume_evaluation(opens(shared_student, SAMPLED), samples, SAMPLED, bar, store)
        assert len(store) == 3 * len(samples)
        with pytest.raises(ValueError, match="holds 3 responses per problem, and samples=1 would drop some"):
            resume_evaluation(no_model, samples, single, bar, store)
    assert more.responses == whole.responses
    assert first.responses == tuple(whole.responses[::3])
    assert set(sampled) == {(1, 2)}  # not number 0, which is stored


def test_stored_responses_may_lack_any_number(shared_student, samples, tmp_path):
    """An endpoint may have left out one in the middle."""
    bar = Progress("test", transient=True)
    whole = evaluate(shared_student, samples, SAMPLED)
    with ResponseStore(tmp_path / "r.parquet", {}, overwrite=True) as store:
        store.add([response for response in whole.stored if response.number != 1])
        pair = replace(SAMPLED, samples=2)
        two = resume_evaluation(opens(shared_student, pair), samples, pair, bar, store)
        assert [response.number for response in two.stored] == [0, 1] * len(samples) and two.samples == 2
        again = resume_evaluation(no_model, samples, SAMPLED, bar, store)
    assert again.responses == whole.responses


def numbers_sampled(monkeypatch):
    """The first number and the count of every call that generates, filled in as they come."""
    calls, inner = [], ModelGenerator.generate

    def generate(self, *arguments, **settings):
        calls.append((settings["first"], settings["group_size"]))
        return inner(self, *arguments, **settings)

    monkeypatch.setattr(ModelGenerator, "generate", generate)
    return calls


def test_greedy_responses_are_asked_once():
    with pytest.raises(ValueError, match="all the same at temperature 0"):
        EvaluationConfig(SamplingConfig(temperature=0.0), samples=2)


def test_a_changed_problem_with_too_few_responses_is_refused(shared_student, samples, tmp_path):
    bar = Progress("test", transient=True)
    single = replace(SAMPLED, samples=1)
    with ResponseStore(tmp_path / "r.parquet", {}) as store:
        resume_evaluation(opens(shared_student, single), samples[:2], single, bar, store)
        changed = [samples[0], replace(samples[1], images=samples[0].images)]
        with pytest.raises(ValueError, match="has changed since"):
            resume_evaluation(opens(shared_student, SAMPLED), changed, SAMPLED, bar, store)


def write_samples(samples, path):
    """Problems with one image as a parquet file."""
    rows = []
    for sample in samples:
        png = io.BytesIO()
        sample.images[0].save(png, format="PNG")
        question = sample.messages[-1]["content"][-1]["text"]
        rows.append(
            {
                "id": sample.id,
                "images": [{"bytes": png.getvalue(), "path": None}],
                "problem": f"<image>{question}",
                "answer": sample.answer,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def source(samples, tmp_path):
    path = tmp_path / "data.parquet"
    write_samples(samples, path)
    return FileSource(path)


def test_controls_keep_the_words_and_the_visual_tokens(shared_student, source):
    """Black, without detail, another's: the same prompt; without images: fewer tokens."""
    encoder = PromptEncoder.of(shared_student)
    plain = encoder.encode([Plain().show(source[0])])[0]
    for control in ("blank", "degraded"):
        shown = control_view(control).show(source[0])
        prompt = encoder.encode([shown])[0]
        assert prompt.input_ids.tolist() == plain.input_ids.tolist()
        assert not torch.equal(prompt.media["pixel_values"], plain.media["pixel_values"])
        assert shown.messages == source[0].messages
    assert not np.asarray(control_view("blank").show(source[0]).images[0]).any()
    blind = encoder.encode([control_view("blind").show(source[0])])[0]
    assert len(blind) < len(plain) and not blind.media
    other = OtherMedia(source)[0]
    assert other.id == source[0].id and other.messages == source[0].messages
    assert np.array_equal(np.asarray(other.images[0]), np.asarray(source[1].images[0]))
    assert control_view("degraded") == Degraded(0.1)  # VA-OPD's view
    assert set(get_args(Control)) == {"blank", "degraded", "blind", "other"}


def test_another_problem_has_other_pixels(samples, tmp_path):
    """Neighbours with the same image are passed over; without any other image there is no control."""
    same = [replace(samples[0], id="a"), replace(samples[1], id="b", images=samples[0].images), samples[2]]
    write_samples(same, tmp_path / "x.parquet")
    other = OtherMedia(FileSource(tmp_path / "x.parquet"))
    assert np.array_equal(np.asarray(other[0].images[0]), np.asarray(samples[2].images[0]))
    write_samples(same[:2], tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="no problem near a has other media"):
        OtherMedia(FileSource(tmp_path / "y.parquet"))[0]
