from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vicur.data.sample import Privilege
from vicur.data.views import Blind, Hinted, Plain, combined
from vicur.encoding.layout import build_sequences
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.scoring.terms import mixture_information, mixture_information_above
from vicur.worth.measure import PrivilegeConfig, measure_privileges
from vicur.worth.responses import StudentResponses
from vicur.worth.summary import privilege_worth
from vicur.worth.texts import others, with_text

ONLY_CUE = PrivilegeConfig(kinds=("cue",), blind=False, blind_hinted=False, shuffled=False)


def answered(responses, group_size=1, correct=True) -> StudentResponses:
    """Each sample's response, and if two are wanted its first tokens again."""
    ids = tuple(tuple(r[: len(r) - k] for k in range(group_size)) for r in responses)
    return StudentResponses(
        tuple(range(len(ids))),
        ids,
        tuple(tuple(f"{i}.{k}" for k in range(group_size)) for i in range(len(ids))),
        tuple(tuple(correct if k == 0 else False for k in range(group_size)) for _ in ids),
    )


def full_log_probs(loaded, encoder, shown, ids):
    """Log-probabilities (T, V) in float64 from all logits of one row, and the tokens' places among them."""
    prompt = encoder.encode([shown])[0]
    sequences = build_sequences([prompt], [[ids]], pad_id=loaded.vocabulary.pad_id)
    with torch.no_grad():
        logits = loaded.model(**sequences.model_inputs()).logits[0].double()
    kept = loaded.vocabulary.kept_ids
    own = logits[len(prompt) - 1 : len(prompt) - 1 + len(ids)][:, kept]
    return own - own.exp().sum(-1, keepdim=True).log()


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


@pytest.fixture
def scorer(base):
    return Scorer(base, ScoringConfig(vocabulary="sampleable"))


def test_everything_equals_float64_arithmetic_on_full_logits(base, scorer, samples, responses):
    """Log-prob, shift, information and its counterpart, under every condition and for every token."""
    several = {
        "cue": {
            s.id: [s.privilege.cue, "Nothing.", "A 7 and a 3."][: 2 + i % 2] for i, s in enumerate(samples)
        }
    }
    found = measure_privileges(scorer, samples, answered(responses), several=several)
    assert found.kinds == ("cue", "rationale", "answer") and found.left_out == 0
    kept, encoder = base.vocabulary.kept_ids, Scorer(base).encoder
    keys = [s.id for s in samples]
    lengths = [len(r) for r in responses]
    given_others = {
        kind: others(keys, [getattr(s.privilege, kind) for s in samples], 0) for kind in found.kinds
    }
    for i, (sample, ids) in enumerate(zip(samples, responses, strict=True)):

        def q(view, sample=sample, ids=ids):
            return full_log_probs(base, encoder, view.show(sample), ids)

        def q_text(kind, text, sample=sample, ids=ids):
            return full_log_probs(base, encoder, Hinted(kind).show(with_text(sample, kind, text)), ids)

        expected = {"plain": q(Plain()), "blind": q(Blind())}
        for kind in found.kinds:
            other = getattr(samples[given_others[kind][i]].privilege, kind)
            expected |= {
                kind: q(Hinted(kind)),
                f"blind_{kind}": q(combined([Hinted(kind), Blind()])),
                f"another_{kind}": q_text(kind, other),
            }
        token = torch.searchsorted(kept, ids)[:, None]
        assert set(found.log_probs) == set(expected) == {*found.shifts, "plain"}
        for name, log_q in expected.items():
            own = found.log_probs[name].split(lengths)[i].double()
            torch.testing.assert_close(own, log_q.gather(-1, token)[:, 0], atol=1e-4, rtol=1e-4)
            if name != "plain":
                shift = found.shifts[name].split(lengths)[i].double()
                torch.testing.assert_close(shift, kl(log_q, expected["plain"]), atol=1e-4, rtol=1e-3)
        texts = [q_text("cue", text).exp() for text in several["cue"][sample.id]]
        mean = sum(texts) / len(texts)
        information = sum((p * (p / mean).log()).sum(-1) for p in texts) / len(texts)
        above = [(p * (p * (len(texts) - 1) / (sum(texts) - p)).log()).sum(-1) for p in texts]
        own = found.information["cue"].split(lengths)[i].double()
        torch.testing.assert_close(own, information, atol=1e-5, rtol=1e-4)
        own = found.information_above["cue"].split(lengths)[i].double()
        torch.testing.assert_close(own, sum(above) / len(above), atol=1e-4, rtol=1e-3)
    assert found.num_texts["cue"].tolist() == [2, 3, 2, 3, 2, 3]
    assert set(found.information) == {"cue", "another_cue"}
    assert found.information["another_cue"].max() > 1e-3, "several different problems' cues, not one again"


