"""Targets, gates and reward directions against an independent float64 reference, and their limits."""

from __future__ import annotations

from dataclasses import replace

import family_reference as ref
import numpy as np
import pytest
import torch
from harness import identity
from hypothesis import given
from hypothesis import strategies as st

from vicur.data.views import Blind, Degraded, teacher_view
from vicur.objectives.divergence import DivergenceOPD
from vicur.objectives.gates import EndorsementGate, EvidenceGate, Gate
from vicur.objectives.mixture import ObjectiveConfig
from vicur.objectives.objective import OLD, REFERENCE, TEACHER, Look, ScoredTokens
from vicur.objectives.policy import GRPO, RewardDirection
from vicur.objectives.sampled import SampledTokenOPD
from vicur.objectives.target import TargetLook, TargetOPD
from vicur.objectives.visual_steering import VisualSteeringOPD
from vicur.scoring import terms
from vicur.scoring.chunks import Reading, weighted_terms

WORDS = 9
ENDS = (3, 7)


def log_probs(random, tokens, words=WORDS):
    return torch.from_numpy(random.normal(0, 2, (tokens, words))).log_softmax(-1)


def close(ours, reference, **tolerance):
    np.testing.assert_allclose(
        ours.detach().numpy(), reference, **({"rtol": 1e-9, "atol": 1e-12} | tolerance)
    )


seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------------------------------- targets


@given(seeds, st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.3, 0.9]), st.booleans())
def test_linear_targets_and_both_divergences(seed, count, beta, exempt):
    random = np.random.default_rng(seed)
    looks = [log_probs(random, 5) for _ in range(count)]
    times = random.normal(0, 1.5, count).tolist()
    log_p, reference = log_probs(random, 5), log_probs(random, 5)
    ends = torch.zeros(WORDS, dtype=torch.bool)
    ends[list(ENDS)] = exempt
    ours = terms.linear_target(looks, times, reference=reference, beta=beta, exempt=ends)
    numpy = [look.numpy() for look in looks]
    theirs = ref.linear_target(numpy, times, reference.numpy(), beta, list(ENDS) if exempt else [])
    close(ours, theirs)
    close(terms.forward_kl_to(log_p, ours), ref.forward_kl_to(theirs, log_p.numpy()))
    close(terms.reverse_kl_to(log_p, ours), ref.reverse_kl_to(theirs, log_p.numpy()))
    assert terms.forward_kl_to(log_p, ours).min() > -1e-12 and terms.reverse_kl_to(log_p, ours).min() > -1e-12


@given(seeds, st.floats(0, 3), st.sampled_from([0.0, 0.1, 0.5]))
def test_contrast_and_steering_are_linear_targets(seed, alpha, beta):
    random = np.random.default_rng(seed)
    q, blank, p_blind = (log_probs(random, 4) for _ in range(3))
    ends = torch.isin(torch.arange(WORDS), torch.tensor(ENDS))
    ours = terms.linear_target([q, blank], [1 + alpha, -alpha], reference=q, beta=beta, exempt=ends)
    close(ours, ref.vcsd_target(q.numpy(), blank.numpy(), alpha, beta, list(ENDS)))
    close(terms.visual_target(p_blind, q, blank), ref.vgs_target(p_blind.numpy(), q.numpy(), blank.numpy()))


@given(seeds)
def test_projected_and_mixed_targets(seed):
    random = np.random.default_rng(seed)
    p, q, seeing, erased = (log_probs(random, 4) for _ in range(4))
    ours = terms.projected_target(p, q, seeing - erased)
    close(ours, ref.vad_target(p.numpy(), q.numpy(), seeing.numpy(), erased.numpy()), rtol=1e-8, atol=1e-10)
    weights = torch.from_numpy(random.uniform(0.1, 2, (3, 4)))
    shares = list(weights / weights.sum(0))
    mixed = terms.mixture_target([q, seeing, erased], shares)
    close(mixed, ref.mixture_target([x.numpy() for x in (q, seeing, erased)], weights.numpy()))
    close(mixed.exp().sum(-1), np.ones(4))
    margin = float(random.uniform(0, 2))
    close(terms.margin_kl(p, q, erased, margin), ref.cv_margin(p.numpy(), q.numpy(), erased.numpy(), margin))
    close(terms.generalized_jsd(p, q, 0.5), ref.jsd(q.numpy(), p.numpy()))


