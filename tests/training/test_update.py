"""One update: every objective is indifferent to how its batch is split, laid out, padded and ordered."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vicur.compat import checkpoint_activations
from vicur.data.views import Blind, Hinted, Plain
from vicur.models.policy import Policy
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.gates import EndorsementGate, EvidenceGate, Gate
from vicur.objectives.mixture import Mixture
from vicur.objectives.objective import OLD, TEACHER
from vicur.objectives.policy import GRPO, PAPO, RewardDirection
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.supervised import SupervisedFineTuning
from vicur.objectives.target import TargetLook, TargetOPD
from vicur.objectives.visual_advantage import VisualAdvantageOPD
from vicur.objectives.visual_steering import STUDENT_BLIND, VisualSteeringOPD
from vicur.rollouts.rollout import Response, Rollouts
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.scoring.teacher import Teacher
from vicur.training.optimizer import Optimizer, OptimizerConfig
from vicur.training.scoring import BatchScorer
from vicur.training.update import StageNorms, Updater, _steering_numbers

STEERING = VisualSteeringOPD(beta=0.5)
OBJECTIVES = {
    "sampled": SampledTokenOPD(aggregation="sequence"),
    "reverse KL": DivergenceOPD(),
    "JSD": DivergenceOPD(kind="jsd", aggregation="token"),
    "VA-OPD": VisualAdvantageOPD(),
    "random mask": VisualAdvantageOPD(drop="random", drop_fraction=0.4),
    "VGS": STEERING,
    "VGS, prior live": replace(STEERING, detach_prior=False),
    "VGS measured": VisualSteeringOPD(beta=0.5, scale="measured", adaptive=True),
    "language": VisualSteeringOPD(steering="language", scale="measured", beta=0.5),
    "GRPO": GRPO(kl_weight=0.1),
    "PAPO": PAPO(gamma=0.3),
    "SFT": SupervisedFineTuning(),
    "contrast": TargetOPD(
        looks={
            "own": TargetLook("student"),
            "seeing": TargetLook(),
            "blank": TargetLook(view="blank", times=-1.0),
        },
        reference="seeing",
        beta=0.05,
        gate=Gate(EvidenceGate(), EndorsementGate()),
    ),
    "graded": TargetOPD(
        looks={"cue": TargetLook(), "crop": TargetLook(view="crop")},
        combine="mixture",
        graded=True,
        kind="jsd",
    ),
    "segments": TargetOPD(
        looks={
            "all": TargetLook(view="plain"),
            "end": TargetLook(segment="rest"),
            "cm": TargetLook("student", "blind", segment="unit"),
        },
        combine="each",
        segments={"unit": "cm"},
    ),
    "RLSD": GRPO(direction=RewardDirection()),
    "together": Mixture(
        {
            "grpo": GRPO(weight=0.3),
            "va": VisualAdvantageOPD(weight=0.7),
            "vgs": replace(STEERING, standard=0.0, scale=0.8),
        }
    ),
}


@pytest.fixture(scope="module")
def teacher(other_weights):
    return Teacher(other_weights, Hinted("cue"))


@pytest.fixture(scope="module")
def rollouts(samples, responses):
    """Three problems with two responses each, of one to twenty tokens; some are right."""
    short = [responses[0][-1:], *responses[1:]]
    pairs = tuple(
        (Response(a, None, "stop"), Response(b, None, "stop"))
        for a, b in zip(short[:3], short[3:], strict=True)
    )
    texts = tuple((f"The answer is {s.answer}.", "None.") for s in samples[:3])
    return Rollouts(tuple(samples[:3]), pairs, texts)


def old_log_probs(rollouts):
    """Not the student's: so that ratios differ from 1."""
    ids = torch.cat([r.ids for r in rollouts.flat_responses])
    return -3 - torch.sin(ids.float())