def test_equal_texts_carry_no_information(scorer, samples, responses):
    several = {"cue": {s.id: [s.privilege.cue] * 4 for s in samples}}
    found = measure_privileges(scorer, samples, answered(responses), ONLY_CUE, several=several)
    assert found.information["cue"].abs().max() <= 1e-6
    assert found.information_above["cue"].abs().max() <= 1e-6


def test_contradicting_texts_do_and_at_most_log_n(scorer, samples, responses):
    texts = [
        "The segments are red 1 and blue 1.",
        "The segments are green 9 and pink 8.",
        "Nothing can be seen here.",
    ]
    several = {"cue": {s.id: texts for s in samples}}
    found = measure_privileges(scorer, samples, answered(responses), ONLY_CUE, several=several)
    worth = privilege_worth(found)["cue"].information
    assert worth.estimate.low > 0.005
    assert found.information["cue"].max() <= math.log(3) and worth.bound == pytest.approx(math.log(3))
    assert worth.above.value >= worth.estimate.value and worth.num_texts == (3, 3)
    assert worth.problems == len(samples)


def random_log_probs(seed: int, count: int, sharpness: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, 5, 11, generator=generator, dtype=torch.float64)
    return list(logits.log_softmax(-1))


@given(st.integers(0, 999), st.integers(2, 6), st.floats(0.0, 60.0))
def test_information_lies_between_0_and_log_n(seed, count, sharpness):
    log_q = random_log_probs(seed, count, sharpness)
    found = mixture_information(log_q)
    assert found.min() >= -1e-12 and found.max() <= math.log(count) + 1e-12
    assert (mixture_information_above(log_q) - found).min() >= -1e-12
    # H(mean) - mean H, an independent way to the same number
    q = torch.stack(log_q).exp()
    entropy = -torch.special.xlogy(q, q).sum(-1)
    mean = q.mean(0)
    torch.testing.assert_close(found, -torch.special.xlogy(mean, mean).sum(-1) - entropy.mean(0))


@given(st.integers(0, 999), st.integers(1, 6), st.floats(0.0, 20.0))
def test_the_expected_kl_is_the_information_and_the_rest(seed, count, sharpness):
    """mean_j KL(q^{z_j} || p) = I(y; z) + KL(mean_j q^{z_j} || p) (ViCuR eq. 14 to 18)."""
    *log_q, log_p = random_log_probs(seed, count + 1, sharpness)
    expected = sum(kl(own, log_p) for own in log_q) / count
    mean = torch.stack(log_q).logsumexp(0) - math.log(count)
    torch.testing.assert_close(mixture_information(log_q) + kl(mean, log_p), expected)


def test_information_worked_out():
    """Two mirrored coins of 0.9: the mean is fair, so 0.9 log 1.8 + 0.1 log 0.2 = 0.3681 nats; left out,
    each is compared with the other: 0.8 log 9 = 1.7578."""
    coins = [torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.1, 0.9]]).log()]
    assert mixture_information(coins).item() == pytest.approx(0.36806, abs=1e-5)
    assert mixture_information_above(coins).item() == pytest.approx(0.8 * math.log(9), abs=1e-5)


def test_information_of_texts_that_leave_no_doubt_is_log_n():
    certain = [(1000.0 * torch.eye(4)[i : i + 1]).log_softmax(-1) for i in range(4)]
    assert mixture_information(certain).item() == pytest.approx(math.log(4), abs=1e-6)