def test_a_worked_contrast():
    """q = (1/2, 1/4, 1/4) with, b = (1/4, 1/4, 1/2) without the image: q^2 / b = (1, 1/4, 1/8), times 8/11.
    KL(target || uniform) = log 3 + sum t log t."""
    q, blank = (
        torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5])
    )
    target = terms.linear_target([q, blank], [2.0, -1.0])
    close(target.exp(), [[8 / 11, 2 / 11, 1 / 11]])
    t = np.array([8, 2, 1]) / 11
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    close(terms.forward_kl_to(uniform, target), [np.log(3) + (t * np.log(t)).sum()])
    cut = terms.linear_target([q, blank], [2.0, -1.0], reference=q, beta=0.6)
    assert cut.exp().tolist() == [[1.0, 0.0, 0.0]]
    close(terms.forward_kl_to(uniform, cut), [np.log(3)])
    close(terms.reverse_kl_to(uniform, cut), [np.log(3)])  # a third of its probability is on what is kept


def test_limits_of_targets():
    random = np.random.default_rng(0)
    p, q, blank = (log_probs(random, 6) for _ in range(3))
    one = terms.linear_target([q], [1.0])
    close(terms.reverse_kl_to(p, one), terms.reverse_kl(p, q).numpy())
    close(terms.forward_kl_to(p, one), terms.forward_kl(p, q).numpy())
    close(terms.linear_target([q, blank], [1.0, -0.0]), q.numpy())  # no contrast is plain distillation
    all_words = terms.linear_target([q, blank], [2.0, -1.0], reference=q, beta=0.0)
    assert torch.equal(all_words, terms.linear_target([q, blank], [2.0, -1.0]))
    assert bool(all_words.isfinite().all())
    assert (terms.linear_target([q], [1.0], reference=q, beta=1.0) > -torch.inf).sum(-1).tolist() == [1] * 6
    # Projecting on the correction itself arrives at the teacher; on a flat direction it stays at the student.
    close(terms.projected_target(p, q, q - p), q.numpy(), rtol=1e-8)
    close(terms.projected_target(p, q, torch.ones_like(q)), p.numpy())
    close(terms.mixture_target([q, blank], [torch.ones(6).double(), torch.zeros(6).double()]), q.numpy())


@pytest.mark.parametrize("kind", ["forward_kl_to", "reverse_kl_to"])
def test_gradients_towards_targets_that_leave_words_out(kind):
    random = np.random.default_rng(1)
    q, blank = log_probs(random, 3), log_probs(random, 3)
    target = terms.linear_target([q, blank], [2.0, -1.0], reference=q, beta=0.2)
    assert torch.isneginf(target).any()
    logits = torch.from_numpy(random.normal(0, 1, (3, WORDS))).requires_grad_()
    function = getattr(terms, kind)
    assert torch.autograd.gradcheck(lambda x: function(x.log_softmax(-1), target), logits)


# --------------------------------------------------------------------------------------- objectives


LENGTHS = [[3, 2], [1, 4]]


