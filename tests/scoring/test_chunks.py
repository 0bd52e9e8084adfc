"""Vocabulary chunks against plain autograd and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vicur.models.load import LoadedModel
from vicur.models.vocabulary import check_same_vocabulary
from vicur.scoring import chunks as vocabulary
from vicur.scoring.chunks import Reading, observed_terms, sampled_log_probs, weighted_terms
from vicur.scoring.term import Scores, Term
from vicur.scoring.terms import cross_entropy, entropy, forward_kl, reverse_kl, visual_target_kl

WORDS, KEPT = 12, 8


class Case:
    """Random hidden states and heads of a student with two views, and of a narrower teacher."""

    def __init__(self, tokens, seed, dtype=torch.float64, size=5, chunk_size=None):
        torch.manual_seed(seed)
        self.hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
        self.blind = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
        self.head = torch.randn(WORDS, size, dtype=dtype, requires_grad=True)
        self.teacher = Scores(torch.randn(tokens, 3).to(dtype), torch.randn(WORDS + 2, 3).to(dtype))
        self.other = Scores(torch.randn(tokens, 3).to(dtype), self.teacher.head_WD)
        kept = torch.randperm(WORDS)[:KEPT].sort().values
        self.reading = Reading(kept[torch.randint(KEPT, (tokens,))], kept, chunk_size)
        self.weights = torch.randn(3, tokens, dtype=torch.float64)

    def terms(self):
        return [
            Term("kl", lambda b: reverse_kl(b.log_p_CV, b.distribution("t")), self.weights[0], reads=("t",)),
            Term("entropy", lambda b: entropy(b.log_p_CV)),
            Term("ce", lambda b, a: a * cross_entropy(b.log_prob_C), self.weights[1], {"a": self.weights[2]}),
            Term(
                "blind",
                lambda b: forward_kl(b.distribution("blind"), b.distribution("t")),
                self.weights[2],
                reads=("t", "blind"),
                live=("blind",),
            ),
            Term(
                "visual",
                lambda b: visual_target_kl(*map(b.distribution, ("student", "blind", "t", "other"))),
                self.weights[1],
                reads=("blind", "t", "other"),
            ),
            Term(
                "visual, prior live",
                lambda b: visual_target_kl(
                    *map(b.distribution, ("student", "blind", "t", "other")), detach_prior=False
                ),
                self.weights[0],
                reads=("blind", "t", "other"),
                live=("student", "blind"),
            ),
        ]

    def others(self):
        return {
            "t": self.teacher,
            "other": self.other,
            "blind": Scores(self.blind.detach(), self.head.detach()),
        }

    def run(self, head_gradient=None):
        return weighted_terms(
            self.hidden, self.head, self.reading, self.terms(), self.others(), head_gradient
        )

    def gradients(self):
        """Gradients of the loss: in the student's hidden states, in its head, in the blind hidden states."""
        result = self.run()
        own = torch.autograd.grad(result.loss, (self.hidden, self.head))
        return result.loss.detach(), *own, result.hidden_gradients["blind"]

    def plain(self):
        """The same by autograd alone: all logits at once, the kept columns, log softmax."""
        kept = self.reading.kept_V

        def log_probs(hidden, head):
            return (hidden @ head.T)[:, kept].log_softmax(-1)

        p, blind = log_probs(self.hidden, self.head), log_probs(self.blind, self.head)
        q = log_probs(self.teacher.hidden_ND, self.teacher.head_WD)
        q0 = log_probs(self.other.hidden_ND, self.other.head_WD)
        slot = torch.tensor([kept.tolist().index(i) for i in self.reading.ids_N.tolist()], dtype=torch.long)
        sampled = p[torch.arange(len(slot)), slot]
        weights = self.weights.to(p.dtype)
        values = weights[0] * (p.exp() * (p - q)).sum(-1) - weights[1] * weights[2] * sampled
        values = values + weights[2] * (q.exp() * (q - blind)).sum(-1)
        for prior, weight in ((blind.detach(), weights[1]), (blind, weights[0])):
            target = (prior + q - q0).log_softmax(-1)
            values = values + weight * (p.exp() * (p - target)).sum(-1)
        loss = values.sum()
        return loss.detach(), *torch.autograd.grad(loss, (self.hidden, self.head, self.blind))


def size_of_blocks(monkeypatch, rows):
    monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cpu", rows * 4 * KEPT)