def gradient(loaded, teacher, objective, rollouts, *, micro_batch=3, scoring=None):
    """What an update does, short of the step: losses, per-token numbers, gradients."""
    loaded = copy.deepcopy(loaded)
    student = Scorer(loaded, scoring)
    needs = objective.needs(1)
    scorer = BatchScorer(student, teacher if TEACHER in needs.models else None, seed=0)
    old = old_log_probs(rollouts) if OLD in needs.log_probs else None
    measured = scorer.score_references(scorer.score_rollouts(rollouts, needs, 1, old), needs)
    optimizer = Optimizer(loaded.model, OptimizerConfig(), total_steps=1)
    weighed = objective.weigh(measured.scored_tokens(student.device))
    update = Updater(student, optimizer, micro_batch).gradient(measured, weighed, needs)
    gradients = {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}
    return update, gradients


def assert_same(ours, theirs):
    (update, gradients), (other, expected) = ours, theirs
    for name, loss in other.losses.items():
        assert update.losses[name] == pytest.approx(loss, rel=1e-3, abs=1e-6), name
    for name, number in other.numbers.items():
        assert update.numbers[name] == pytest.approx(number, rel=1e-3, abs=1e-6), name
    assert gradients.keys() == expected.keys()
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    difference = torch.cat([(gradients[n] - g).flatten() for n, g in expected.items()]).norm()
    assert norm > 0 and difference <= 1e-3 * norm


def reordered(rollouts, order):
    chosen = [tuple(getattr(rollouts, name)[i] for i in order) for name in ("samples", "responses", "texts")]
    return Rollouts(*chosen)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=4)
@given(
    st.integers(1, 3),
    st.sampled_from(["always", "never"]),
    st.one_of(st.none(), st.integers(1, 9)),
    st.permutations(range(3)),
)
def test_split_layout_and_order_change_nothing(
    shared_student, teacher, rollouts, name, micro_batch, share, chunk, order
):
    """Micro-batches also change the padding, as responses have one to twenty tokens."""
    objective = OBJECTIVES[name]
    whole = gradient(shared_student, teacher, objective, rollouts)
    scoring = ScoringConfig(prompts_per_batch=micro_batch, share_prompts=share, chunk_tokens=chunk)
    mixed = reordered(rollouts, order)
    found = gradient(shared_student, teacher, objective, mixed, micro_batch=micro_batch, scoring=scoring)
    assert_same(found, whole)


@pytest.mark.parametrize("name", ["VA-OPD", "VGS", "together"])
def test_gradient_checkpointing_changes_nothing(shared_student, teacher, rollouts, name):
    plain = gradient(shared_student, teacher, OBJECTIVES[name], rollouts)
    checkpointed = copy.deepcopy(shared_student)
    checkpoint_activations(checkpointed.model)
    assert_same(gradient(checkpointed, teacher, OBJECTIVES[name], rollouts), plain)


def test_a_micro_batch_without_weight_adds_exactly_nothing(shared_student, teacher, rollouts):
    """All its tokens are dropped: zero loss, and a zero gradient for every parameter of its graph."""
    objective = VisualAdvantageOPD(drop="top", drop_fraction=1.0)
    update, gradients = gradient(shared_student, teacher, objective, rollouts)
    assert update.losses == {"reverse_kl": 0.0} and gradients
    assert all(not g.any() for g in gradients.values())


@pytest.mark.parametrize("name", ["reverse KL", "JSD", "VA-OPD", "VGS", "sampled"])
def test_the_same_model_under_the_same_view_teaches_nothing(base, rollouts, name):
    teacher = Teacher(copy.deepcopy(base), Plain())
    update, gradients = gradient(base, teacher, OBJECTIVES[name], rollouts)
    assert all(abs(loss) < 1e-6 for loss in update.losses.values())
    assert max(g.abs().max() for g in gradients.values()) < 1e-5
    hinted = Teacher(copy.deepcopy(base), Hinted("cue"))
    update, _ = gradient(base, hinted, OBJECTIVES[name], rollouts)
    assert max(abs(loss) for loss in update.losses.values()) > 1e-3  # the control


