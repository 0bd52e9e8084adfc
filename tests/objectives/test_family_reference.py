"""Numbers worked by hand, on vocabularies of three words, that check the reference itself.

L stands for log 2 in the comments. The three distributions below recur:
A = (1/2, 1/4, 1/4), B = (1/4, 1/4, 1/2), C = (1/4, 1/2, 1/4).
"""

from math import log, sqrt

import family_reference as ref
import numpy as np
import pytest

L = log(2.0)
A, B, C = (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 4, 1 / 2), (1 / 4, 1 / 2, 1 / 4)
UNIFORM = (1 / 3, 1 / 3, 1 / 3)


def logs(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float64))


def close(result, expected):
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


def test_linear_target_without_a_cut():
    # A²/B = (1/4 ÷ 1/4, 1/16 ÷ 1/4, 1/16 ÷ 1/2) = (1, 1/4, 1/8); the sum is 11/8; the target is (8, 2, 1)/11.
    # A²/C = (1, 1/16 ÷ 1/2, 1/16 ÷ 1/4) = (1, 1/8, 1/4); the target is (8, 1, 2)/11.
    target = ref.linear_target([logs(A, A), logs(B, C)], [2.0, -1.0], logs(A, A), 0.0, [])
    close(np.exp(target), [[8 / 11, 2 / 11, 1 / 11], [8 / 11, 1 / 11, 2 / 11]])


def test_linear_target_with_a_cut():
    # With the reference A and beta 0.6 the threshold is 0.3: only word 0 stays.
    target = ref.linear_target([logs(A), logs(B)], [2.0, -1.0], logs(A), 0.6, [])
    close(np.exp(target), [[1.0, 0.0, 0.0]])
    assert target[0, 1] == -np.inf and target[0, 2] == -np.inf
    # Exempt words are cut too.
    target = ref.linear_target([logs(A), logs(B)], [2.0, -1.0], logs(A), 0.6, [2])
    close(np.exp(target), [[1.0, 0.0, 0.0]])
    # With beta 0.4 all words stay; word 2 scores A, 1/4, instead of 1/8: (1, 1/4, 1/4) times 2/3.
    target = ref.linear_target([logs(A), logs(B)], [2.0, -1.0], logs(A), 0.4, [2])
    close(np.exp(target), [[2 / 3, 1 / 6, 1 / 6]])
    # Coefficients that sum to 2: A * A = (1/4, 1/16, 1/16), also with word 2 exempt: both looks are A.
    target = ref.linear_target([logs(A), logs(A)], [1.0, 1.0], logs(A), 0.4, [2])
    close(np.exp(target), [[2 / 3, 1 / 6, 1 / 6]])
    # The cut follows the reference, not the looks: with the reference B only word 2 stays.
    target = ref.linear_target([logs(A), logs(B)], [2.0, -1.0], logs(B), 0.6, [])
    close(np.exp(target), [[0.0, 0.0, 1.0]])


def test_linear_target_keeps_a_tie_and_counts_exempt_words_in_the_maximum():
    # The reference (0.4, 0.4, 0.2) with beta 1 keeps words 0 and 1. A on them is (1/2, 1/4): (2/3, 1/3, 0).
    target = ref.linear_target([logs(A)], [1.0], logs((0.4, 0.4, 0.2)), 1.0, [])
    close(np.exp(target), [[2 / 3, 1 / 3, 0.0]])
    # Word 0 is exempt and holds the maximum of A: the threshold is still 0.3, so words 1 and 2 are cut.
    target = ref.linear_target([logs(A)], [1.0], logs(A), 0.6, [0])
    close(np.exp(target), [[1.0, 0.0, 0.0]])


def test_forward_kl():
    # (1/2, 1/2, 0) to (1/4, 1/4, 1/2): 1/2 log 2 + 1/2 log 2 + 0 = L.
    # A to C: 1/2 L - ¼ L + 0 = ¼ L.
    # (0, 1/4, 3/4) to C: ¼ log 1/2 + ¾ log 3 = ¾ log 3 - ¼ L.
    result = ref.forward_kl_to(logs((1 / 2, 1 / 2, 0), A, (0, 1 / 4, 3 / 4)), logs(B, C, C))
    close(result, [L, L / 4, 0.75 * log(3) - L / 4])