class Scene:
    """Random distributions of student and looks at the tokens of two problems with two responses each."""

    def __init__(self, seed, *names, words=WORDS):
        random = np.random.default_rng(seed)
        lengths = [length for group in LENGTHS for length in group]
        tokens = sum(lengths)
        self.logits = {name: torch.from_numpy(random.normal(0, 2, (tokens, words))) for name in names}
        self.student = torch.from_numpy(random.normal(0, 2, (tokens, words)))
        self.ids = torch.from_numpy(random.integers(0, words, tokens))
        self.reading = Reading(self.ids, torch.arange(words), 2, ENDS)
        names_of = {"student": self.student, **self.logits}
        sampled = {
            name: logits.log_softmax(-1).gather(-1, self.ids[:, None])[:, 0]
            for name, logits in names_of.items()
        }
        self.scored = ScoredTokens(
            response_index=torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)),
            prompt_index=torch.tensor([0, 0, 1, 1]),
            log_probs={**sampled, OLD: sampled["student"]},
            rewards=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
            segments={
                "description": torch.arange(tokens) % 3 == 0,
                "rest": torch.arange(tokens) % 3 != 0,
            },
        )

    def log(self, name):
        return (self.student if name == "student" else self.logits[name]).log_softmax(-1)

    def run(self, objective):
        """Loss and its gradient in the student's logits."""
        student = identity(self.student)
        hidden = student.hidden_ND.clone().requires_grad_()
        others = {name: identity(logits, width=2) for name, logits in self.logits.items()}
        result = weighted_terms(
            hidden, student.head_WD, self.reading, objective.weigh(self.scored).terms, others
        )
        result.loss.backward()
        return result.loss.detach(), hidden.grad[:, :WORDS]

    def expect(self, value_N):
        """Loss and gradient of the mean over responses of per-token values of the student's logits."""
        logits = self.student.clone().requires_grad_()
        index = self.scored.response_index
        lengths = torch.bincount(index).double()
        loss = (value_N(logits.log_softmax(-1)) / (4 * lengths[index])).sum()
        loss.backward()
        return loss.detach(), logits.grad