def test_the_measured_scale_keeps_the_standard_gradients_norm(shared_student, teacher, rollouts):
    """s |g_std + alpha g_vis| = |g_std| (VGS eq. 15), whatever alpha is."""
    standard = VisualSteeringOPD(alpha=0.0, beta=0.0, scale=1.0)
    _, by_itself = gradient(shared_student, teacher, standard, rollouts)
    norm = torch.cat([g.flatten() for g in by_itself.values()]).norm()
    for alpha in (0.5, 2.0, 8.0):
        steered = VisualSteeringOPD(alpha=alpha, beta=0.0, scale="measured")
        update, gradients = gradient(shared_student, teacher, steered, rollouts)
        found = torch.cat([g.flatten() for g in gradients.values()]).norm()
        assert found.item() == pytest.approx(norm.item(), rel=1e-4)
        unscaled = replace(steered, scale=1.0)
        _, raw = gradient(shared_student, teacher, unscaled, rollouts)
        for name, gradient_ in raw.items():
            expected = update.numbers["gradient_scale"] * gradient_
            torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-6)


def test_norms_and_angle_of_the_steering_are_recorded(shared_student, teacher, rollouts):
    """A, B and cos of VGS eq. 23, against the two gradients computed one by one, with and without LP."""
    alpha = 2.0
    parts = {}
    for name, objective in {
        "standard": VisualSteeringOPD(alpha=0.0, beta=0.0, scale=1.0),
        "steering": VisualSteeringOPD(standard=0.0, alpha=alpha, beta=0.0, scale=1.0),
    }.items():
        _, gradients = gradient(shared_student, teacher, objective, rollouts)
        parts[name] = {n: g.double() for n, g in gradients.items()}
    product = sum(float((g * parts["steering"][n]).sum()) for n, g in parts["standard"].items())
    norms = {name: sum(float(g.square().sum()) for g in part.values()) ** 0.5 for name, part in parts.items()}
    angle = math.degrees(math.acos(product / (norms["standard"] * norms["steering"])))
    for beta in (0.0, 0.5):
        objective = VisualSteeringOPD(alpha=alpha, beta=beta, scale="measured")
        numbers = gradient(shared_student, teacher, objective, rollouts)[0].numbers
        assert numbers["gradient_standard"] == pytest.approx(norms["standard"], rel=1e-4)
        assert numbers["gradient_steering"] == pytest.approx(norms["steering"], rel=1e-4)
        assert numbers["gradient_angle"] == pytest.approx(angle, abs=0.01) and 1 < angle < 179
        a, b = numbers["gradient_standard"] ** 2, numbers["gradient_steering"] ** 2
        c = 2 * (a * b) ** 0.5 * math.cos(math.radians(numbers["gradient_angle"]))
        assert numbers["gradient_scale"] == pytest.approx((a / (a + b + c)) ** 0.5, rel=1e-4)


def test_a_worked_case_of_the_recorded_angle():
    """|S| = 3, |V| = 4: a right angle if |S + V| = 5, none if V is zero."""
    numbers = _steering_numbers({0: StageNorms(3.0, 3.0), 1: StageNorms(4.0, 5.0), 2: StageNorms(1.0, 5.5)})
    expected = {"gradient_standard": 3.0, "gradient_steering": 4.0, "gradient_angle": 90.0}
    assert numbers == pytest.approx(expected | {"gradient_scale": 0.6})
    opposite = _steering_numbers({0: StageNorms(3.0, 3.0), 1: StageNorms(4.0, 1.0)})
    assert opposite["gradient_angle"] == 180.0 and opposite["gradient_scale"] == 3.0
    zero = _steering_numbers({0: StageNorms(3.0, 3.0), 1: StageNorms(0.0, 3.0)})
    assert "gradient_angle" not in zero and zero["gradient_scale"] == 1.0
    assert _steering_numbers({0: StageNorms(3.0, 3.0)})["gradient_scale"] == 1.0


