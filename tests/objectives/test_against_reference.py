"""Every objective against the slow references: loss and gradients, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference as ref
import torch
from harness import Batch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vicur.objectives.clipping import Clipping
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.mixture import Mixture
from vicur.objectives.policy import GRPO, PAPO
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.visual_advantage import VisualAdvantageOPD
from vicur.objectives.visual_steering import VisualSteeringOPD


def with_plain_reference(batch):
    """The reference policy sees the student's own prompt, whatever hint the teacher has."""
    return [[replace(response, teacher=response.teacher_plain) for response in prompt] for prompt in batch]


PAIRS = {
    "sampled token": (SampledTokenOPD(), lambda b: ref.sampled_token_opd(b)),
    "sampled sequence, start": (
        SampledTokenOPD(aggregation="sequence", advantage_at="start", advantage_limit=0.7),
        lambda b: ref.sampled_token_opd(b, aggregation="sequence", advantage_at="start", limit=0.7),
    ),
    "sampled, other clip": (
        SampledTokenOPD(clip=Clipping(low=0.1, high=0.3, dual=1.2)),
        lambda b: ref.sampled_token_opd(b, clip_low=0.1, clip_high=0.3, dual_clip=1.2),
    ),
    "reverse KL": (DivergenceOPD(), lambda b: ref.divergence_opd(b, aggregation="sequence")),
    "forward KL": (
        DivergenceOPD(kind="forward_kl", aggregation="token"),
        lambda b: ref.divergence_opd(b, kind="forward_kl", aggregation="token"),
    ),
    "JSD 0.3": (DivergenceOPD(kind="jsd", beta=0.3), lambda b: ref.divergence_opd(b, kind="jsd", beta=0.3)),
    "JSD 0": (DivergenceOPD(kind="jsd", beta=0.0), lambda b: ref.divergence_opd(b, kind="forward_kl")),
    "JSD 1": (DivergenceOPD(kind="jsd", beta=1.0), lambda b: ref.divergence_opd(b)),
    "VA-OPD": (VisualAdvantageOPD(), lambda b: ref.va_opd(b)),
    "VA-OPD rollouts": (VisualAdvantageOPD(grouped=False), lambda b: ref.va_opd(b, grouped=False)),
    "VA-OPD grouped": (
        VisualAdvantageOPD(rollout_weights=False, top_fraction=0.5, visual_share=0.7),
        lambda b: ref.va_opd(b, rollout_weights=False, top_fraction=0.5, visual_share=0.7),
    ),
    "VA-OPD temperature": (
        VisualAdvantageOPD(rollout_temperature=0.3, epsilon=0.1),
        lambda b: ref.va_opd(b, temperature=0.3, epsilon=0.1),
    ),
    "mask top": (
        VisualAdvantageOPD(rollout_weights=False, grouped=False, drop="top", drop_fraction=0.3),
        lambda b: ref.masked_opd(b, mask="top", fraction=0.3),
    ),
    "mask lowest": (
        VisualAdvantageOPD(rollout_weights=False, grouped=False, drop="lowest"),
        lambda b: ref.masked_opd(b, mask="lowest"),
    ),
    "VGS": (VisualSteeringOPD(beta=0.0, scale=1.0), lambda b: ref.vgs(b, beta=0.0)),
    "VGS LP": (
        VisualSteeringOPD(beta=0.3, scale=0.41),
        lambda b: ref.vgs(b, beta=0.3, scale=0.41),
    ),
    "VGS adaptive": (
        VisualSteeringOPD(adaptive=True, alpha=1.5, scale=1.0, aggregation="token"),
        lambda b: ref.vgs(b, adaptive=True, alpha=1.5, aggregation="token"),
    ),
    "language": (
        VisualSteeringOPD(steering="language", scale=1.0, beta=0.0),
        lambda b: ref.vgs(b, steering="language", beta=0.0),
    ),
    "language VP": (
        VisualSteeringOPD(steering="language", scale=0.5, beta=0.4),
        lambda b: ref.vgs(b, steering="language", beta=0.4, scale=0.5),
    ),
    "VGS, prior live": (
        VisualSteeringOPD(detach_prior=False, beta=0.3, scale=0.41),
        lambda b: ref.vgs(b, detach_prior=False, beta=0.3, scale=0.41),
    ),
    "adaptive, prior live": (
        VisualSteeringOPD(detach_prior=False, adaptive=True, beta=0.0, scale=1.0),
        lambda b: ref.vgs(b, detach_prior=False, adaptive=True, beta=0.0),
    ),
    "language VP, prior live": (
        VisualSteeringOPD(detach_prior=False, steering="language", scale=1.0, beta=0.4),
        lambda b: ref.vgs(b, detach_prior=False, steering="language", beta=0.4),
    ),
    "GRPO": (GRPO(), lambda b: ref.grpo(b)),
    "GRPO sequence": (
        GRPO(aggregation="sequence", clip=Clipping(high=0.28, dual=2.0)),
        lambda b: ref.grpo(b, aggregation="sequence", clip_high=0.28, dual_clip=2.0),
    ),
    **{
        f"GRPO {kind}": (
            GRPO(kl_weight=0.2, kl_estimator=kind),
            lambda b, kind=kind: ref.grpo(with_plain_reference(b), kl_weight=0.2, kl_estimator=kind),
        )
        for kind in ("k2", "k3")
    },
    "PAPO": (PAPO(), lambda b: ref.papo(b)),
    "PAPO, half of GRPO": (
        PAPO(grpo=GRPO(weight=0.5)),
        lambda b: ref.mixture([(1.0, ref.papo(b)), (-0.5, ref.grpo(b))]),
    ),
    "PAPO heavy": (
        PAPO(gamma=0.5, entropy_weight=0.2, grpo=GRPO(aggregation="sequence")),
        lambda b: ref.papo(b, gamma=0.5, entropy_weight=0.2, aggregation="sequence"),
    ),
    "SFT": (SupervisedFineTuning(), lambda b: ref.cross_entropy(b, aggregation="token")),
    "GRPO + VGS": (
        Mixture({"g": GRPO(weight=0.7), "v": VisualSteeringOPD(weight=0.3, scale=1.0)}),
        lambda b: ref.mixture([(0.7, ref.grpo(b)), (0.3, ref.vgs(b))]),
    ),
    "all three": (
        Mixture({"a": VisualAdvantageOPD(), "v": VisualSteeringOPD(standard=0.0, scale=0.41)}),
        lambda b: ref.mixture(
            [
                (1.0, ref.va_opd(b)),
                (0.41, ref.vgs(b)),
                (-0.41, ref.divergence_opd(b)),  # without the standard part
            ]
        ),
    ),
}