@given(st.integers(1, 9), st.integers(1, 10), st.integers(1, 4), st.integers(0, 2**31))
def test_equals_plain_autograd(tokens, chunk_size, block_rows, seed):
    case = Case(tokens, seed, chunk_size=chunk_size)
    with pytest.MonkeyPatch.context() as patch:
        size_of_blocks(patch, block_rows)
        result = case.gradients()
    torch.testing.assert_close(result, case.plain())
    removed = sorted(set(range(WORDS)) - set(case.reading.kept_V.tolist()))
    assert not result[2][removed].any()


@given(st.integers(0, 2**31))
def test_float32_agrees_to_1e_5(seed):
    case = Case(40, seed, dtype=torch.float32, size=64, chunk_size=7)
    (loss, *gradients), (expected, *others) = case.gradients(), case.plain()
    # Terms of both signs cancel in the loss: its rounding is that of what is added.
    assert (loss - expected).abs() <= 1e-6 * case.run().values_JN.abs().sum()
    for ours, theirs in zip(gradients, others, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_gradcheck(monkeypatch):
    size_of_blocks(monkeypatch, 2)
    case = Case(4, 0, size=3, chunk_size=3)
    terms = [term for term in case.terms() if "blind" not in term.live]
    # A head of its own: finite differences would see the target of the visual term move with it.
    others = {**case.others(), "blind": Scores(case.blind.detach(), case.head.detach().clone())}

    def loss(hidden, head):
        return weighted_terms(hidden, head, case.reading, terms, others).loss

    assert torch.autograd.gradcheck(loss, (case.hidden, case.head))


def test_the_gradient_in_the_other_views_hidden_states_by_finite_differences():
    """For all terms whose gradient flows through the blind student, also the one with a live prior."""
    case = Case(3, 0, size=4, chunk_size=2)
    terms = [term for term in case.terms() if "blind" in term.live]
    assert len(terms) == 2

    def weighted(blind):
        others = {**case.others(), "blind": Scores(blind, case.head.detach())}
        return weighted_terms(case.hidden, case.head, case.reading, terms, others)

    result = weighted(case.blind.detach()).hidden_gradients["blind"]
    for place in range(result.numel()):
        step = torch.zeros(result.numel(), dtype=torch.float64)
        step[place] = 1e-6
        up, down = (weighted(case.blind.detach() + sign * step.view_as(result)).loss for sign in (1, -1))
        assert result.view(-1)[place].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-5, abs=1e-8)


def test_a_loss_that_is_scaled_scales_its_gradient():
    case = Case(5, 0)
    _, hidden, head, _ = case.gradients()
    result = torch.autograd.grad(3 * case.run().loss, (case.hidden, case.head))
    torch.testing.assert_close(result, (3 * hidden, 3 * head))


def test_the_heads_gradient_can_be_added_at_once():
    case = Case(5, 0, chunk_size=2)
    _, hidden, head, _ = case.gradients()
    added = torch.ones_like(case.head)
    case.run(added).loss.backward()
    torch.testing.assert_close(added, 1 + head)
    torch.testing.assert_close(case.hidden.grad, hidden)
    assert case.head.grad is None


def test_a_tied_head_gets_both_gradients():
    """The embedding is the head: autograd adds the gradients of both uses."""
    case = Case(5, 0)
    ids = torch.tensor([1, 4, 4, 0, 2])
    weight = case.head.detach().clone().requires_grad_()
    terms = [term for term in case.terms() if "blind" not in term.live]
    weighted_terms(weight[ids], weight, case.reading, terms, case.others()).loss.backward()
    hidden = case.head.detach()[ids].requires_grad_()
    head = case.head.detach().clone().requires_grad_()
    weighted_terms(hidden, head, case.reading, terms, case.others()).loss.backward()
    torch.testing.assert_close(weight.grad, head.grad.index_add(0, ids, hidden.grad))


def test_a_frozen_head_gets_no_gradient():
    """As with LoRA, whose adapters are before the head."""
    case = Case(5, 0)
    _, hidden, _, blind = case.gradients()
    case.head.requires_grad_(False)
    result = case.run()
    result.loss.backward()
    torch.testing.assert_close(case.hidden.grad, hidden)
    torch.testing.assert_close(result.hidden_gradients["blind"], blind)
    assert case.head.grad is None


def test_no_token_is_an_honest_zero():
    case = Case(0, 0)
    result = case.run()
    result.loss.backward()
    assert result.loss.item() == 0.0 and result.values_JN.shape == (6, 0)
    assert case.hidden.grad.shape == (0, 5) and not case.head.grad.any()