def test_the_blind_graph_is_run_after_the_seeing_one(shared_student, teacher, rollouts, monkeypatch):
    """And the gradient through it is the one that autograd finds when both are alive."""
    objective = VisualSteeringOPD(
        alpha=0.0, beta=1.0, scale=1.0, standard=0.0, upper_quantile=0.0, lower_quantile=0.0
    )
    _, gradients = gradient(shared_student, teacher, objective, rollouts)
    loaded = copy.deepcopy(shared_student)
    student = Scorer(loaded)
    prompts = student.encode(rollouts.samples, Blind())
    sequences = student.sequences(prompts, rollouts.response_ids)
    kept = loaded.vocabulary.scored_ids("shared")
    log_p = student.run(sequences, lambda hidden, head: (hidden @ head.T)[:, kept].log_softmax(-1))
    scores = teacher.scorer.scores(rollouts.samples, rollouts.response_ids, Blind())
    log_q = (scores.hidden_ND @ scores.head_WD.T)[:, kept].log_softmax(-1)
    plain_scores = teacher.scorer.scores(rollouts.samples, rollouts.response_ids, teacher.view)
    log_seen = (plain_scores.hidden_ND @ plain_scores.head_WD.T)[:, kept].log_softmax(-1)
    vds = (log_seen.exp() * (log_seen - log_q)).sum(-1)
    lengths = torch.tensor([len(r.ids) for r in rollouts.flat_responses])
    weights = torch.repeat_interleave(1 / (len(lengths) * lengths), lengths) * (vds > vds.min())
    (weights * (log_p.exp() * (log_p - log_q)).sum(-1)).sum().backward()
    for name, parameter in loaded.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("name", ["sampled", "VGS", "GRPO"])
def test_a_split_changes_nothing_over_the_shared_vocabulary(shared_student, teacher, rollouts, name):
    """And its result is another than that over the tokens that a response may consist of."""
    whole = ScoringConfig(vocabulary="shared")
    split = ScoringConfig(vocabulary="shared", prompts_per_batch=1, share_prompts="never", chunk_tokens=3)
    runs = [
        gradient(shared_student, teacher, OBJECTIVES[name], rollouts, micro_batch=size, scoring=scoring)
        for size, scoring in ((3, whole), (1, split), (3, ScoringConfig(vocabulary="sampleable")))
    ]
    assert_same(runs[1], runs[0])
    with pytest.raises(AssertionError):
        assert_same(runs[2], runs[0])


def test_the_modules_gradient_is_the_advantage_times_the_score(shared_student, teacher, rollouts):
    """Of cue recovery as of all weights: -1/N sum_t A_t d log p(y_t) (ViCuR eq. 8 and 30)."""
    objective = SampledTokenOPD()
    loaded = copy.deepcopy(shared_student)
    student = Scorer(loaded)
    ids = torch.cat([r.ids for r in rollouts.flat_responses])
    sequences = student.sequences(student.encode(rollouts.samples, Plain()), rollouts.response_ids)
    kept = loaded.vocabulary.scored_ids("shared")
    log_p = student.run(sequences, lambda hidden, head: (hidden @ head.T)[:, kept].log_softmax(-1))
    slots = torch.searchsorted(kept, ids)
    log_prob = log_p[torch.arange(len(ids)), slots]
    taught = teacher.scorer.log_probs(rollouts.samples, rollouts.response_ids, teacher.view)
    advantage = (taught - log_prob).detach().clamp(-10, 10)
    (-(advantage * log_prob).mean()).backward()
    needs = objective.needs(1)
    scorer = BatchScorer(student, teacher, seed=0)
    measured = scorer.score_references(scorer.score_rollouts(rollouts, needs, 1, None), needs)
    expected = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad(set_to_none=True)
    optimizer = Optimizer(loaded.model, OptimizerConfig(), total_steps=1)
    weighed = objective.weigh(measured.scored_tokens(student.device))
    Updater(student, optimizer, prompts_per_micro_batch=2).gradient(measured, weighed, needs)
    found = {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, rtol=2e-3, atol=2e-6)
    assert any(own.abs().max() > 1e-4 for name, own in expected.items() if name.startswith("recovery"))