def random_batch(lengths, seed, words=5):
    """Logits of everything at random; old log-probs far enough that the clip bites."""
    torch.manual_seed(seed)

    def logits(count):
        return 2 * torch.randn(count, words, dtype=torch.float64)

    def response(count):
        student, ids = logits(count).requires_grad_(), torch.randint(words, (count,))
        own = student.detach().log_softmax(-1)[torch.arange(count), ids]
        return ref.Response(
            ids=ids,
            student=student,
            student_blind=logits(count).requires_grad_(),
            teacher=logits(count),
            teacher_plain=logits(count),
            teacher_degraded=logits(count),
            teacher_blind=logits(count),
            old_log_probs=own + 0.4 * torch.randn(count, dtype=torch.float64),
            masked_log_probs=own + torch.randn(count, dtype=torch.float64),
            reward=float(torch.randint(2, ())),
        )

    return [[response(count) for count in counts] for counts in lengths]


def check(objective, reference, batch, chunk_size=None, removed=None):
    loss, gradient, blind = Batch(batch, chunk_size, removed).run(objective)
    expected = reference(batch)
    leaves = [getattr(r, name) for name in ("student", "student_blind") for p in batch for r in p]
    gradients = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    half = len(gradients) // 2
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.cat(gradients[:half]), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(blind, torch.cat(gradients[half:]), rtol=1e-8, atol=1e-12)


