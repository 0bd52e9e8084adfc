"""Computes weighted terms from hidden states, a chunk of tokens at a time.

The full logits of a batch do not fit in memory: 16,384 tokens by 151,936 vocabulary entries are 10 GB in
float32, and an objective may need four such distributions. Here they exist for one chunk of tokens at a time.
Because all weights are known in advance, the gradient of a chunk is computed together with its value, in the
forward pass.

Two sizes matter. A chunk has enough tokens to make the products with the heads efficient; its logits are the
only large tensors. The terms work on blocks of a few of its rows, so that temporary tensors stay small; a
block's gradient overwrites its logits. `logits -> log p -> terms` is differentiated by autograd within a
block, `hidden, head -> logits` by hand.

Shape suffixes: N tokens, D hidden size, W head rows, C tokens of a block, V kept vocabulary entries, J terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vicur.scoring.term import STUDENT, Block, Scores, Term
from vicur.scoring.terms import reverse_kl

CHUNK_BYTES = {"cpu": 96 * 2**20, "cuda": 2**30}
"""Bytes for the float32 logits of a chunk, for all its distributions together."""
BLOCK_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}
"""Bytes for one distribution in a block. A term keeps about a dozen tensors of that size."""
HEAD_ROWS = 16_384
"""Rows of a half-precision head that are converted to float32 together."""


@dataclass(frozen=True)
class Reading:
    """The sampled tokens, the vocabulary that they are scored over, and the number of tokens per chunk.

    Attributes:
        ids_N: the response tokens; each must be in the scoring vocabulary.
        kept_V: ids of the scoring vocabulary, ascending. Other ids are removed by index from every
            distribution; a logit of minus infinity would make the KL NaN.
        chunk_size: number of tokens in a chunk; by default from `CHUNK_BYTES`.
        end_ids: ids of the tokens that end a response.
    """

    ids_N: Int[Tensor, " N"]
    kept_V: Int[Tensor, " V"]
    chunk_size: int | None = None
    end_ids: tuple[int, ...] = ()

    @property
    def ends_V(self) -> Bool[Tensor, " V"]:
        """Which entries of the scoring vocabulary end a response."""
        return torch.isin(self.kept_V, self.kept_V.new_tensor(self.end_ids))

    def slots(self) -> Int[Tensor, " N"]:
        """Index of each response token among the kept vocabulary entries.

        Raises:
            ValueError: a token is not among the kept vocabulary entries.
        """
        slot_N = torch.searchsorted(self.kept_V, self.ids_N).clamp(max=len(self.kept_V) - 1)
        strays = self.ids_N[self.kept_V[slot_N] != self.ids_N]
        if len(strays):
            raise ValueError(
                f"Responses contain token ids that cannot be scored: {sorted(set(strays.tolist()))[:5]}. "
                "They are not in the scoring vocabulary (scoring.vocabulary)."
            )
        return slot_N

    def chunks(self, num_distributions: int) -> Iterator[slice]:
        """Slices of the tokens, one per chunk."""
        budget = CHUNK_BYTES.get(self.ids_N.device.type, CHUNK_BYTES["cpu"])
        size = self.chunk_size or max(1, budget // (4 * len(self.kept_V) * num_distributions))
        return _slices(len(self.ids_N), size)

    def blocks(self, num_tokens: int) -> Iterator[slice]:
        """Slices of a chunk's tokens, one per block."""
        budget = BLOCK_BYTES.get(self.ids_N.device.type, BLOCK_BYTES["cpu"])
        return _slices(num_tokens, max(1, budget // (4 * len(self.kept_V))))


@dataclass(frozen=True)
class Weighted:
    """The result of `weighted_terms`.

    Attributes:
        loss: sum over terms and tokens of weight times value; differentiable once.
        values_JN: detached values of every term.
        hidden_gradients: gradient of the loss with respect to the hidden states of each live distribution
            other than the student's, (N, D) by name. Their graphs are not in memory: the caller reruns the
            views with gradients and backpropagates these tensors.
    """

    loss: Float[Tensor, ""]
    values_JN: Float[Tensor, "J N"]
    hidden_gradients: Mapping[str, Float[Tensor, "N D"]]


def weighted_terms(
    hidden_ND: Float[Tensor, "N D"],
    head_WD: Float[Tensor, "W D"],
    reading: Reading,
    terms: Sequence[Term],
    others: Mapping[str, Scores],
    head_gradient_WD: Float[Tensor, "W D"] | None = None,
) -> Weighted:
    """sum_j sum_t w_jt term_jt, with its gradient with respect to hidden states and head.

    Args:
        hidden_ND: the student's last hidden states at the predicting positions.
        head_WD: its LM head's weight, padding rows included.
        reading: the sampled tokens and the vocabulary that they are scored over.
        terms: weighted and observed terms.
        others: the distributions other than the student's that the terms read.
        head_gradient_WD: tensor to which the head's gradient is added during this call, instead of being
            returned by autograd, so that a second tensor of the head's size is never allocated. The loss must
            then not be scaled afterwards.

    Returns:
        tensors in at least float32. Without any token the loss is 0, and its gradients are zeros.

    Raises:
        ValueError: a response token is not among the kept vocabulary entries.
    """
    flowing = dict.fromkeys(name for t in terms if t.weights is not None for name in t.live)
    live = [name for name in flowing if name != STUDENT]
    loss, values_JN, *gradients = _WeightedTerms.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_WD, reading, terms, others, live, head_gradient_WD
    )
    return Weighted(loss, values_JN, dict(zip(live, gradients, strict=True)))


@torch.no_grad()
def observed_terms(
    scores: Scores, reading: Reading, terms: Sequence[Term], others: Mapping[str, Scores]
) -> Float[Tensor, "J N"]:
    """The values of terms without gradient, with `scores` as the student's distributions.

    Raises:
        ValueError: a response token is not among the kept vocabulary entries.
    """
    run = _Run(scores, reading, [replace(term, weights=None) for term in terms], others, {}, None)
    return run.values_JN


def divergence(first: Scores, second: Scores, reading: Reading) -> Float[Tensor, " N"]:
    """KL(first || second) at every token, in nats."""

    def kl(block: Block) -> Tensor:
        return reverse_kl(block.log_p_CV, block.distribution("second"))

    return observed_terms(first, reading, [Term("kl", kl, reads=("second",))], {"second": second})[0]


def sampled_log_probs(scores: Scores, reading: Reading) -> Float[Tensor, " N"]:
    """log p of the response tokens, in nats and at least float32, without gradient.

    Raises:
        ValueError: a response token is not among the kept vocabulary entries.
    """
    return observed_terms(scores, reading, [Term("log_prob", lambda block: block.log_prob_C)], {})[0]


class _WeightedTerms(torch.autograd.Function):
    """The forward pass computes the gradients; the backward pass returns them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        reading: Reading,
        terms: Sequence[Term],
        others: Mapping[str, Scores],
        live: Sequence[str],
        head_gradient: Tensor | None,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        precise = _precise(hidden.dtype)
        gradients = {name: torch.zeros_like(others[name].hidden_ND, dtype=precise) for name in live}
        if wants_hidden:
            gradients[STUDENT] = torch.zeros_like(hidden, dtype=precise)
        added = head_gradient
        if added is None and wants_head:
            added = torch.zeros_like(head, dtype=precise)
        run = _Run(Scores(hidden, head), reading, terms, others, gradients, added)
        student_gradient = gradients.pop(STUDENT, None)
        ctx.save_for_backward(
            None if student_gradient is None else student_gradient.to(hidden.dtype),
            None if added is None or added is head_gradient else added.to(head.dtype),
        )
        results = (run.values_JN, *gradients.values())
        ctx.mark_non_differentiable(*results)
        return run.loss, *results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        factor = grads[0]
        # Unchanged if nothing scales the loss: a copy of the head's gradient would be large.
        is_one = factor.item() == 1
        gradients = [g if g is None or is_one else factor.to(g.dtype) * g for g in ctx.saved_tensors]
        return *gradients, None, None, None, None, None


class _Run:
    """One pass over all chunks and blocks, which accumulates loss, values and gradients.

    Args:
        student: hidden states and head of the student, or of the model that is only measured.
        reading: the sampled tokens and the vocabulary that they are scored over.
        terms: weighted and observed terms.
        others: the other distributions.
        gradients: tensors to which the gradients with respect to live hidden states are added, by name.
        head_gradient: tensor to which the gradient of the student's head is added, or None.
    """

    def __init__(
        self,
        student: Scores,
        reading: Reading,
        terms: Sequence[Term],
        others: Mapping[str, Scores],
        gradients: Mapping[str, Tensor],
        head_gradient: Tensor | None,
    ) -> None:
        self.reading, self.terms = reading, terms
        self.gradients, self.head_gradient = gradients, head_gradient
        # dict.fromkeys drops duplicates and keeps the terms' order; a set's order changes from run to run.
        read = dict.fromkeys(name for term in terms for name in term.reads if name != STUDENT)
        self.scores = {STUDENT: student, **{name: others[name] for name in read}}
        self.groups = _by_head(self.scores)
        self.kept = _KeptEntries(reading.kept_V)
        self.slot_N, self.ends_V = reading.slots(), reading.ends_V
        # The head's gradient needs that of the student's logits, even if nothing else does.
        self.live = {*gradients, STUDENT} if head_gradient is not None else set(gradients)
        # At least float32: a sum over thousands of tokens in bfloat16 would stop growing.
        hidden = student.hidden_ND
        self.loss = hidden.new_zeros((), dtype=_precise(hidden.dtype))
        self.values_JN = hidden.new_zeros(len(terms), len(hidden), dtype=_precise(hidden.dtype))
        for tokens in reading.chunks(len(self.scores)):
            self._chunk(tokens)

    def _chunk(self, tokens: slice) -> None:
        logits: dict[str, Tensor] = {}
        for names in self.groups:
            # One product for all distributions of a head: most of the time goes into reading the head.
            hidden = torch.cat([self.scores[name].hidden_ND[tokens] for name in names])
            product = _product(hidden, self.scores[names[0]].head_WD[: self.kept.rows])
            logits |= zip(names, product.chunk(len(names)), strict=True)
        for rows in self.reading.blocks(tokens.stop - tokens.start):
            block_tokens = slice(tokens.start + rows.start, tokens.start + rows.stop)
            self._block({name: chunk_logits[rows] for name, chunk_logits in logits.items()}, block_tokens)
        # By now the `logits` of live distributions hold their gradients. The products with the head run once
        # per chunk, not per block: matrix products of a few rows would leave the hardware idle.
        for name in self.live:
            self._backward(name, logits[name], tokens)

    def _block(self, logits: Mapping[str, Tensor], tokens: slice) -> None:
        """Compute all terms at a few tokens; the gradients of live logits overwrite the logits."""
        log_probs = {name: self.kept.log_probs(block_logits) for name, block_logits in logits.items()}
        # Autograd starts at the log-probs. The backward pass through the softmax is done by hand, in the
        # memory of the logits, so that no further (C, V) tensor is kept.
        leaves = {name: log_probs[name].detach().requires_grad_() for name in self.live}
        terms = [term.part(tokens, self.loss.dtype) for term in self.terms]
        slot_C = self.slot_N[tokens]
        loss = self.loss.new_zeros(())
        with torch.enable_grad():
            for row, term in enumerate(terms):
                if term.weights is not None:
                    # A term reads every distribution, but only those it names as live carry its gradient.
                    live = {k: leaf for k, leaf in leaves.items() if k in term.live}
                    values_C = term.function(Block({**log_probs, **live}, slot_C, self.ends_V), **term.inputs)
                    self.values_JN[row, tokens] = values_C.detach()
                    loss = loss + (term.weights * values_C).sum()
        if leaves:
            gradients = _gradients(loss, list(leaves.values()))
            for name, gradient_CV in zip(leaves, gradients, strict=True):
                self.kept.put(_through_softmax(log_probs[name], gradient_CV), logits[name])
        self.loss += loss.detach()
        # Observed terms run outside enable_grad, so that no graph is built for them.
        block = Block(log_probs, slot_C, self.ends_V)
        for row, term in enumerate(terms):
            if term.weights is None:
                self.values_JN[row, tokens] = term.function(block, **term.inputs)

    def _backward(self, name: str, gradient_CW: Tensor, tokens: slice) -> None:
        """Propagate the gradient of a chunk's logits to its hidden states and to the head."""
        hidden_CD, head_WD = self.scores[name].hidden_ND[tokens], self.scores[name].head_WD[: self.kept.rows]
        if name in self.gradients:
            for rows in _head_parts(head_WD):
                # A half-precision head is converted in parts: a float32 copy of it would be 1.2 GB.
                head = head_WD[rows].to(gradient_CW.dtype)
                self.gradients[name][tokens].addmm_(gradient_CW[:, rows], head)
        if self.head_gradient is not None:
            self.head_gradient[: self.kept.rows].addmm_(gradient_CW.T, hidden_CD.to(gradient_CW.dtype))


def _by_head(scores: Mapping[str, Scores]) -> list[list[str]]:
    """The names of distributions, grouped by head: the student's views share one."""
    groups: dict[tuple[int, torch.Size], list[str]] = {}
    for name, model_scores in scores.items():
        # Heads are compared by address: comparing values would read both.
        groups.setdefault((model_scores.head_WD.data_ptr(), model_scores.head_WD.shape), []).append(name)
    return list(groups.values())


class _KeptEntries:
    """The kept vocabulary entries as runs of consecutive head rows; there are few, since only special tokens
    are removed."""

    def __init__(self, kept_V: Tensor) -> None:
        self.rows = int(kept_V[-1]) + 1
        breaks = ((kept_V.diff() != 1).nonzero()[:, 0] + 1).tolist()
        edges = [0, *breaks, len(kept_V)]
        self.runs = [
            (slice(a, b), slice(int(kept_V[a]), int(kept_V[b - 1]) + 1)) for a, b in itertools.pairwise(edges)
        ]

    def log_probs(self, logits_CW: Tensor) -> Tensor:
        """Log-probabilities (C, V) over the kept vocabulary entries."""
        kept = torch.cat([logits_CW[:, columns] for _, columns in self.runs], -1)
        return kept.sub_(kept.logsumexp(-1, keepdim=True))

    def put(self, gradient_CV: Tensor, out_CW: Tensor) -> None:
        """Write a gradient over the kept entries to their columns; all other columns become zero."""
        # `out_CW` still holds logits, which in removed columns would be taken for gradients.
        if len(self.runs) > 1 or self.runs[0][1].start > 0:
            out_CW.zero_()
        for entries, columns in self.runs:
            out_CW[:, columns] = gradient_CV[:, entries]


def _gradients(loss: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    # If no weighted term reaches a live distribution, e.g. if only the head's gradient is collected.
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def _through_softmax(log_p_CV: Tensor, gradient_CV: Tensor) -> Tensor:
    """The gradient of the logits from that of the log-probs: d log p_v / d logit_u = [u = v] - p_u."""
    return log_p_CV.exp().mul_(-gradient_CV.sum(-1, keepdim=True)).add_(gradient_CV)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _head_parts(head_WD: Tensor) -> Iterator[slice]:
    """All rows at once, or parts of them if they have to be converted."""
    return _slices(len(head_WD), len(head_WD) if _precise(head_WD.dtype) == head_WD.dtype else HEAD_ROWS)


def _product(hidden_CD: Tensor, head_WD: Tensor) -> Tensor:
    """hidden @ head.T in at least float32: bfloat16 logits would be rounded to steps of 0.1 nats."""
    if _precise(head_WD.dtype) == head_WD.dtype:
        return hidden_CD.to(head_WD.dtype) @ head_WD.T
    if hidden_CD.is_cuda and hidden_CD.dtype == head_WD.dtype:
        return torch.mm(hidden_CD, head_WD.T, out_dtype=torch.float32)
    parts = [hidden_CD.float() @ head_WD[rows].float().T for rows in _head_parts(head_WD)]
    return torch.cat(parts, -1)
