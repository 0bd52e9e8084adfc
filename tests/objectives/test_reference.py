"""Numbers worked by hand that the slow references must reproduce."""

from __future__ import annotations

import math
from itertools import product

import pytest
import reference as ref
import torch
from torch import Tensor


def log_rows(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def make(ids: list[int], student: list[list[float]], **others: object) -> ref.Response:
    """A response from rows of probabilities; every model not named is uniform."""
    uniform = [[1 / len(row) for row in student[:1] for _ in row] for _ in ids]
    logits = {
        name: log_rows(others.pop(name, uniform))
        for name in ("student_blind", "teacher", "teacher_plain", "teacher_degraded", "teacher_blind")
    }
    live = log_rows(student).requires_grad_()
    sampled = torch.stack([live[t, token] for t, token in enumerate(ids)]).detach()
    logits["student_blind"].requires_grad_()
    return ref.Response(
        ids=torch.tensor(ids),
        student=live,
        old_log_probs=torch.tensor(others.pop("old", sampled.tolist()), dtype=torch.float64),
        masked_log_probs=torch.tensor(others.pop("masked", sampled.tolist()), dtype=torch.float64),
        reward=others.pop("reward", 0.0),
        **logits,
        **others,
    )


def with_advantages(values: list[float], student: list[list[float]], **others: object) -> ref.Response:
    """All tokens are word 0; the degraded teacher gives it 0.5 * e^-a against the plain teacher's 0.5."""
    degraded = [[0.5 * math.exp(-a), 1 - 0.5 * math.exp(-a)] for a in values]
    plain = [[0.5, 0.5]] * len(values)
    return make([0] * len(values), student, teacher_plain=plain, teacher_degraded=degraded, **others)


def close(value: object, expected: object, tolerance: float = 1e-9) -> None:
    assert torch.allclose(
        torch.as_tensor(value, dtype=torch.float64).detach(),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    ), (value, expected)


def random_batch(seed: int = 0, shape: tuple[tuple[int, ...], ...] = ((3, 5), (4, 1, 6)), words: int = 5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    batch = []
    for lengths in shape:
        prompt = []
        for position, count in enumerate(lengths):
            student = normal(count, words)
            ids = torch.randint(words, (count,), generator=generator)
            sampled = student.log_softmax(-1)[torch.arange(count), ids]
            prompt.append(
                ref.Response(
                    ids,
                    student.requires_grad_(),
                    normal(count, words).requires_grad_(),
                    *(normal(count, words) for _ in range(4)),
                    old_log_probs=sampled + 0.3 * normal(count),
                    masked_log_probs=sampled + 0.3 * normal(count),
                    reward=float(position % 2),
                )
            )
        batch.append(prompt)
    return batch


# p = (3/4, 1/4), q = (1/2, 1/2).
P, Q = [0.75, 0.25], [0.5, 0.5]
# KL(p||q) = .75 ln 1.5 + .25 ln .5 = .304099 - .173287 = .130812
KL_PQ = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
# KL(q||p) = .5 ln(2/3) + .5 ln 2 = .5 ln(4/3) = .143841
KL_QP = 0.5 * math.log(4 / 3)


def test_kl_of_two_words():
    response = make([0], [P], teacher=[Q])
    close(KL_PQ, 0.130812, 1e-6)
    close(KL_QP, 0.143841, 1e-6)
    close(ref.divergence_opd([[response]]), KL_PQ)
    close(ref.divergence_opd([[response]], kind="forward_kl"), KL_QP)


def test_kl_gradients():
    # d KL(p||q) / d logit_0 = p_0 (ln(p_0/q_0) - KL) = .75 (.405465 - .130812) = .205990
    response = make([0], [P], teacher=[Q])
    ref.divergence_opd([[response]]).backward()
    close(response.student.grad, [[0.205990, -0.205990]], 1e-6)
    # d KL(q||p) / d logits = p - q = (.25, -.25)
    response = make([0], [P], teacher=[Q])
    ref.divergence_opd([[response]], kind="forward_kl").backward()
    close(response.student.grad, [[0.25, -0.25]])


def test_jsd():
    def value(student: list[float], teacher: list[float], beta: float) -> Tensor:
        return ref.divergence_opd([[make([0], [student], teacher=[teacher])]], kind="jsd", beta=beta)

    # beta .5: m = (5/8, 3/8); KL(q||m) = .5 ln .8 + .5 ln 4/3 = .032269
    # KL(p||m) = .75 ln 1.2 + .25 ln 2/3 = .136741 - .101366 = .035375; half the sum: .033822
    close(value(P, Q, 0.5), 0.033822, 1e-6)
    close(value(P, Q, 0.5), value(Q, P, 0.5))
    # beta .2: m = .2 q + .8 p = (.7, .3)
    # .2 (.5 ln(.5/.7) + .5 ln(.5/.3)) + .8 (.75 ln(.75/.7) + .25 ln(.25/.3))
    # = .2 (-.168236 + .255413) + .8 (.051745 - .045580) = .017435 + .004932 = .022367
    close(value(P, Q, 0.2), 0.022367, 1e-6)
    # exchanging the two and beta with 1 - beta changes nothing
    close(value(P, Q, 0.2), value(Q, P, 0.8))
    close(value(P, Q, 0.0), KL_QP)
    close(value(P, Q, 1.0), KL_PQ)
    # the ends are the limits of JSD / beta and of JSD / (1 - beta)
    close(value(P, Q, 1e-6) / 1e-6, KL_QP, 1e-5)
    close(value(P, Q, 1 - 1e-6) / 1e-6, KL_PQ, 1e-5)
    close(value(P, P, 0.3), 0.0)


def test_aggregation():
    # -ln p(y): response 1 has -ln .75 once, response 2 has -ln .5 three times
    batch = [[make([0], [P])], [make([0, 1, 0], [Q, Q, Q])]]
    a, b = -math.log(0.75), -math.log(0.5)
    close(ref.cross_entropy(batch, aggregation="token"), (a + 3 * b) / 4)
    close(ref.cross_entropy(batch, aggregation="sequence"), (a + b) / 2)
    ref.cross_entropy(batch, aggregation="sequence").backward()
    # p - onehot, over 2 responses: (.75 - 1) / 2 = -.125
    close(batch[0][0].student.grad, [[-0.125, 0.125]])


def test_cross_entropy_is_over_the_sampled_token():
    close(ref.cross_entropy([[make([1], [[0.2, 0.7, 0.1]])]], aggregation="token"), -math.log(0.7))


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual", "value", "slope"),
    [
        (2.0, 1.0, 3.0, -2.0, -2.0),  # inside: -r A, slope d/d(log p) = -r A
        (2.0, 1.1, 3.0, -2.2, -2.2),
        (2.0, 1.5, 3.0, -2.4, 0.0),  # above 1.2, A > 0: clipped, -1.2 * 2
        (2.0, 0.5, 3.0, -1.0, -1.0),  # below .8, A > 0: min takes r A
        (-2.0, 1.0, 3.0, 2.0, 2.0),
        (-2.0, 0.5, 3.0, 1.6, 0.0),  # below .8, A < 0: clipped, .8 * 2
        (-2.0, 1.5, 3.0, 3.0, 3.0),  # above 1.2, A < 0: min takes r A
        (-2.0, 4.0, 3.0, 6.0, 0.0),  # dual clip: at most 3 * 2
        (-2.0, 4.0, None, 8.0, 8.0),
        (2.0, 4.0, 3.0, -2.4, 0.0),  # dual clip leaves A > 0 alone
        (0.0, 4.0, 3.0, 0.0, 0.0),
    ],
)
def test_ppo_clip(advantage, ratio, dual, value, slope):
    log_prob = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    old = torch.zeros((), dtype=torch.float64)
    term = ref.clipped_policy_term(advantage, log_prob, old, 0.2, 0.2, dual, 20.0)
    term.backward()
    close(term, value)
    close(log_prob.grad, slope)


def test_log_ratio_is_clamped():
    # A < 0, log ratio 25 -> 20: value e^20, and no gradient
    log_prob = torch.tensor(25.0, dtype=torch.float64, requires_grad=True)
    old = torch.zeros((), dtype=torch.float64)
    term = ref.clipped_policy_term(-1.0, log_prob, old, 0.2, 0.2, None, 20.0)
    term.backward()
    close(term, math.exp(20.0), 1e-3)
    close(log_prob.grad, 0.0)


def test_sampled_token_opd():
    # y = 0, teacher .5, student .75: A = ln(.5/.75) = -.405465; ratio 1: loss = .405465
    # gradient: -A (onehot - p) = .405465 (.25, -.25) = (.101366, -.101366)
    response = make([0], [P], teacher=[Q])
    loss = ref.sampled_token_opd([[response]])
    loss.backward()
    close(loss, 0.405465, 1e-6)
    close(response.student.grad, [[0.101366, -0.101366]], 1e-6)
    # y = 1: A = ln(.5/.25) = ln 2, loss = -ln 2
    close(ref.sampled_token_opd([[make([1], [P], teacher=[Q])]]), -math.log(2))


def test_sampled_token_opd_after_an_update():
    # old .70: ratio .75/.70 = 1.0714286
    # current: A = ln(.5/.75) = -.405465, loss .434427; start: A = ln(.5/.70) = -.336472, loss .360506
    response = make([0], [P], teacher=[Q], old=[math.log(0.70)])
    close(ref.sampled_token_opd([[response]]), 0.434427, 1e-6)
    close(ref.sampled_token_opd([[response]], advantage_at="start"), 0.360506, 1e-6)


def test_sampled_token_opd_limits():
    # A = ln(1e-9 / .75) is about -20.4 -> -10; ratio 1
    response = make([0], [P], teacher=[[1e-9, 1 - 1e-9]])
    close(ref.sampled_token_opd([[response]]), 10.0)
    close(ref.sampled_token_opd([[response]], limit=4.0), 4.0)


def test_visual_advantage():
    # the degraded teacher has .25, .5 and .8 where the plain one has .5: ln 2, 0, max(ln(.5/.8), 0) = 0
    response = make(
        [0, 0, 0],
        [Q, Q, Q],
        teacher_plain=[Q, Q, Q],
        teacher_degraded=[[0.25, 0.75], [0.5, 0.5], [0.8, 0.2]],
    )
    close(ref.visual_advantage(response), [math.log(2), 0.0, 0.0])


def test_rollout_weights():
    # the published example; mu .02625, sigma^2 = (351.5625 + 14.0625 + 39.0625 + 264.0625) / 4 e-6
    # sigma .0129301; z = 1.4500 .2900 -.4833 -1.2567; e^z = 4.263 1.336 .617 .285, sum 6.501
    close(ref.rollout_weights([0.045, 0.030, 0.020, 0.010]), [0.656, 0.206, 0.095, 0.044], 6e-4)
    # two responses: z = +-1 whatever the distance: 1 / (1 + e^-2) = .880797; tau = 2: 1 / (1 + e^-1)
    close(ref.rollout_weights([3.0, 1.0], epsilon=0.0), [0.880797, 0.119203], 1e-6)
    close(ref.rollout_weights([3.0, 1.0], temperature=2.0, epsilon=0.0), [0.731059, 0.268941], 1e-6)
    # epsilon 1 with sigma 1: z = +-.5, the same as tau = 2
    close(ref.rollout_weights([3.0, 1.0], epsilon=1.0), [0.731059, 0.268941], 1e-6)
    close(ref.rollout_weights([0.3, 0.3, 0.3]), [1 / 3] * 3)
    close(ref.rollout_weights([0.7]), [1.0])


def test_grouped_kl():
    # KL_t = KL_PQ where the student is P and 0 where it is Q (the teacher is uniform)
    # T = 6: ceil(1.2) = 2 tokens in V, those with a = .9 and .5, of which only the first has a KL;
    # of the four others one has a KL: .5 * KL/2 + .5 * KL/4 = .375 KL
    rows = [Q, P, Q, P, Q, Q]
    response = with_advantages([0.0, 0.9, 0.5, 0.1, 0.0, 0.2], rows)
    close(ref.grouped_kl(response, 0.2, 0.5), 0.375 * KL_PQ)
    # lambda .8: .8 / 2 + .2 / 4 = .45
    close(ref.grouped_kl(response, 0.2, 0.8), 0.45 * KL_PQ)
    # all equal: the tie keeps token order, V = {0}; T = 5, ceil(1) = 1: .5 * KL/1 + .5 * 0
    close(ref.grouped_kl(with_advantages([0.0] * 5, [P, Q, Q, Q, Q]), 0.2, 0.5), 0.5 * KL_PQ)
    # the last token instead: .5 * KL/4
    close(ref.grouped_kl(with_advantages([0.0] * 5, [Q, Q, Q, Q, P]), 0.2, 0.5), 0.125 * KL_PQ)
    # one token: no L, all the mass on V
    close(ref.grouped_kl(with_advantages([0.3], [P]), 0.2, 0.5), KL_PQ)


def test_va_opd():
    # one prompt: means .2 (T = 1, KL_PQ) and 0 (T = 2, KL_PQ on the second token only)
    # weights .880797 and .119203 (epsilon 0); grouped: KL and .5 * 0 + .5 * KL; plain means: KL and KL/2
    def batch() -> ref.Batch:
        group = [with_advantages([0.2], [P]), with_advantages([0.0, 0.0], [Q, P])]
        return [group, [with_advantages([0.4], [Q])]]  # the second prompt has loss 0

    first = 0.880797 + 0.119203 * 0.5
    close(ref.va_opd(batch(), epsilon=0.0), first * KL_PQ / 2, 1e-6)
    close(ref.va_opd(batch(), rollout_weights=False), 0.75 * KL_PQ / 2)
    close(ref.va_opd(batch(), rollout_weights=False, grouped=False), 0.75 * KL_PQ / 2)
    close(ref.va_opd(batch(), grouped=False, epsilon=0.0), first * KL_PQ / 2, 1e-6)
    # the gradient is w times that of the mean KL: .880797 / 2 prompts * .205990 = .090718
    live = batch()
    ref.va_opd(live, epsilon=0.0).backward()
    close(live[0][0].student.grad, [[0.090718, -0.090718]], 1e-6)


def test_va_opd_without_its_parts_is_standard_opd():
    batch = random_batch(shape=((3, 5), (4, 6)))
    plain = ref.va_opd(batch, rollout_weights=False, grouped=False)
    close(plain, ref.divergence_opd(batch, aggregation="sequence"))


def test_masked_opd():
    # T = 4, 10 % -> 1 token; KLs (KL, 0, KL, 0); a = (.1, .9, .5, 0): top is token 1, lowest token 3
    rows = [P, Q, P, Q]
    advantages = [0.1, 0.9, 0.5, 0.0]
    close(ref.masked_opd([[with_advantages(advantages, rows)]]), KL_PQ / 2)
    close(ref.masked_opd([[with_advantages(advantages, rows)]], mask="lowest"), KL_PQ / 2)
    # half: top drops 1 and 2, lowest drops 3 and 0; the denominator stays 4
    for mask in ("top", "lowest"):
        loss = ref.masked_opd([[with_advantages(advantages, rows)]], mask=mask, fraction=0.5)
        close(loss, KL_PQ / 4)
    # ties: both drop the earliest
    for mask in ("top", "lowest"):
        close(ref.masked_opd([[with_advantages([0.2, 0.2], [P, Q])]], mask=mask), 0.0)
        close(ref.masked_opd([[with_advantages([0.2, 0.2], [Q, P])]], mask=mask), KL_PQ / 2)
    # T = 11 -> ceil(1.1) = 2 of them
    close(ref.masked_opd([[with_advantages([0.0] * 11, [P] * 11)]]), 9 / 11 * KL_PQ)
    # a single token is dropped, and the zero still has a gradient
    response = with_advantages([0.2], [P])
    ref.masked_opd([[response]]).backward()
    close(response.student.grad, [[0.0, 0.0]])


def test_share_is_exact():
    assert ref.share(0.1, 10) == 1
    assert ref.share(0.2, 5) == 1
    assert ref.share(0.2, 6) == 2
    assert ref.share(0.07, 100) == 7  # 7.000000000000001 in floats


def test_quantile():
    assert ref.quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    close(ref.quantile([0.0, 1.0, 2.0, 3.0], 0.7), 2.1)  # position 2.1
    close(ref.quantile([0.0, 10.0], 0.4), 4.0)
    assert ref.quantile([7.0], 0.7) == 7.0
    assert ref.quantile([float(i) for i in range(91)], 0.7) == 63.0  # 0.7 * 90 is 62.99... in floats


def test_threshold():
    # position 2.8 of 1 1 2 2.0002 3: 2, plus 1e-6 + 2e-4
    close(ref.threshold([1.0, 3.0, 2.0, 1.0, 2.0002], 0.7), 2.000201, 1e-12)
    close(ref.threshold([7.0], 0.7), 7.000701, 1e-12)


# Blind student (.6, .4), blind teacher (.25, .75); the dependency score is KL(q||q0) with q = (.5, .5):
# .5 ln 2 + .5 ln(2/3) = .5 ln(4/3) = .143841
BLIND_STUDENT, BLIND_TEACHER = [0.6, 0.4], [0.25, 0.75]


def one_token(**others: object) -> ref.Response:
    values = {"teacher": [Q], "student_blind": [BLIND_STUDENT], "teacher_blind": [BLIND_TEACHER]}
    return make([0], [P], **{**values, **others})


def test_vgs_terms():
    response = one_token()
    # q* is in the ratio .6 * .5/.25 : .4 * .5/.75 = 1.2 : .266667 -> (.818182, .181818) = (9/11, 2/11)
    close(ref.visual_target(response, 0).exp(), [9 / 11, 2 / 11])
    # KL(p||q*) = .75 ln(.75 * 11/9) + .25 ln(.25 * 11/2) = .75 ln .916667 + .25 ln 1.375
    # = -.065259 + .079613 = .014355
    close(ref.visual_term(response, 0), 0.014355, 1e-6)
    # KL(p0||q0) = .6 ln 2.4 + .4 ln .533333 = .525281 - .251443 = .273838
    close(ref.language_term(response, 0), 0.273838, 1e-6)
    close(ref.standard_term(response, 0), KL_PQ)
    close(ref.dependency_score(response, 0), 0.143841, 1e-6)


def test_vgs_visual_term_with_a_live_prior():
    # same value; d KL(p||q*) / d blind logit = q* - p = (.818182 - .75, .181818 - .25)
    response = one_token()
    response.student_blind.requires_grad_()
    term = ref.visual_term(response, 0, detach_prior=False)
    close(term, 0.014355, 1e-6)
    (gradient,) = torch.autograd.grad(term, response.student_blind)
    close(gradient, [[0.068182, -0.068182]], 1e-6)


def test_vgs_limits():
    batch = random_batch()
    for prompt in batch:
        for response in prompt:
            response.teacher_blind = response.teacher
            for t in range(len(response.ids)):
                p = response.student[t].log_softmax(-1)
                blind = response.student_blind[t].log_softmax(-1)
                close(ref.visual_term(response, t), (p.exp() * (p - blind)).sum())
    batch = random_batch()
    for prompt in batch:
        for response in prompt:
            response.student_blind = response.teacher_blind.clone()
            for t in range(len(response.ids)):
                close(ref.visual_term(response, t), ref.standard_term(response, t))


def test_vgs_single_token():
    # one token: its score is the quantile, so it is not above it and nothing is preserved
    # .130812 + 2 * .014355 = .159522; scale .41: .065404
    close(ref.vgs([[one_token()]]), 0.159522, 2e-6)
    close(ref.vgs([[one_token()]], scale=0.41), 0.065404, 2e-6)
    # language steering: .130812 + 2 * .273838 = .678488
    close(ref.vgs([[one_token()]], steering="language"), 0.678488, 2e-6)
    # adaptive: score = Q_0.4 too -> alpha_t 0
    close(ref.vgs([[one_token()]], adaptive=True), KL_PQ)


def test_vgs_preservation_and_adaptive():
    # Four tokens, p0 and q as above, teacher blind q, so scores 0, on the first three and (.25, .75) on the
    # last. Scores 0 0 0 .1438: Q_0.7 at position 2.1 = .01438, Q_0.4 at 1.2 = 0. Only the last is above.
    # l_lang of the last .273838, over all four tokens: .068460
    def response() -> ref.Response:
        return make(
            [0] * 4,
            [P] * 4,
            teacher=[Q] * 4,
            student_blind=[BLIND_STUDENT] * 4,
            teacher_blind=[Q, Q, Q, BLIND_TEACHER],
        )

    # l_vis of the first three: KL(p||p0) = .75 ln 1.25 + .25 ln .625 = .167358 - .117501 = .049857
    # mean l_vis = (3 * .049857 + .014355) / 4 = .040981
    parts = ref.vgs_parts([[response()]])
    close(parts["standard"], KL_PQ)
    close(parts["steering"], 0.040981, 1e-6)
    close(parts["preservation"], 0.068460, 1e-6)
    close(ref.vgs([[response()]]), 0.130812 + 2 * 0.040981 + 0.01 * 0.068460, 4e-6)
    # adaptive: alpha on the last only: 2 * .014355 / 4 = .007177
    parts = ref.vgs_parts([[response()]], adaptive=True)
    close(parts["steering"], 0.007177, 1e-6)
    close(ref.vgs([[response()]], adaptive=True), 0.130812 + 0.007177 + 0.01 * 0.068460, 2e-6)
    # language: the visual term of the last is preserved: .014355 / 4 = .003589;
    # l_lang of the first three: KL((.6,.4)||q) = .6 ln 1.2 + .4 ln .8 = .109393 - .089257 = .020136
    # mean: (3 * .020136 + .273838) / 4 = .083561
    parts = ref.vgs_parts([[response()]], steering="language")
    close(parts["steering"], 0.083561, 1e-6)
    close(parts["preservation"], 0.003589, 1e-6)
    # split in two responses of 1 and 3 tokens (the last one in the second): the sequence mean of the
    # preservation is (0 + .273838 / 3) / 2 = .045640, the token mean unchanged
    first = make([0], [P], teacher=[Q], student_blind=[BLIND_STUDENT], teacher_blind=[Q])
    second = make(
        [0] * 3,
        [P] * 3,
        teacher=[Q] * 3,
        student_blind=[BLIND_STUDENT] * 3,
        teacher_blind=[Q, Q, BLIND_TEACHER],
    )
    close(ref.vgs_parts([[first], [second]])["preservation"], 0.045640, 1e-6)
    close(ref.vgs_parts([[first], [second]], aggregation="token")["preservation"], 0.068460, 1e-6)


def test_adaptive_alpha():
    assert [ref.adaptive_alpha(s, 2.0, 0.3, 0.6) for s in (0.1, 0.3, 0.4, 0.6, 0.7)] == [0, 0, 1, 1, 2]


def test_vgs_gradient_reaches_the_blind_student_only_through_the_language_term():
    batch = random_batch()
    ref.vgs(batch, beta=0.0).backward()
    for prompt in batch:
        for response in prompt:
            gradient = response.student_blind.grad
            close(0.0 if gradient is None else gradient.abs().max(), 0.0)
            assert response.student.grad.abs().max() > 0
    batch = random_batch()
    ref.vgs(batch, steering="language", beta=0.0).backward()
    assert all(r.student_blind.grad.abs().max() > 0 for prompt in batch for r in prompt)


def test_group_advantages():
    # (1, 0, 0, 1): mean .5, sample variance 4 * .25 / 3 = 1/3, deviation .577350; .5 / .577450 = .865876
    close(ref.group_advantages([1, 0, 0, 1]), [0.865876, -0.865876, -0.865876, 0.865876], 1e-6)
    close(ref.group_advantages([1, 0, 0, 1], epsilon=0.0), [0.866025, -0.866025, -0.866025, 0.866025], 1e-6)
    assert ref.group_advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert ref.group_advantages([1.0]) == [0.0]


def test_kl_estimators():
    # p = .75, q = .5: d = ln(2/3) = -.405465; k1 .405465; k2 .082201; k3 = .666667 + .405465 - 1 = .072132
    log_p, log_q = torch.tensor([0.75, 0.5], dtype=torch.float64).log()
    for kind, value in (("k1", 0.405465), ("k2", 0.082201), ("k3", 0.072132)):
        close(ref.kl_estimate(log_p, log_q, kind), value, 1e-6)
    # k3 is clamped as PAPO's: d = 5 gives e^5 - 6 = 142 -> 10; d = -40 -> -20 gives 19 -> 10
    for shift in (5.0, -40.0):
        close(ref.kl_estimate(log_p, log_p + shift, "k3"), 10.0)
    # expected under p, k1 and k3 are KL(p||q): .75 k(.75, .5) + .25 k(.25, .5)
    other = torch.tensor(0.25, dtype=torch.float64).log()
    for kind in ("k1", "k3"):
        mean = 0.75 * ref.kl_estimate(log_p, log_q, kind) + 0.25 * ref.kl_estimate(other, log_q, kind)
        close(mean, KL_PQ)


def test_grpo():
    # rewards 1 and 0: mean .5, deviation sqrt(.5) = .707107; A = +-.5 / .707207 = +-.707007
    # ratio 1.5 on the first (clipped to 1.2), 1 on both tokens of the second
    # terms: -.848408, .707007, .707007
    first = make([0], [P], old=[math.log(0.5)], reward=1.0)
    second = make([0, 1], [P, P], reward=0.0)
    batch = [[first, second]]
    close(ref.grpo(batch), (-0.848408 + 2 * 0.707007) / 3, 1e-6)
    close(ref.grpo(batch, aggregation="sequence"), (-0.848408 + 0.707007) / 2, 1e-6)
    # with the estimate: k1 of the three tokens against .5: .405465 .405465 and ln(.25/.5) = -.693147
    extra = 0.1 * (0.405465 * 2 - 0.693147) / 3
    loss = ref.grpo(batch, kl_weight=0.1, kl_estimator="k1")
    close(loss, (-0.848408 + 2 * 0.707007) / 3 + extra, 1e-6)
    loss.backward()
    # first: clipped, so only k1: .1 (onehot - p) / 3 = .1 * (.25, -.25) / 3
    close(first.student.grad, [[0.1 * 0.25 / 3, -0.1 * 0.25 / 3]])
    # second, token 1 (y = 1): (.707007 + .1) (onehot - p) / 3 = .807007 * (-.75, .75) / 3
    close(second.student.grad[1], [-0.201752, 0.201752], 1e-6)


def test_grpo_dual_clip():
    # as above, but the losing response has ratio 4: A r = -2.828, at most 3 * .707007 = 2.121021
    batch = [[make([0], [P], reward=1.0), make([0], [[0.8, 0.2]], old=[math.log(0.2)], reward=0.0)]]
    close(ref.grpo(batch), (-0.707007 + 4 * 0.707007) / 2, 1e-5)
    close(ref.grpo(batch, dual_clip=3.0), (-0.707007 + 3 * 0.707007) / 2, 1e-5)


def test_grpo_without_variance_still_has_a_graph():
    batch = [[make([0], [P], reward=1.0), make([0], [P], reward=1.0)]]
    ref.grpo(batch).backward()
    close(batch[0][0].student.grad, [[0.0, 0.0]])


def test_papo():
    # no reward variance; p(y) = .75, masked .5: d = -.405465, k3 .072132, H = .287682
    # 0 - .01 * .072132 + .03 * .287682 = -.000721 + .008630 = .007909
    response = make([0], [P], masked=[math.log(0.5)])
    loss = ref.papo([[response]])
    loss.backward()
    close(loss, 0.007909, 1e-6)
    # d loss / d log p = -.01 * (1 - e^d) - .03 = -.01 / 3 - .03 = -.033333; times (onehot - p) = (.25, -.25)
    close(response.student.grad, [[-0.0083333, 0.0083333]], 1e-6)
    # the masked entropy is -ln .5 and no part of the loss
    close(ref.masked_entropy([[response]]), math.log(2))
    close(ref.papo([[response]], masked_entropy_weight=9.0), loss)


def test_papo_clamps():
    # d = 5: e^5 - 6 = 142 -> 10, without gradient; d = -40 -> -20: k3 = 19 -> 10
    for shift in (5.0, -40.0):
        response = make([0], [P], masked=[math.log(0.75) + shift])
        loss = ref.papo([[response]], entropy_weight=0.0, gamma=1.0)
        loss.backward()
        close(loss, -10.0)
        close(response.student.grad, [[0.0, 0.0]])


def test_mixture():
    a, b = torch.tensor(2.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    close(ref.mixture([(0.7, a), (0.3, b)]), 2.9)


def test_random_batches_give_scalars_and_true_gradients():
    losses = [
        lambda b: ref.sampled_token_opd(b, advantage_at="start"),
        lambda b: ref.sampled_token_opd(b, advantage_at="start", aggregation="sequence"),
        lambda b: ref.masked_opd(b, fraction=0.3),
        ref.va_opd,
        ref.papo,
        lambda b: ref.grpo(b, kl_weight=0.1, kl_estimator="k3"),
        lambda b: ref.cross_entropy(b, aggregation="sequence"),
        *(
            lambda b, kind=kind, how=how: ref.divergence_opd(b, kind=kind, aggregation=how)
            for kind, how in product(("reverse_kl", "forward_kl", "jsd"), ("token", "sequence"))
        ),
        *(
            lambda b, adaptive=adaptive, steering=steering: ref.vgs(b, adaptive=adaptive, steering=steering)
            for adaptive, steering in product((False, True), ("visual", "language"))
        ),
    ]
    for loss in losses:
        batch = random_batch(seed=3)
        value = loss(batch)
        assert value.shape == ()
        assert value.dtype == torch.float64
        value.backward()
        for prompt in batch:
            for response in prompt:
                # central difference on one logit of the last token
                grad, step = response.student.grad[-1, 2].item(), 1e-6
                with torch.no_grad():
                    response.student[-1, 2] += step
                    above = loss(batch).item()
                    response.student[-1, 2] -= 2 * step
                    below = loss(batch).item()
                    response.student[-1, 2] += step
                close((above - below) / (2 * step), grad, 1e-7)


def test_shifting_logits_changes_nothing():
    batch, shifted = random_batch(seed=5), random_batch(seed=5)
    for prompt in shifted:
        for response in prompt:
            names = ("student", "student_blind", "teacher", "teacher_blind", "teacher_plain")
            for position, name in enumerate(names):
                setattr(response, name, getattr(response, name).detach() + position - 7.0)
    for loss in (ref.vgs, ref.va_opd, ref.sampled_token_opd, ref.divergence_opd, ref.papo):
        close(loss(batch), loss(shifted))


def test_unknown_names_are_refused():
    batch = random_batch()
    with pytest.raises(ValueError):
        ref.divergence_opd(batch, kind="other")
    with pytest.raises(ValueError):
        ref.cross_entropy(batch, aggregation="other")
    with pytest.raises(ValueError):
        ref.vgs(batch, steering="other")
    with pytest.raises(ValueError):
        ref.masked_opd(batch, mask="other")