def test_reverse_kl():
    # The student (1/8, 3/8, 1/2) on words 0 and 1 is (1/4, 3/4). Against (1/2, 1/2):
    # ¼ log 1/2 + ¾ log 3/2 = ¾ log 3 - L. Half of its probability is on these words: - log 1/2 = L.
    result = ref.reverse_kl_to(logs((1 / 2, 1 / 2, 0)), logs((1 / 8, 3 / 8, 1 / 2)))
    close(result, [0.75 * log(3)])
    # Nothing cut. KL of the student (1/4, 1/4, 1/2) to the target (1/8, 1/8, 3/4): ¼ L + ¼ L + 1/2 log 2/3
    # = L - 1/2 log 3.
    # The forward direction would be ¾ log 3/2 - ¼ L = ¾ log 3 - L, another number.
    result = ref.reverse_kl_to(logs((1 / 8, 1 / 8, 3 / 4)), logs(B))
    close(result, [L - 0.5 * log(3)])


def test_vad_target():
    # Token 0: log evidence - log erased = (2, 0, -2) L, so <u,u> = 8 L². p is uniform and q is A, so
    # c = (2, -1, -1) L/3 and <c,u> = (4 + 2)/3 L² = 2 L². The step is ¼ u = (1/2, 0, -1/2) L: (√2, 1,
    # 1/√2), normalised.
    # Token 1: the same u with q = B: c = (-1, -1, 2) L/3, <c,u> = -2 L², and the step is turned round.
    # Token 2: evidence A against uniform: u = (2, -1, -1) L/3 after centring, <u,u> = 2/3 L². p = C and q =
    # A:
    # c = (1, -1, 0) L, <c,u> = L². The step is 3/2 u = (1, -1/2, -1/2) L: (1/2, 1/(2√2), 1/(4√2)), in
    # proportion
    # (2, √2, 1/√2).
    # Token 3: the same u with p = C and q = B: c = (0, -1, 1) L is at right angles to u, so the target is p.
    # Token 4: evidence and erased agree, u = 0, so the target is p.
    # Token 5: u is that of token 2. p is uniform and q is A, so c = u: the whole correction is kept, and
    # the target
    # is q.
    up, down = (4 / 7, 2 / 7, 1 / 7), (1 / 7, 2 / 7, 4 / 7)
    target = ref.vad_target(
        logs(UNIFORM, UNIFORM, C, C, C, UNIFORM),
        logs(A, B, A, B, A, A),
        logs(up, up, A, A, B, A),
        logs(down, down, UNIFORM, UNIFORM, B, UNIFORM),
    )
    first, second = sqrt(2) + 1 + 1 / sqrt(2), 2 + sqrt(2) + 1 / sqrt(2)
    expected = [
        [sqrt(2) / first, 1 / first, 1 / sqrt(2) / first],
        [1 / sqrt(2) / first, 1 / first, sqrt(2) / first],
        [2 / second, sqrt(2) / second, 1 / sqrt(2) / second],
        list(C),
        list(C),
        list(A),
    ]
    close(np.exp(target), expected)


def test_mixture_target():
    # Token 0, weights 1 and 3, so ¼ and ¾: (1/8 + 3/16, 1/16 + 3/16, 1/16 + 3/8) = (5, 4, 7)/16.
    # Token 1, weights 0 and 2: the second look alone.
    target = ref.mixture_target([logs(A, A), logs(B, C)], np.array([[1.0, 0.0], [3.0, 2.0]]))
    close(np.exp(target), [[5 / 16, 4 / 16, 7 / 16], list(C)])
    with pytest.raises(ValueError):
        ref.mixture_target([logs(A), logs(B)], np.array([[0.0], [0.0]]))


