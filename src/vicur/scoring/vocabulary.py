"""Log-probabilities over the vocabulary, a chunk of tokens at a time.

Full logits of a batch do not fit: 16,384 tokens by 151,936 words are 10 GB in float32. Here the
logits of one chunk exist at a time, in the forward and again in the backward pass.

Shape suffixes: N tokens, D hidden size, W rows of the head, V words kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 256 * 2**20
"""Logits of one chunk take at most about this much memory, in float32."""


def sampled_log_probs(
    hidden_ND: Float[Tensor, "N D"],
    head_WD: Float[Tensor, "W D"],
    ids_N: Int[Tensor, " N"],
    kept_V: Int[Tensor, " V"],
    chunk_size: int | None = None,
) -> Float[Tensor, " N"]:
    """log p(id) for each token, over the kept words only, differentiable in hidden and head.

    Removed words are left out by index, so their gradient is exactly zero.

    Args:
        hidden_ND: last hidden states at the predicting positions.
        head_WD: the LM head's weight, padding rows included.
        ids_N: the tokens whose log-probability is asked; each must be a kept word.
        kept_V: the words that a response may consist of, ascending.
        chunk_size: tokens per chunk; chosen by `CHUNK_BYTES` if not given.

    Returns:
        log-probabilities in nats, at least float32.

    Raises:
        ValueError: a token is not among the kept words.
    """
    slot_N = torch.searchsorted(kept_V, ids_N).clamp(max=len(kept_V) - 1)
    if not bool((kept_V[slot_N] == ids_N).all()):
        strays = sorted(set(ids_N[kept_V[slot_N] != ids_N].tolist()))
        raise ValueError(f"Responses contain token ids that cannot be scored: {strays[:5]}.")
    if chunk_size is None:
        chunk_size = max(1, CHUNK_BYTES // (4 * len(kept_V)))
    log_probs: Tensor = _SampledLogProbs.apply(hidden_ND, head_WD, slot_N, kept_V, chunk_size)  # type: ignore[no-untyped-call]
    return log_probs


def _precise(tensor: Tensor) -> Tensor:
    """At least float32: products of bfloat16 would be rounded to steps of 0.1 nats."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _SampledLogProbs(torch.autograd.Function):
    """Forward keeps no logits; backward makes each chunk's again: d log p / d logit = 1[id] - p."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, slot: Tensor, kept: Tensor, chunk_size: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, head, slot, kept)
        ctx.chunk_size = chunk_size
        kept_head = _precise(head[kept])
        out = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(hidden), chunk_size):
            part = slice(start, start + chunk_size)
            logits = _precise(hidden[part]) @ kept_head.T
            picked = logits.gather(-1, slot[part, None])[:, 0]
            out[part] = picked - logits.logsumexp(-1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        hidden, head, slot, kept = ctx.saved_tensors
        kept_head = _precise(head[kept])
        grad_hidden = torch.zeros_like(hidden)
        grad_kept = torch.zeros_like(kept_head)
        for start in range(0, len(hidden), ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            grad = -(_precise(hidden[part]) @ kept_head.T).softmax(-1)
            grad.scatter_add_(-1, slot[part, None], torch.ones_like(grad[:, :1]))
            grad *= grad_out[part, None]
            grad_hidden[part] = (grad @ kept_head).to(hidden.dtype)
            grad_kept += grad.T @ _precise(hidden[part])
        grad_head = torch.zeros_like(head).index_copy_(0, kept, grad_kept.to(head.dtype))
        return grad_hidden, grad_head, None, None, None
