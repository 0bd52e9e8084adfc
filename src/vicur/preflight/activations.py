"""Memory of a Qwen3-VL forward pass, in bytes, from the model's configuration.

"Kept" is what autograd saves for the backward pass; `tests/preflight/test_memory.py` compares these sums with
what autograd really saves. "Passing" is what is in memory at once inside a layer, in a pass without gradient.

A text token goes through the decoder, a patch through the vision tower. A visual token is `merge**2` patches.
"""

from __future__ import annotations

from typing import Any

NORM = 4
"""Bytes of a number in an RMSNorm, which computes in float32 whatever the model's dtype is."""


def kept_by_text_layer(text: Any, size: int) -> int:
    """Bytes that a decoder layer keeps of one token.

    Args:
        text: the configuration of the language model.
        size: bytes of a number in the model's dtype.
    """
    width, feed_forward = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    normed = 2 * width + queries + keys  # the layer's two norms, and those of queries and keys
    inputs = 2 * width + queries  # of the projections to q, k, v; of the MLP; back from attention
    attention = queries + 2 * keys
    gated = 4 * feed_forward  # gate, its SiLU, up, and their product
    return (NORM + size) * normed + size * (inputs + attention + gated)


def kept_by_vision_block(vision: Any, size: int) -> int:
    """Bytes that a block of the vision tower keeps of one patch."""
    norms = 4  # inputs and outputs of both
    attention = (
        3 + 2 + 1 + 1
    )  # projected q, k, v; rotated q, k; the output per head; the same with heads joined
    return int(size * ((norms + attention) * vision.hidden_size + 2 * vision.intermediate_size))


def kept_by_mergers(vision: Any, size: int) -> int:
    """Bytes that the mergers, DeepStack's included, keep of one visual token."""
    wide = vision.hidden_size * vision.spatial_merge_size**2
    return int(4 * size * wide * (1 + len(vision.deepstack_visual_indexes)))


def passing_text_layer(text: Any, size: int) -> int:
    """Bytes of one token inside a decoder layer, without gradient."""
    width, feed_forward = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    return int(size * (3 * width + max(3 * feed_forward, 4 * queries)) + 2 * NORM * max(width, queries))


def passing_vision_block(vision: Any, size: int) -> int:
    """Bytes of one patch inside a block of the vision tower, without gradient; rotary angles are float32."""
    width = vision.hidden_size
    return int(size * (3 * width + max(2 * vision.intermediate_size, 4 * width)) + 2 * NORM * width)


def pixel_numbers(vision: Any) -> int:
    """Number of values in one patch as the processor returns it."""
    return int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