def agree(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


EVIDENCE, ERASED = "teacher: crop", "teacher: erased"
BLANK, BLIND_TEACHER, BLIND_STUDENT = "teacher: blank", "teacher: blind", "student: blind"


@given(seeds)
def test_steering_is_one_case_of_a_target(seed):
    """VGS's visual term alone, by its own objective and as a product of three looks."""
    scene = Scene(seed, TEACHER, BLIND_TEACHER, BLIND_STUDENT)
    looks = {
        "prior": TargetLook("student", "blind"),
        "seeing": TargetLook(),
        "blind": TargetLook(view="blind", times=-1.0),
    }
    ours = scene.run(TargetOPD(looks=looks))
    scene.logits |= {
        "teacher_blind": scene.logits[BLIND_TEACHER],
        "student_blind": scene.logits[BLIND_STUDENT],
    }
    agree(ours, scene.run(VisualSteeringOPD(standard=0, alpha=1, beta=0, scale=1)))


@given(seeds, st.sampled_from(["forward_kl", "reverse_kl"]))
def test_a_contrast_leaves_unlikely_words_out(seed, kind):
    scene = Scene(seed, TEACHER, BLANK)
    looks = {"seeing": TargetLook(times=2.0), "blank": TargetLook(view="blank", times=-1.0)}
    objective = TargetOPD(looks=looks, reference="seeing", beta=0.1, kind=kind)
    target = torch.from_numpy(
        ref.vcsd_target(scene.log(TEACHER).numpy(), scene.log(BLANK).numpy(), 1.0, 0.1, list(ENDS))
    )
    function = terms.forward_kl_to if kind == "forward_kl" else terms.reverse_kl_to
    agree(scene.run(objective), scene.expect(lambda log_p: function(log_p, target)))


@given(seeds, st.sampled_from([0.5, 2.0, 7.0]), st.sampled_from(["forward_kl", "reverse_kl"]))
def test_a_contrast_at_a_distillation_temperature(seed, temperature, kind):
    """VCSD's paper: both looks, the cut, the target and the student at T, and the divergence times T^2."""
    scene = Scene(seed, TEACHER, BLANK)
    looks = {"seeing": TargetLook(times=2.0), "blank": TargetLook(view="blank", times=-1.0)}
    objective = TargetOPD(looks=looks, reference="seeing", beta=0.1, kind=kind, temperature=temperature)
    soft = [ref.soften(scene.log(name).numpy(), temperature) for name in (TEACHER, BLANK)]
    target = torch.from_numpy(ref.vcsd_target(*soft, 1.0, 0.1, list(ENDS)))
    function = terms.forward_kl_to if kind == "forward_kl" else terms.reverse_kl_to

    def value(log_p):
        return temperature**2 * function((log_p / temperature).log_softmax(-1), target)

    agree(scene.run(objective), scene.expect(value))


def test_every_combination_at_a_distillation_temperature():
    """The same as with temperature 1 and logits that were divided before, times T^2."""
    scene, soft = (Scene(9, TEACHER, EVIDENCE) for _ in range(2))
    soft.student = soft.student / 2
    soft.logits = {name: logits / 2 for name, logits in soft.logits.items()}
    looks = {"teacher": TargetLook(), "crop": TargetLook(view="crop", times=0.5)}
    away = {"teacher": TargetLook(), "crop": TargetLook(view="crop", times=-1.0)}
    for settings in (
        {"looks": looks},
        {"looks": looks, "combine": "mixture"},
        {"looks": looks, "combine": "each"},
        {"looks": looks, "reference": "teacher"},
        {"looks": looks, "combine": "projection", "reference": "teacher"},
        {"looks": away, "combine": "margin"},
    ):
        loss, gradient = scene.run(TargetOPD(temperature=2.0, **settings))
        soft_loss, soft_gradient = soft.run(TargetOPD(**settings))
        agree((loss, gradient), (4 * soft_loss, 2 * soft_gradient))


@given(seeds, st.lists(st.floats(-2, 2), min_size=1, max_size=3))
def test_looks_that_are_the_reference_need_no_exemption(seed, times):
    q = log_probs(np.random.default_rng(seed), 3)
    ends = torch.isin(torch.arange(WORDS), torch.tensor(ENDS))
    looks = [q] * len(times)
    exempt = terms.linear_target(looks, times, reference=q, exempt=ends)
    close(exempt, terms.linear_target(looks, times).numpy(), rtol=1e-9, atol=1e-9)


def test_a_view_that_is_the_teachers_own_takes_no_pass_of_its_own():
    own = teacher_view("crop", missing="error")
    assert own != teacher_view("crop")
    assert Look(TEACHER, teacher_view("crop")).resolved({TEACHER: own}) is own
    assert Look(TEACHER, teacher_view("erased")).resolved({TEACHER: own}) == teacher_view("erased")


def test_softened_by_hand():
    """(9/10, 1/10) and (4/5, 1/5) at T = 2 are (3, 1)/4 and (2, 1)/3."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.9, 0.1], [0.8, 0.2]))
    close(terms.softened(p, 2.0).exp(), [[0.75, 0.25]])
    kl = terms.reverse_kl_to(terms.softened(p, 2.0), terms.softened(q, 2.0))
    close(kl, [0.75 * np.log(9 / 8) + 0.25 * np.log(3 / 4)])


def test_one_look_is_plain_distillation():
    scene = Scene(3, TEACHER)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        target = scene.run(TargetOPD(looks={"teacher": TargetLook()}, kind=kind))
        agree(target, scene.run(DivergenceOPD(kind=kind)))
    contrast = {"seeing": TargetLook(times=1.0), "blank": TargetLook(view="blank", times=0.0)}
    scene = Scene(3, TEACHER, BLANK)
    agree(scene.run(TargetOPD(looks=contrast)), scene.run(DivergenceOPD()))


def test_the_students_own_prediction_in_a_target_is_a_constant():
    """OPD-Aha's target is anchored at the student; VAD's too."""
    scene = Scene(4, TEACHER, BLANK)
    looks = {
        "own": TargetLook("student"),
        "seeing": TargetLook(),
        "blank": TargetLook(view="blank", times=-1.0),
    }
    anchored = (scene.log("student") + scene.log(TEACHER) - scene.log(BLANK)).log_softmax(-1)
    agree(scene.run(TargetOPD(looks=looks)), scene.expect(lambda log_p: terms.reverse_kl(log_p, anchored)))
    looks = {
        "teacher": TargetLook(times=0.0),
        "seeing": TargetLook(view="crop"),
        "erased": TargetLook(view="erased", times=-1.0),
    }
    scene = Scene(5, TEACHER, "teacher: crop", "teacher: erased")
    target = torch.from_numpy(
        ref.vad_target(
            *(scene.log(n).numpy() for n in ("student", TEACHER, "teacher: crop", "teacher: erased"))
        )
    )
    objective = TargetOPD(looks=looks, combine="projection", reference="teacher")
    agree(scene.run(objective), scene.expect(lambda log_p: terms.reverse_kl(log_p, target)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_mixture_is_weighted_by_what_each_look_makes_of_correct_responses(temperature):
    scene = Scene(6, "teacher: crop", "teacher: cue")
    looks = {"crop": TargetLook(view="crop", times=2.0), "cue": TargetLook(view="cue")}
    objective = TargetOPD(looks=looks, combine="mixture", graded=True, graded_temperature=temperature)
    # The first response to the first problem is the only correct one; it has three tokens.
    likely = np.array(
        [float(scene.scored.log_probs[key][:3].mean().exp()) for key in ("teacher: crop", "teacher: cue")]
    )
    graded = np.array([2.0, 1.0]) * likely ** (1 / temperature)
    weights = np.stack([graded if token < 5 else np.array([2.0, 1.0]) for token in range(10)], 1)
    target = torch.from_numpy(
        ref.mixture_target([scene.log(k).numpy() for k in ("teacher: crop", "teacher: cue")], weights)
    )
    agree(scene.run(objective), scene.expect(lambda log_p: terms.reverse_kl(log_p, target)))


def test_each_segment_learns_from_its_own_look():
    scene = Scene(7, TEACHER, "teacher: plain")
    looks = {
        "image": TargetLook(view="plain", segment="description"),
        "hinted": TargetLook(segment="rest", times=0.5),
    }
    objective = TargetOPD(looks=looks, combine="each", segments={"description": "<d>.*?</d>"})
    inside = scene.scored.segments["description"]

    def value(log_p):
        image, hinted = (terms.reverse_kl(log_p, scene.log(name)) for name in ("teacher: plain", TEACHER))
        return torch.where(inside, image, 0.5 * hinted)

    agree(scene.run(objective), scene.expect(value))


def test_a_token_learns_from_the_look_that_finds_it_likelier():
    scene = Scene(8, TEACHER, "own")
    looks = {"large": TargetLook(), "own": TargetLook("own")}
    first, second = scene.scored.log_probs[TEACHER], scene.scored.log_probs["own"]
    assert 0 < int((first > second).sum()) < len(first)

    def value(log_p):
        large, own = (terms.reverse_kl(log_p, scene.log(name)) for name in (TEACHER, "own"))
        return torch.where(first > second, large, own)

    agree(scene.run(TargetOPD(looks=looks, combine="likelier")), scene.expect(value))


def test_towards_the_evidence_and_away_from_the_rest():
    scene = Scene(9, "teacher: crop", "teacher: erased")
    looks = {"erased": TargetLook(view="erased", times=-1.0), "crop": TargetLook(view="crop")}
    objective = TargetOPD(looks=looks, combine="margin", margin=0.7)
    value = lambda p: terms.margin_kl(p, scene.log("teacher: crop"), scene.log("teacher: erased"), 0.7)  # noqa: E731
    agree(scene.run(objective), scene.expect(value))


def test_what_targets_need():
    objective = TargetOPD(
        looks={
            "a": TargetLook(),
            "b": TargetLook(view="crop", times=-1.0),
            "c": TargetLook("student", "blind"),
            "d": TargetLook("student"),
            "e": TargetLook("large", "cue"),
        }
    )
    needs = objective.needs(0)
    assert set(needs.distributions) == {TEACHER, "teacher: crop", "student: blind", "large: cue"}
    assert needs.distributions["teacher: crop"].view == teacher_view("crop")
    assert (
        needs.distributions["student: blind"].resolved({"student": Degraded()}).name
        == "degraded(0.1) + blind"
    )
    assert needs.distributions["student: blind"].view == Blind() and needs.log_probs == {}
    assert needs.models == {"student", "teacher", "large"}
    likelier = TargetOPD(looks={"a": TargetLook(), "b": TargetLook("own")}, combine="likelier").needs(0)
    assert set(likelier.log_probs) == {TEACHER, "own"} and not likelier.rewards


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"looks": {}}, "at least one look"),
        ({"looks": {"a": TargetLook(view="cropp")}}, r"target.looks.a.view has no part 'cropp' \(crop\?\)"),
        (
            {"looks": {"a": TargetLook("student", "cue")}},
            "target.looks.a.view=cue would show the student cue",
        ),
        ({"looks": {"a": TargetLook(segment="rest")}}, "with target.combine=each"),
        ({"looks": {"a": TargetLook(segment="x")}, "combine": "each"}, "must be rest or in target.segments"),
        ({"looks": {"a": TargetLook(segment="rest")}, "combine": "each"}, "must be rest or in"),
        (
            {"looks": {"a": TargetLook(segment="rest")}, "combine": "each", "segments": {"rest": "a"}},
            "must not name rest",
        ),
        ({"looks": {"a": TargetLook("student")}}, "nothing to teach"),
        ({"reference": "a", "combine": "each"}, "target.reference is for target.combine=product"),
        ({"graded_temperature": 2.0}, "target.graded_temperature is for target.graded=true"),
        ({"margin": 0.5}, "target.margin is for target.combine=margin"),
        ({"beta": 0.1}, "target.reference must name a look"),
        ({"combine": "projection"}, "target.reference must name a look"),
        ({"reference": "b"}, "target.reference=b is not one of a"),
        ({"reference": "a", "beta": 0.1, "kind": "jsd"}, "with kind reverse_kl or forward_kl"),
        ({"reference": "a", "beta": 0.1, "combine": "projection"}, "leaves words out of a product"),
        ({"segments": {"x": "a"}}, "target.segments needs target.combine=each"),
        (
            {"looks": {"a": TargetLook(segment="x")}, "segments": {"x": "("}, "combine": "each"},
            "target.segments.x is not a regular expression",
        ),
        ({"graded": True}, "target.combine=mixture"),
        ({"looks": {"a": TargetLook(times=-1)}, "combine": "mixture"}, "times above 0"),
        ({"combine": "margin"}, "takes two looks"),
    ],
)
def test_mistakes_in_a_target(settings, message):
    with pytest.raises(ValueError, match=message):
        TargetOPD(**({"looks": {"a": TargetLook()}} | settings))


# ---------------------------------------------------------------------------------------------- gates


@given(seeds, st.floats(0, 3), st.floats(0, 2))
def test_the_evidence_gate_weights_responses(seed, alpha, gamma):
    scene = Scene(seed, TEACHER, EVIDENCE, ERASED)
    gate = Gate(EvidenceGate(alpha=alpha, gamma=gamma, low=0.25, high=1.5, epsilon=1e-3))
    expected = ref.evidence_weights(
        *(scene.scored.log_probs[name].numpy() for name in (EVIDENCE, ERASED)),
        scene.scored.response_index.numpy(),
        scene.scored.prompt_index.numpy(),
        alpha, gamma, 0.25, 1.5, 1e-3,
    )  # fmt: skip
    weighed = DivergenceOPD(gate=gate).weigh(scene.scored)
    plain = DivergenceOPD().weigh(scene.scored)
    factors = torch.from_numpy(expected)[scene.scored.response_index]
    close(weighed.terms[0].weights, (plain.terms[0].weights * factors).numpy())
    close(weighed.tokens["evidence_weight"], factors.numpy())
    assert DivergenceOPD(gate=gate).needs(0).group_size == 2


def test_a_worked_evidence_gate():
    """Responses of one token with d = 2 and -1: s = 2 and -0.5, mean 0.75, deviation 1.25, z = 1 and -1."""
    scored = ScoredTokens(
        response_index=torch.tensor([0, 1]),
        prompt_index=torch.tensor([0, 0]),
        log_probs={
            TEACHER: torch.zeros(2).double(),
            EVIDENCE: torch.tensor([-1.0, -3.0]).double(),
            ERASED: torch.tensor([-3.0, -2.0]).double(),
        },
    )
    gate = Gate(EvidenceGate(alpha=0.5, gamma=0.5, epsilon=0.0))
    weighed = DivergenceOPD(gate=gate).weigh(scored)
    assert weighed.tokens["evidence_weight"].tolist() == [1.5, 0.5]
    assert weighed.tokens["evidence_gain"].tolist() == [2.0, -0.5]
    assert weighed.terms[0].weights.tolist() == [0.75, 0.25]
    assert (weighed.metrics["evidence_weight_min"], weighed.metrics["evidence_weight_max"]) == (0.5, 1.5)
    off = DivergenceOPD(gate=Gate(EvidenceGate(alpha=0.0))).weigh(scored)
    assert off.terms[0].weights.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="is above high"):
        EvidenceGate(low=2.0, high=1.0)
    with pytest.raises(ValueError, match=r"gate\.evidence\.evidence has no part"):
        EvidenceGate(evidence="corp")


def test_a_problem_without_the_evidence_counts_once():
    """Both looks show it plain, so that their difference is rounding, which must not be standardised."""
    scene = Scene(0, TEACHER, EVIDENCE, ERASED)
    noise = {
        name: scene.scored.log_probs[EVIDENCE] + 1e-4 * torch.randn(10).double()
        for name in (EVIDENCE, ERASED)
    }
    lacking = dict.fromkeys((EVIDENCE, ERASED), torch.tensor([False, False, True, True]))
    scored = replace(scene.scored, log_probs={**scene.scored.log_probs, **noise}, lacking=lacking)
    weights = DivergenceOPD(gate=Gate(EvidenceGate())).weigh(scored).tokens["evidence_weight"]
    assert (weights[5:] == 1).all() and (weights[:5] != 1).all()


def test_the_gradient_is_finite_where_a_left_out_word_is_likely():
    logits = torch.tensor([[0.0, -95.0, -96.0, -97.0]], requires_grad=True)
    target = torch.tensor([[-torch.inf, 0.0, 0.0, 0.0]]).log_softmax(-1)
    value = terms.reverse_kl_to(logits.log_softmax(-1), target)
    value.backward()
    assert value.isfinite().all() and logits.grad.isfinite().all() and logits.grad[0, 0] > 0


@given(seeds, st.floats(0.1, 5))
def test_the_endorsement_gate_weights_tokens(seed, beta):
    scene = Scene(seed, TEACHER)
    expected = ref.sdar_gate(
        scene.scored.log_probs[TEACHER].numpy(), scene.scored.log_probs[OLD].numpy(), beta
    )
    for objective in (SampledTokenOPD, DivergenceOPD):
        gated = objective(gate=Gate(endorsement=EndorsementGate(beta))).weigh(scene.scored)
        plain = objective().weigh(scene.scored)
        close(gated.terms[0].weights, plain.terms[0].weights.numpy() * expected)
    assert {TEACHER, OLD} <= set(DivergenceOPD(gate=Gate(endorsement=EndorsementGate())).needs(0).log_probs)


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_the_reward_decides_the_direction_and_the_teacher_the_size(seed, share, clip):
    scene = Scene(seed, TEACHER)
    plain = GRPO().weigh(scene.scored).tokens["advantage"]
    weighed = GRPO(direction=RewardDirection(share, clip)).weigh(scene.scored)
    expected = ref.rlsd_weights(
        plain.numpy(),
        scene.scored.log_probs[TEACHER].numpy(),
        scene.scored.log_probs[OLD].numpy(),
        share,
        clip,
    )
    close(weighed.tokens["advantage"], plain.numpy() * expected)
    close(weighed.terms[0].inputs["advantage"], plain.numpy() * expected)
    assert (weighed.tokens["advantage"].sign() == plain.sign()).all() or share == clip == 1
    assert TEACHER in GRPO(direction=RewardDirection()).needs(0).log_probs
    assert set(GRPO(kl_weight=0.1).needs(0).log_probs) == {OLD, REFERENCE}


def test_without_a_share_the_teacher_changes_nothing():
    scene = Scene(0, TEACHER)
    plain, none = GRPO().weigh(scene.scored), GRPO(direction=RewardDirection(share=0.0)).weigh(scene.scored)
    assert torch.equal(plain.tokens["advantage"], none.tokens["advantage"])


def test_a_mixture_of_a_gated_target_and_grpo():
    config = ObjectiveConfig(
        grpo=GRPO(),
        target=TargetOPD(looks={"a": TargetLook()}, gate=Gate(EvidenceGate(), EndorsementGate())),
    )
    needs = config.build().needs(0)
    assert {OLD, TEACHER, EVIDENCE, ERASED} == set(needs.log_probs) and needs.rewards