def test_evidence_weights():
    # Tokens in the order of responses 0, 1, 2, 0. d of response 0 is 1 and -1: s = (1 - 1/2)/2 = ¼ with
    # gamma = 1/2.
    # d of response 1 is ¾: s = ¾. Both answer prompt 7: mean 1/2, population deviation ¼. With epsilon ¼:
    # z = ∓¼ ÷ 1/2 = ∓1/2. With alpha = 1/2: w = ¾ and 5/4. Response 2 is alone on prompt 3: z = 0, w = 1.
    evidence = np.array([-1.0, -0.25, -2.0, -3.0])
    negative = np.array([-2.0, -1.0, -5.0, -2.0])
    arguments = (evidence, negative, np.array([0, 1, 2, 0]), np.array([7, 7, 3]), 0.5, 0.5)
    close(ref.evidence_weights(*arguments, 0.1, 2.0, 0.25), [0.75, 1.25, 1.0])
    # The limits 0.8 and 1.2 hold the first two.
    close(ref.evidence_weights(*arguments, 0.8, 1.2, 0.25), [0.8, 1.2, 1.0])


def test_rlsd_weights():
    # lam = 1/2, epsilon = 0.2, gap = log q^z - log p.
    # A = 2, gap log 1.1: ratio 1.1, w = 0.5 + 0.55 = 1.05.   A = -1, gap log 1.1: ratio 1/1.1, w = 0.5 +
    # 0.5/1.1.
    # A = 0: ratio 1, w = 1.   A = 1, gap log 4: clipped to 1.2, w = 1.1.   A = -3, gap log 4: ¼ to 0.8, w =
    # 0.9.
    # A = 1, gap -log 4: clipped to 0.8, w = 0.9.   A = -1, gap -1000: the ratio overflows, and is clipped
    # to 1.2.
    advantage = np.array([2.0, -1.0, 0.0, 1.0, -3.0, 1.0, -1.0])
    gap = np.array([log(1.1), log(1.1), log(4), log(4), log(4), -log(4), -1000.0])
    p = np.full(7, -1.5)
    close(ref.rlsd_weights(advantage, p + gap, p, 0.5, 0.2), [1.05, 0.5 + 0.5 / 1.1, 1.0, 1.1, 0.9, 0.9, 1.1])
    # lam = ¼ tells lam from 1 - lam: 0.75 + 0.25 · 1.1 = 1.025.
    close(ref.rlsd_weights(advantage[:1], (p + gap)[:1], p[:1], 0.25, 0.2), [1.025])


def test_sdar_gate():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-log 3) = 1/4, and sigmoid(2 log 3) = 9/10.
    p = np.full(3, -2.0)
    gap = np.array([log(3), 0.0, -log(3)])
    close(ref.sdar_gate(p + gap, p, 1.0), [0.75, 0.5, 0.25])
    close(ref.sdar_gate(p + gap, p, 2.0), [0.9, 0.5, 0.1])


def test_cv_margin():
    # p = A. KL(A||B) = 1/2 L + 0 - ¼ L = ¼ L, and KL(A||C) = ¼ L too. With m = 0.1 the hinge is 0.1.
    # KL(A||(1/8, 1/8, 3/4)) = 1/2 · 2L + ¼ L - ¼ log 3 = 0.5918 to four places, far beyond ¼ L = 0.1733:
    # the hinge is 0.
    # The other way round, q+ is far and q- is near: with far = 5/4 L - ¼ log 3 it is far + 0.1 + far - ¼ L.
    distant = (1 / 8, 1 / 8, 3 / 4)
    far = 1.25 * L - 0.25 * log(3)
    result = ref.cv_margin(logs(A, A, A), logs(B, B, distant), logs(C, distant, B), 0.1)
    close(result, [L / 4 + 0.1, L / 4, far + 0.1 + far - L / 4])


def test_vgs_target():
    # p0 = C, q = A, q0 = B: (¼ · 2, 1/2 · 1, ¼ · 1/2) = (1/2, 1/2, 1/8), in proportion (4, 4, 1)/9.
    close(np.exp(ref.vgs_target(logs(C), logs(A), logs(B))), [[4 / 9, 4 / 9, 1 / 9]])