def test_zero_weights_are_an_honest_zero():
    case = Case(4, 0)
    case.weights = torch.zeros_like(case.weights)
    loss, hidden, head, blind = case.gradients()
    assert loss == 0 and not hidden.any() and not head.any() and not blind.any()


def test_observed_terms_have_no_gradient_and_the_same_values():
    case = Case(6, 0, chunk_size=4)
    student = Scores(case.hidden.detach(), case.head.detach())
    observed = observed_terms(student, case.reading, case.terms(), case.others())
    torch.testing.assert_close(observed, case.run().values_JN)
    assert not observed.requires_grad


def test_worked_number():
    """Logits 0, ln 2, ln 3 over three kept words: probabilities 1/6, 2/6, 3/6."""
    head = torch.tensor([0.0, 2.0, 3.0]).log().nan_to_num(neginf=0.0)[:, None]
    head = torch.cat([head, torch.tensor([[50.0]])])  # a removed word that would dominate
    result = sampled_log_probs(Scores(torch.ones(3, 1), head), Reading(torch.arange(3), torch.arange(3)))
    torch.testing.assert_close(result.exp(), torch.tensor([1 / 6, 2 / 6, 3 / 6]))


@pytest.mark.parametrize("head_rows", [4, 16_384])
def test_bfloat16_is_scored_in_float32(monkeypatch, head_rows):
    """Products of bfloat16 numbers in float32, rounded once at the end: gradients of 0.4 % at most."""
    monkeypatch.setattr(vocabulary, "HEAD_ROWS", head_rows)
    exact = Case(6, 0, dtype=torch.float64, size=8)
    for name in ("hidden", "blind", "head"):
        rounded = getattr(exact, name).detach().bfloat16().double().requires_grad_()
        setattr(exact, name, rounded)
    for name in ("teacher", "other"):
        scores = getattr(exact, name)
        rounded = Scores(*(t.bfloat16().double() for t in (scores.hidden_ND, scores.head_WD)))
        setattr(exact, name, rounded)
    half = Case(6, 0, dtype=torch.float64, size=8)
    for name in ("hidden", "blind", "head"):
        setattr(half, name, getattr(exact, name).detach().bfloat16().requires_grad_())
    for name in ("teacher", "other"):
        scores = getattr(exact, name)
        setattr(half, name, Scores(scores.hidden_ND.bfloat16(), scores.head_WD.bfloat16()))
    half.reading = exact.reading
    loss, hidden, head, blind = half.gradients()
    assert (loss.dtype, hidden.dtype, head.dtype, blind.dtype) == (
        *(torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
    )
    for ours, theirs in zip((loss, hidden, head, blind), exact.gradients(), strict=True):
        assert (ours.double() - theirs).norm() <= 0.004 * theirs.norm()


def test_a_removed_token_cannot_be_scored():
    with pytest.raises(ValueError, match=r"cannot be scored: \[1\]"):
        Reading(torch.tensor([1]), torch.tensor([0, 2])).slots()


def test_the_shared_vocabulary_keeps_every_token_of_the_tokenizer(base: LoadedModel):
    vocabulary = base.vocabulary
    assert vocabulary.scored_ids("shared").tolist() == list(range(len(base.processor.tokenizer)))
    assert torch.equal(vocabulary.scored_ids("sampleable"), vocabulary.kept_ids)


def test_media_and_chat_tokens_are_removed_and_end_of_turn_stays(base: LoadedModel):
    tokenizer, vocabulary = base.processor.tokenizer, base.vocabulary
    kept = set(vocabulary.kept_ids.tolist())
    for token in (
        "<|im_start|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
    ):
        assert tokenizer.convert_tokens_to_ids(token) not in kept
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in kept
    assert vocabulary.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert len(kept) == len(tokenizer) - 6


class FakeTokenizer:
    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: i for i, token in enumerate(self.tokens)}


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ("abc", "abc", None),
        ("abc", "abd", "3 and 3 tokens.*id 2 is 'c' for the student and 'd' for the teacher"),
        ("abc", "ab", "3 and 2 tokens.*id 2 is 'c' for the student and unused"),
        ("ab", "abc", "2 and 3 tokens.*id 2 is unused for the student and 'c'"),
    ],
)
def test_vocabulary_mismatch_names_the_first_token(ours, theirs, message):
    if message is None:
        check_same_vocabulary(FakeTokenizer(*ours), FakeTokenizer(*theirs))
    else:
        with pytest.raises(ValueError, match=message):
            check_same_vocabulary(FakeTokenizer(*ours), FakeTokenizer(*theirs))
