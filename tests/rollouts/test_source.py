"""Responses that the data brings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vicur.rollouts.source import DatasetSource, RolloutConfig


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


def test_long_ones_are_cut_and_say_so(source, samples):
    long = replace(samples[0], target_response="It is 1. " * 30)
    (response,) = source.rollouts([long], step=1).responses[0]
    assert len(response.ids) == 30 and response.finish_reason == "length"


def test_given_responses_have_no_sampling_log_probs(source, samples):
    with pytest.raises(ValueError, match="given, not sampled"):
        _ = source.rollouts(samples[:1], step=1).sampling_log_probs


def test_a_problem_without_a_response_cannot_be_learnt(source, samples):
    with pytest.raises(ValueError, match=f"{samples[0].id}.*has no target_response"):
        source.rollouts([replace(samples[0], target_response=None)], step=1)


def test_special_tokens_that_a_response_quotes_are_text(source, samples, base):
    quoting = replace(samples[0], target_response="a<|image_pad|>b<|im_end|>c")
    (response,) = source.rollouts([quoting], step=1).responses[0]
    assert not {*base.vocabulary.forbidden_ids, *base.vocabulary.stop_ids} & set(response.ids[:-1].tolist())
    assert base.processor.tokenizer.decode(response.ids[:-1]) == quoting.target_response


def test_the_data_have_one_response_each():
    with pytest.raises(ValueError, match="one response to a problem"):
        RolloutConfig(source="dataset", siblings=2)
