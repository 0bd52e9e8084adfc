"""Responses from the data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vicur.data.views import Plain
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.rollouts.rollout import Response
from vicur.rollouts.source import DatasetSource, RolloutConfig
from vicur.rollouts.torch_engine import TorchEngine
from vicur.scoring.scorer import Scorer


@pytest.fixture
def source(base):
    return DatasetSource(base.processor.tokenizer, base.vocabulary, max_tokens=30)


def test_a_target_response_ends_with_one_stop_token(source, samples, base):
    rollouts = source.rollouts(samples[:2], step=1)
    (stop,) = base.vocabulary.stop_ids
    for sample, (response,), (text,) in zip(samples, rollouts.responses, rollouts.texts, strict=False):
        assert response.ids[-1] == stop and stop not in response.ids[:-1]
        assert text == sample.target_response and response.finish_reason == "stop"
    ended = replace(samples[0], target_response=samples[0].target_response + "<|im_end|>")
    (again,) = source.rollouts([ended], step=1).responses[0]
    assert again.ids.tolist() == rollouts.responses[0][0].ids.tolist()


def test_long_responses_are_cut_off_and_marked(source, samples):
    long = replace(samples[0], target_response="It is 1. " * 30)
    (response,) = source.rollouts([long], step=1).responses[0]
    assert len(response.ids) == 30 and response.finish_reason == "length"


def test_given_responses_have_no_sampling_log_probs(source, samples):
    with pytest.raises(ValueError, match="have no sampling log-probs"):
        _ = source.rollouts(samples[:1], step=1).sampling_log_probs


def test_a_problem_without_a_response_cannot_be_learnt(source, samples):
    with pytest.raises(ValueError, match=f"{samples[0].id}.*has no target_response"):
        source.rollouts([replace(samples[0], target_response=None)], step=1)


def test_special_tokens_that_a_response_quotes_are_text(source, samples, base):
    quoting = replace(samples[0], target_response="a<|image_pad|>b<|im_end|>c")
    (response,) = source.rollouts([quoting], step=1).responses[0]
    assert not {*base.vocabulary.forbidden_ids, *base.vocabulary.stop_ids} & set(response.ids[:-1].tolist())
    assert base.processor.tokenizer.decode(response.ids[:-1]) == quoting.target_response


def test_a_thought_that_the_prompt_opens_belongs_to_the_response(base, samples, monkeypatch):
    """Qwen3-VL-Thinking's template ends with <think>: a response cut off before </think> states no answer."""
    scorer, tokenizer = Scorer(base), base.processor.tokenizer

    def thinking(shown, view):
        tag = torch.tensor(tokenizer("<think>\n", add_special_tokens=False)["input_ids"])
        plain = scorer.encode(shown, view)
        return [replace(p, input_ids=torch.cat([p.input_ids[: -len(tag)], tag])) for p in plain]

    def terse(self, prompts, ids, sampling, **settings):
        ids = torch.tensor(tokenizer("5", add_special_tokens=False)["input_ids"])
        return [(Response(ids, None, "length"),) for _ in prompts]

    monkeypatch.setattr(TorchEngine, "sample", terse)
    result = [
        ModelGenerator(TorchEngine(base), SamplingConfig(), encode=encode)
        .generate(samples[:2], Plain())
        .flat_texts
        for encode in (thinking, scorer.encode)
    ]
    assert result == [["<think>\n5"] * 2, ["5"] * 2]


def test_the_data_have_one_response_each():
    with pytest.raises(ValueError, match="one response to each problem"):
        RolloutConfig(source="dataset", group_size=2)