@pytest.mark.parametrize("detach_prior", [True, False])
def test_a_live_prior_has_the_gradient_of_both_views(shared_student, teacher, rollouts, detach_prior):
    """As autograd finds it with the seeing and the blind graph in memory together."""
    objective = VisualSteeringOPD(standard=0.0, beta=0.0, scale=1.0, detach_prior=detach_prior)
    update, gradients = gradient(shared_student, teacher, objective, rollouts)
    loaded = copy.deepcopy(shared_student)
    student, kept = Scorer(loaded), loaded.vocabulary.scored_ids("shared")

    def live(view):
        sequences = student.sequences(student.encode(rollouts.samples, view), rollouts.response_ids)
        return student.run(sequences, lambda hidden, head: (hidden @ head.T)[:, kept].log_softmax(-1))

    def taught(view):
        scores = teacher.scorer.scores(rollouts.samples, rollouts.response_ids, view)
        return (scores.hidden_ND @ scores.head_WD.T)[:, kept].log_softmax(-1)

    p, p0 = live(Plain()), live(Blind())
    prior = p0.detach() if detach_prior else p0
    target = (prior + taught(teacher.view) - taught(Blind())).log_softmax(-1)
    lengths = torch.tensor([len(r.ids) for r in rollouts.flat_responses])
    weights = torch.repeat_interleave(2 / (len(lengths) * lengths), lengths)
    loss = (weights * (p.exp() * (p - target)).sum(-1)).sum()
    loss.backward()
    assert update.losses["visual_kl"] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in loaded.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-6)


def test_two_graphs_are_never_in_memory_together(shared_student, teacher, rollouts, monkeypatch):
    """The blind rows are run with gradient only after the seeing ones have been backpropagated."""
    events = []
    run, backward = Policy.forward, torch.Tensor.backward
    monkeypatch.setattr(
        Policy, "forward", lambda self, rows, read: events.append("forward") or run(self, rows, read)
    )
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: events.append("backward") or backward(self))
    objective = VisualSteeringOPD(beta=0.0, scale=1.0, detach_prior=False)
    student = Scorer(copy.deepcopy(shared_student))
    needs = objective.needs(1)
    scorer = BatchScorer(student, teacher, seed=0)
    measured = scorer.score_references(scorer.score_rollouts(rollouts, needs, 1, None), needs)
    optimizer = Optimizer(student.policy.model, OptimizerConfig(), total_steps=1)
    events.clear()
    weighed = objective.weigh(measured.scored_tokens(student.device))
    Updater(student, optimizer, prompts_per_micro_batch=2).gradient(measured, weighed, needs)
    assert events == ["forward", "backward"] * 4  # two micro-batches of each view


def test_each_view_of_a_model_is_run_once(shared_student, samples, rollouts, base):
    """Teacher without privilege: its own view and the plain one are the same."""
    teacher = Teacher(copy.deepcopy(base), Plain())
    seen = []
    scores = teacher.scorer.scores
    teacher.scorer.scores = lambda samples, responses, view, attempts: (
        seen.append(view.name) or scores(samples, responses, view, attempts)
    )
    gradient(shared_student, teacher, OBJECTIVES["VA-OPD"], rollouts)
    assert sorted(seen) == ["degraded(0.1)", "plain"]


def test_what_is_measured_when(shared_student, teacher, rollouts):
    """Teachers and the old student once per rollout batch; the student's references at each update."""
    needs = OBJECTIVES["together"].needs(1)
    scorer = BatchScorer(Scorer(shared_student), teacher, seed=0)
    first = scorer.score_rollouts(rollouts, needs, 1, None)
    assert OLD in first.log_probs and TEACHER in first.distributions
    assert STUDENT_BLIND not in first.distributions
    parts = list(first.updates(2))
    assert [len(part.rollouts.samples) for part in parts] == [2, 1]
    complete = scorer.score_references(parts[1], needs)
    tokens = sum(len(r.ids) for r in rollouts.responses[2])
    assert len(complete.distributions[STUDENT_BLIND].hidden_ND) == tokens
    assert len(complete.log_probs[OLD]) == len(complete.divergences["vds"]) == tokens
    assert [grade.correct for grade in complete.grades] == [True, False]
    torch.testing.assert_close(torch.cat([part.log_probs[OLD] for part in parts]), first.log_probs[OLD])


def test_draws_are_keyed_by_the_response_and_not_by_its_place(rollouts):
    draws = rollouts.draws(0, 1)
    lengths = [sum(len(r.ids) for r in own) for own in rollouts.responses]
    swapped = reordered(rollouts, (2, 0, 1)).draws(0, 1).split([lengths[i] for i in (2, 0, 1)])
    for index, place in enumerate((1, 2, 0)):
        assert torch.equal(draws.split(lengths)[index], swapped[place])
    assert not torch.equal(draws, rollouts.draws(0, 2))