# Of one to three prompts, each with the same number of responses: their lengths.
SHAPES = st.integers(1, 4).flatmap(
    lambda group_size: st.lists(
        st.lists(st.integers(1, 7), min_size=group_size, max_size=group_size), min_size=1, max_size=3
    )
)


@pytest.mark.parametrize("name", PAIRS)
@given(lengths=SHAPES, seed=st.integers(0, 2**31), chunk_size=st.integers(1, 9))
def test_loss_and_gradient(name, lengths, seed, chunk_size):
    check(*PAIRS[name], random_batch(lengths, seed), chunk_size)


REMOVED = st.dictionaries(st.integers(0, 5), st.floats(-100, 100), min_size=1, max_size=3)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=4)
@given(lengths=SHAPES, seed=st.integers(0, 2**31), chunk_size=st.integers(1, 9), removed=REMOVED)
@example(lengths=[[3, 2], [1, 4]], seed=0, chunk_size=2, removed={0: 100.0, 3: -100.0, 7: 100.0})
def test_removed_tokens_change_neither_loss_nor_gradient(name, lengths, seed, chunk_size, removed):
    """Whatever logit a word outside the scoring vocabulary has, first, between or after the others."""
    objective, reference = PAIRS[name]
    check(objective, reference, random_batch(lengths, seed), chunk_size, removed)


def test_a_token_that_is_kept_changes_them():
    """The control."""
    objective, _ = PAIRS["reverse KL"]
    batch = random_batch([[3, 2]], 0)
    without = [
        [
            replace(r, **{k: v[:, :4] for k, v in vars(r).items() if k.startswith(("stud", "teach"))})
            for r in prompt
        ]
        for prompt in batch
    ]
    for response in without[0]:
        response.ids = response.ids.clamp(max=3)
    loss, gradient, _ = Batch(batch).run(objective)
    smaller, other, _ = Batch(without).run(objective)
    assert abs(loss - smaller) > 1e-3 and (gradient[:, :4] - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("lengths", [[[1]], [[1, 1], [1]], [[6]]])
def test_one_token_and_one_response(name, lengths):
    check(*PAIRS[name], random_batch(lengths, 3))


@pytest.mark.parametrize("name", PAIRS)
def test_order_of_prompts_and_responses_changes_nothing(name):
    objective, _ = PAIRS[name]
    batch = random_batch([[3, 5, 2], [4, 4], [1, 6]], 11)
    mixed = [list(reversed(batch[i])) for i in (2, 0, 1)]
    loss, gradient, _ = Batch(batch).run(objective)
    other, moved, _ = Batch(mixed).run(objective)
    torch.testing.assert_close(loss, other)
    rows = gradient.split([len(r.ids) for prompt in batch for r in prompt])
    result = moved.split([len(r.ids) for prompt in mixed for r in prompt])
    ours = {id(r): g for r, g in zip([r for p in batch for r in p], rows, strict=True)}
    for response, theirs in zip([r for p in mixed for r in p], result, strict=True):
        torch.testing.assert_close(ours[id(response)], theirs)


def same_logits(batch):
    """The teacher is the student, under every view."""
    return [
        [
            replace(
                r,
                student_blind=r.student.detach().clone().requires_grad_(),
                **{f"teacher{v}": r.student.detach() for v in ("", "_plain", "_degraded", "_blind")},
            )
            for r in prompt
        ]
        for prompt in batch
    ]


@pytest.mark.parametrize("name", ["reverse KL", "forward KL", "JSD 0.3", "VA-OPD", "VGS LP", "VGS adaptive"])
def test_the_student_itself_as_teacher_gives_zero(name):
    loss, gradient, blind = Batch(same_logits(random_batch([[3, 4], [5]], 0))).run(PAIRS[name][0])
    assert loss.abs() < 1e-12 and gradient.abs().max() < 1e-12 and blind.abs().max() < 1e-12
