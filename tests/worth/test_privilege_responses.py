from __future__ import annotations

import json

import pytest
import torch

from vicur.data.sources import FileSource
from vicur.data.views import without_privilege
from vicur.files import write_rows
from vicur.rollouts.engines import make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.worth.responses import read_responses, sample_responses

SHORT = SamplingConfig(max_new_tokens=6)


def test_what_is_sampled_depends_on_sample_and_seed_alone(base, samples):
    found = sample_responses(make_engine(base), samples, group_size=2, sampling=SHORT)
    turned = sample_responses(
        make_engine(base), samples[::-1], group_size=2, sampling=SHORT, prompts_per_batch=4
    )
    assert found.texts == turned.texts[::-1] and found.index == (0, 1, 2, 3, 4, 5)
    assert [len(own) for own in found.ids] == [2] * 6 and len({t for own in found.texts for t in own}) > 6
    assert all(isinstance(value, bool) for own in found.correct for value in own)
    assert (
        sample_responses(make_engine(base), samples, sampling=SHORT, group_size=2, seed=1).texts
        != found.texts
    )


def test_a_student_sees_no_privilege(base, samples):
    found = sample_responses(make_engine(base), samples[:3], group_size=1, sampling=SHORT)
    bare = [without_privilege(s) for s in samples[:3]]
    blank = sample_responses(make_engine(base), bare, group_size=1, sampling=SHORT)
    assert found.texts == blank.texts and blank.correct == ((None,),) * 3


def rollout(processor, sample, text, step=1, correct=None):
    ids = processor.tokenizer(text)["input_ids"]
    return {"step": step, "sample": sample, "response": text, "ids": ids, "correct": correct, "gap": [0.0]}


@pytest.fixture
def run(tmp_path, processor, samples):
    rows = [
        rollout(processor, samples[1].id, "The answer is 1.", 1, True),
        rollout(processor, samples[0].id, "The answer is 2.", 1, False),
        rollout(processor, "of other data", "The answer is 3.", 1, True),
        rollout(processor, samples[1].id, "The answer is 4.", 2, True),
        rollout(processor, samples[1].id, "The answer is 5.", 2, False),
    ]
    write_rows(tmp_path / "run" / "rollouts" / "until-step-000001.parquet", rows[:3])
    write_rows(tmp_path / "run" / "rollouts" / "until-step-000002.parquet", rows[3:])
    return tmp_path / "run"


def test_the_last_responses_of_a_run(run, processor, samples):
    found = read_responses(run, samples, processor.tokenizer)
    assert found.index == (0, 1)
    assert found.texts == (("The answer is 2.",), ("The answer is 4.", "The answer is 5."))
    assert found.correct == ((False,), (True, False))
    assert processor.tokenizer.decode(found.ids[1][1]) == "The answer is 5."
    assert found.ids[0][0].dtype == torch.int64


def test_those_of_all_steps_or_of_one_file(run, processor, samples):
    found = read_responses(run, samples, processor.tokenizer, steps="all")
    assert found.texts[1] == ("The answer is 1.", "The answer is 4.", "The answer is 5.")
    one = read_responses(run / "rollouts" / "until-step-000001.parquet", samples, processor.tokenizer)
    assert one.texts == (("The answer is 2.",), ("The answer is 1.",))


def test_problems_of_a_file_are_found_by_their_ids(run, tmp_path, processor, samples):
    rows = [{"id": name, "problem": "Which?"} for name in ("x", samples[1].id)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_responses(run, FileSource(tmp_path / "data.jsonl"), processor.tokenizer).index == (1,)


def test_what_is_no_run_of_these_problems(run, tmp_path, processor, samples):
    tokenizer = processor.tokenizer
    with pytest.raises(ValueError, match=r"has no rollouts/\*\.parquet"):
        read_responses(tmp_path / "nowhere", samples, tokenizer)
    with pytest.raises(ValueError, match="no response to any of the 2 problems"):
        read_responses(run, samples[4:], tokenizer)
    write_rows(tmp_path / "a.parquet", [{"step": 1, "sample": "a", "response": "b", "correct": True}])
    with pytest.raises(ValueError, match="has no column ids"):
        read_responses(tmp_path / "a.parquet", samples, tokenizer)


def test_another_vocabulary_is_noticed(tmp_path, processor, samples):
    row = rollout(processor, samples[0].id, "The answer is 1.") | {"response": "Antwort: 1."}
    write_rows(tmp_path / "a.parquet", [row])
    with pytest.raises(ValueError, match="have different vocabularies"):
        read_responses(tmp_path / "a.parquet", samples, processor.tokenizer)