@settings(max_examples=4)
@given(st.permutations(range(4)), st.integers(1, 4), st.sampled_from([None, 1, 7]))
def test_batches_and_order_do_not_matter(shared_student, samples, responses, order, size, chunk):
    """Neither to any token nor, beyond rounding, to any interval."""
    config = PrivilegeConfig(kinds=("cue",), blind_hinted=False)
    texts = ["Nothing.", "A 7.", "Two lines."]
    several = {"cue": {s.id: texts[: 2 + i % 2] for i, s in enumerate(samples)}}
    samples, given_responses = samples[:4], answered(responses[:4], group_size=2)
    expected = measure_privileges(Scorer(shared_student), samples, given_responses, config, several=several)
    found = measure_privileges(
        Scorer(shared_student, ScoringConfig(prompts_per_batch=2, chunk_tokens=chunk)),
        [samples[i] for i in order],
        replace(given_responses.part(order), index=tuple(range(4))),
        replace(config, prompts_per_batch=size),
        several=several,
    )
    ours = {(row["sample"], row["response_number"]): row for row in found.rows()}
    for row in expected.rows():
        own = ours[row["sample"], row["response_number"]]
        for name, values in row.items():
            if isinstance(values, np.ndarray):
                assert own[name] == pytest.approx(values, abs=1e-4), name
    first, second = privilege_worth(expected), privilege_worth(found)
    assert second["cue"].shift.whole.low == pytest.approx(first["cue"].shift.whole.low, abs=1e-4)
    assert second["cue"].correct.per_response.high == pytest.approx(
        first["cue"].correct.per_response.high, abs=1e-3
    )
    assert second.comparisons[0].difference.low == pytest.approx(
        first.comparisons[0].difference.low, abs=1e-4
    )


def test_records_are_a_row_for_each_response(tmp_path, scorer, samples, responses):
    """Also of problems without several texts, whose information is nothing, not a number."""
    several = {"cue": {samples[0].id: ["A.", "B."]}}
    found = measure_privileges(scorer, samples[:3], answered(responses[:3], 2), several=several)
    found.write(tmp_path / "tokens.parquet")
    rows = pq.read_table(tmp_path / "tokens.parquet").to_pylist()
    assert [(r["sample"], r["response_number"], r["correct"]) for r in rows] == [
        (s.id, k, k == 0) for s in samples[:3] for k in range(2)
    ]
    assert rows[0]["ids"] == responses[0].tolist() and rows[0]["response"] == "0.0"
    assert len(rows[1]["shift_cue"]) == len(rows[1]["log_prob_plain"]) == len(responses[0]) - 1
    assert [r["information_cue"] is None for r in rows] == [False, False, True, True, True, True]
    assert privilege_worth(found)["cue"].information.problems == 1


def test_kinds_that_all_problems_have_are_found(scorer, samples, responses):
    some = [*samples[:2], replace(samples[2], privilege=replace(samples[2].privilege, rationale=None))]
    given_responses = answered(responses[:3])
    assert measure_privileges(scorer, some, given_responses).kinds == ("cue", "answer")
    named = measure_privileges(scorer, some, given_responses, PrivilegeConfig(kinds=("rationale",)))
    assert named.left_out == 1 and set(named.samples) == {s.id for s in samples[:2]}


def test_data_without_privileges_is_refused(scorer, samples, responses):
    bare = [replace(s, privilege=Privilege()) for s in samples[:2]]
    with pytest.raises(
        ValueError, match=r"all 2 answered problems \(cue in 0, rationale in 0, answer in 0\)"
    ):
        measure_privileges(scorer, bare, answered(responses[:2]))
    with pytest.raises(ValueError, match="No answered problem has all of: cue"):
        measure_privileges(scorer, bare, answered(responses[:2]), PrivilegeConfig(kinds=("cue",)))


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="prompts_per_batch"):
        PrivilegeConfig(prompts_per_batch=0)
    with pytest.raises(ValueError, match="At least one"):
        PrivilegeConfig(kinds=())
