"""vLLM samples what PyTorch samples: words only, the same distribution, the same flags."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from vicur.data.views import Plain
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig, sampling_log_probs
from vicur.rollouts.vllm_engine import VLLMEngine
from vicur.scoring.scorer import Scorer, ScoringConfig

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def sampling_engine(engine, engine_student, engine_settings):
    made = VLLMEngine(engine_student, engine_settings, longest=1024)
    made._backend, made._has_weights = engine, True  # the engine of all tests
    return made


@pytest.fixture
def sampled(sampling_engine, kinds):
    """Responses to one problem, as token ids."""

    def sample(number=1, seed=0, kind="one image", **settings):
        generator = ModelGenerator(sampling_engine, SamplingConfig(**{"max_new_tokens": 24} | settings))
        return generator.generate([kinds[kind]], Plain(), group_size=number, seed=seed).flat_responses

    return sample


def test_only_words_are_sampled(sampled, engine_student):
    kept = set(engine_student.vocabulary.kept_ids.tolist())
    responses = sampled(64, temperature=2.0)
    tokens = Counter(token for response in responses for token in response.ids.tolist())
    assert set(tokens) <= kept and len(tokens) > 100, "many tokens, none of them special"


def test_seeds(sampled):
    first, again, other = sampled(4, seed=1), sampled(4, seed=1), sampled(4, seed=2)
    ids = [[response.ids.tolist() for response in group] for group in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len({tuple(one) for one in ids[0]}) == 4, "each of a problem's responses has its own seed"


def test_narrow_sampling_is_greedy(sampled):
    (greedy,) = sampled(temperature=0.0)
    for settings in ({"top_k": 1}, {"top_p": 1e-6}):
        (narrow,) = sampled(**settings)
        assert narrow.ids.tolist() == greedy.ids.tolist()


def test_a_penalty_for_presence_counts_the_response_only(sampled, engine_student, kinds):
    settings = {"temperature": 0.0, "presence_penalty": 2.0}
    (response,) = sampled(**settings)
    config = SamplingConfig(**settings, max_new_tokens=24)
    generator = ModelGenerator(make_engine(engine_student), config)
    (expected,) = generator.generate([kinds["one image"]], Plain()).flat_responses
    assert response.ids.tolist() == expected.ids.tolist()
    assert response.ids.tolist() != sampled(temperature=0.0)[0].ids.tolist(), "the penalty changes it"
    assert response.log_probs is None, "not the model's own distribution"


def test_stopped_and_cut_off_responses(sampled, engine_student):
    stops = engine_student.vocabulary.stop_ids
    responses = sampled(256, temperature=2.0)
    stopped = [response for response in responses if response.finish_reason == "stop"]
    assert stopped and len(stopped) < len(responses)
    assert all(response.ids[-1] in stops for response in stopped)
    assert all(stop not in response.ids[:-1] for response in responses for stop in stops)
    cut = [response for response in responses if response.finish_reason == "length"]
    assert all(len(response.ids) == 24 for response in cut)


@pytest.mark.parametrize("settings", [{"temperature": 2.0}, {"temperature": 2.0, "top_k": 8, "top_p": 0.8}])
def test_the_distribution_is_that_of_pytorch(settings, sampled, engine_student, kinds):
    config = SamplingConfig(max_new_tokens=1, **settings)
    scorer = Scorer(engine_student, ScoringConfig(vocabulary="sampleable"))
    kept = engine_student.vocabulary.kept_ids
    scores = scorer.scores([kinds["one image"]], [[kept[:1]]], Plain())
    logits = (scores.hidden_ND.float() @ scores.head_WD.float().T)[:, kept]
    expected = sampling_log_probs(logits, torch.zeros_like(logits), config).exp()[0].numpy()
    number = 3000
    counts = Counter(int(response.ids[0]) for response in sampled(number, **settings, max_new_tokens=1))
    found = np.array([counts[token] for token in kept.tolist()])
    assert not found[expected == 0].any()
    common = expected * number >= 5
    rest = ~common & (expected > 0)
    observed = np.append(found[common], found[rest].sum())
    theory = np.append(expected[common], expected[rest].sum()) * number
    used = theory > 0
    assert (
        stats.chisquare(observed[used], theory[used] * observed[used].sum() / theory[used].sum()).pvalue
        > 1e-4
    )