def test_vcsd_target():
    # alpha = 2: A³/B² = (1/8 ÷ 1/16, 1/64 ÷ 1/16, 1/64 ÷ 1/4) = (2, 1/4, 1/16), in proportion (32, 4, 1)/37.
    close(np.exp(ref.vcsd_target(logs(A), logs(B), 2.0, 0.0, [])), [[32 / 37, 4 / 37, 1 / 37]])
    # With word 2 exempt: (2, 1/4, 1/4), in proportion (8, 1, 1)/10.
    close(np.exp(ref.vcsd_target(logs(A), logs(B), 2.0, 0.0, [2])), [[0.8, 0.1, 0.1]])
    # alpha = 1, beta = 0.6: the threshold is 0.3 and only word 0 stays, whether word 2 is exempt or not.
    target = ref.vcsd_target(logs(A), logs(B), 1.0, 0.6, [])
    close(np.exp(target), [[1.0, 0.0, 0.0]])
    assert target[0, 1] == -np.inf
    close(np.exp(ref.vcsd_target(logs(A), logs(B), 1.0, 0.6, [2])), [[1.0, 0.0, 0.0]])


def test_soften():
    # (4/5, 1/5) at temperature 2: the square roots are in proportion (2, 1). At 1 nothing changes.
    close(np.exp(ref.soften(logs((0.8, 0.2)), 2.0)), [[2 / 3, 1 / 3]])
    close(ref.soften(logs((0.8, 0.2)), 1.0), logs((0.8, 0.2)))


def test_jsd():
    # A and B: m = (3/8, 1/4, 3/8). KL(A||m) = 1/2 log 4/3 + ¼ log 2/3, KL(B||m) is the same, and so is
    # their mean.
    # (1/2, 1/2, 0) and (0, 1/2, 1/2): m = (1/4, 1/2, 1/4), both KL are 1/2 L. (1, 0, 0) and (0, 0, 1): L,
    # the greatest.
    # (1, 0, 0) and (1/2, 1/2, 0) are not alike: m = (3/4, 1/4, 0), 1/2 log 4/3 + 1/2 (1/2 log 2/3 + 1/2 log
    # 2).
    rows_q = logs(A, (1 / 2, 1 / 2, 0), (1, 0, 0), (1, 0, 0))
    rows_p = logs(B, (0, 1 / 2, 1 / 2), (0, 0, 1), (1 / 2, 1 / 2, 0))
    expected = [
        0.5 * log(4 / 3) + 0.25 * log(2 / 3),
        L / 2,
        L,
        0.5 * log(4 / 3) + 0.25 * log(2 / 3) + 0.25 * L,
    ]
    close(ref.jsd(rows_q, rows_p), expected)
    close(ref.jsd(rows_p, rows_q), expected)


def test_two_papers_are_linear_targets():
    # Both are written apart in the reference, so this is a real check.
    draw = np.random.default_rng(0)
    p0, q, q0 = (np.log(draw.dirichlet(np.full(9, 0.5), size=20)) for _ in range(3))
    close(ref.linear_target([p0, q, q0], [1.0, 1.0, -1.0], q, 0.0, []), ref.vgs_target(p0, q, q0))
    both = ref.linear_target([q, q0], [1.7, -0.7], q, 0.1, [0, 4]), ref.vcsd_target(q, q0, 0.7, 0.1, [0, 4])
    assert 0 < np.sum(np.isinf(both[0])) < both[0].size
    close(np.isinf(both[0]), np.isinf(both[1]))
    close(np.exp(both[0]), np.exp(both[1]))


def test_unsuitable_input_is_refused():
    with pytest.raises(ValueError):
        ref.linear_target([logs(A)], [1.0], logs(A), 1.5, [])
    with pytest.raises(ValueError):
        ref.linear_target([logs(A)], [1.0], logs(A), 0.1, [3])
    with pytest.raises(ValueError):
        ref.vgs_target(logs((1, 0, 0)), logs(A), logs(B))
    with pytest.raises(ValueError):
        ref.evidence_weights(
            np.zeros(1), np.zeros(1), np.array([0]), np.array([0, 0]), 1.0, 1.0, 0.0, 2.0, 1e-6
        )
