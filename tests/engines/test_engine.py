"""vLLM as an engine, seen from outside, with a copy of the model in its place."""

from __future__ import annotations

import pytest
import torch

from vicur.data.views import Plain
from vicur.models.load import as_base
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.parity import ParityCheck
from vicur.scoring.scorer import ScoringConfig
from vicur.vllm.backend import EngineError
from vicur.vllm.settings import VLLMConfig

SHORT = SamplingConfig(max_new_tokens=6)


def test_weights_are_copied_at_the_start_and_after_changes(copies, student, samples):
    engine = make_engine(student, "vllm")
    generator = ModelGenerator(engine, SHORT)
    assert not copies, "nothing starts before it is used"
    generator.generate(samples[:1], Plain())
    generator.generate(samples[:1], Plain())
    generator.sync()
    generator.sync()
    generator.generate(samples[:1], Plain())
    once = ["wake weights", "wake kv_cache", "generate", "sleep"]
    first = ["wake weights", "load", "wake kv_cache", "generate", "sleep"]
    assert copies[0].events == [*first, *once, *first]
    engine.close()
    assert copies[0].events[-1] == "close"
    generator.generate(samples[:1], Plain())
    assert copies[1].events == first, "a new engine has no weights yet"


def test_it_stays_awake_inside_the_context(copies, student, samples):
    engine = make_engine(student, "vllm")
    generator = ModelGenerator(engine, SHORT)
    with engine.awake(), engine.awake():
        generator.generate(samples[:1], Plain())
        generator.generate(samples[1:2], Plain())
    assert copies[0].events == ["wake weights", "load", "wake kv_cache", "generate", "generate", "sleep"]


def test_responses_are_keyed_by_seed_step_problem_and_number(copies, student, samples):
    generator = ModelGenerator(make_engine(student, "vllm"), SHORT)
    responses = generator.generate(samples, Plain(), group_size=2, seed=3).texts
    assert generator.generate(samples[::-1], Plain(), group_size=2, seed=3).texts == responses[::-1]
    assert generator.generate(samples, Plain(), group_size=2, seed=4).texts != responses
    assert generator.generate(samples, Plain(), group_size=2, seed=3, step=1).texts != responses
    assert any(one != other for one, other in responses), "siblings differ"


def test_only_the_models_own_distribution_gives_sampling_log_probs(copies, student, samples):
    engine = make_engine(student, "vllm")
    plain = ModelGenerator(engine, SHORT).generate(samples[:2], Plain())
    torch.testing.assert_close(
        plain.sampling_log_probs, torch.cat([r.engine_log_probs for r in plain.flat_responses])
    )
    cold = ModelGenerator(engine, SamplingConfig(temperature=0.5, max_new_tokens=6))
    with pytest.raises(ValueError, match="no sampling log-probs"):
        _ = cold.generate(samples[:2], Plain()).sampling_log_probs


def test_longer_prompts_start_it_again(copies, student, samples):
    engine = make_engine(student, "vllm", longest=40)
    long = ModelGenerator(engine, SamplingConfig(max_new_tokens=100))
    assert len(long.generate(samples[:1], Plain()).flat_responses) == 1
    assert [copy.length for copy in copies] == [256], "known before it starts"
    with engine.awake():
        ModelGenerator(engine, SamplingConfig(max_new_tokens=300)).generate(samples[:1], Plain())
    assert [copy.length for copy in copies] == [256, 512]
    assert copies[1].events == ["wake weights", "load", "wake kv_cache", "generate", "sleep"]
    fixed = make_engine(student, "vllm", VLLMConfig(max_model_len=64))
    with pytest.raises(
        EngineError, match=r"may take 1\d\d tokens, and vLLM was started for 64. Raise max_model_len"
    ):
        ModelGenerator(fixed, SamplingConfig(max_new_tokens=100)).generate(samples[:1], Plain())


def test_a_teacher_inside_the_student_has_no_weights_to_copy(copies, student):
    with pytest.raises(ValueError, match="weights of their own"):
        make_engine(as_base(student), "vllm")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"needs vLLM: pip install 'vicur\[vllm\]'"),
        ("0.19.1", r"vLLM 0.19.1 is installed, .* written for 0.32 and 0.33"),
    ],
)
def test_vllm_is_found_by_its_version(found, message, student, monkeypatch):
    monkeypatch.setattr("vicur.vllm.installed.installed_version", lambda: found)
    with pytest.raises(ValueError, match=message):
        make_engine(student, "vllm")


def test_parity_is_that_of_a_later_scoring(copies, student, samples):
    generator = ModelGenerator(make_engine(student, "vllm"), SHORT)
    check = ParityCheck(student, "vllm", ScoringConfig(), responses=3)
    rollouts = generator.generate(samples, Plain(), group_size=2)
    parity = check.check(rollouts, step=1)
    assert parity.largest < 1e-4 and parity.mean <= parity.largest
    with torch.no_grad():
        student.model.lm_head.weight.mul_(1.5)
    parity = check.measure(rollouts)
    theirs = check.log_probs(rollouts)
    first = [sum(len(r.ids) for group in rollouts.responses[:i] for r in group) for i in range(3)]
    lengths = [len(group[0].ids) for group in rollouts.responses[:3]]
    differences = [
        (theirs[i : i + n] - group[0].engine_log_probs).abs()
        for i, n, group in zip(first, lengths, rollouts.responses, strict=False)
    ]
    joined = torch.cat(differences)
    assert parity.mean == pytest.approx(float(joined.mean()), rel=1e-4)
    assert parity.largest == pytest.approx(float(joined.max()), rel=1e-4)
    worst = max(range(3), key=lambda i: float(differences[i].max()))
    assert parity.problem == samples[worst].id
    with pytest.raises(
        EngineError, match=rf"At step 7 the engine vllm does not .* problem {parity.problem}\."
    ):
        check.check(rollouts, step=7)


def test_a_number_that_is_not_finite_is_no_parity(copies, student, samples):
    rollouts = ModelGenerator(make_engine(student, "vllm"), SHORT).generate(samples[:1], Plain())
    with torch.no_grad():
        student.model.lm_head.weight.fill_(torch.nan)
    check = ParityCheck(student, "vllm", ScoringConfig(), responses=1)
    assert not check.passes(check.measure(rollouts))


def test_importance_ratios_are_capped(copies, student, samples):
    rollouts = ModelGenerator(make_engine(student, "vllm"), SHORT).generate(samples, Plain())
    with torch.no_grad():
        student.model.lm_head.weight.mul_(1.5)
    check = ParityCheck(student, "vllm", ScoringConfig(), responses=1)
    ratios = check.ratios(rollouts, cap=1.1)
    exact = (
        check.log_probs(rollouts) - torch.cat([r.engine_log_probs for r in rollouts.flat_responses])
    ).exp()
    torch.testing.assert_close(ratios, exact.clamp(max=1.1))
    assert bool((ratios == 1.1).any()) and bool((ratios < 1.1).any())
