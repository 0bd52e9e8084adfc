"""Model FLOPs of an update, counted from the shapes.

Counted are the matrix products that the model's function needs: two FLOPs per multiplication and addition.
The backward pass takes twice those of the forward pass. Not counted: layers that gradient checkpointing
computes again, norms, activations and other elementwise work, cue recovery (in its folded form below 0.1 % of
the whole), and the masked half of causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 FLOPs per second of GPUs, from their data sheets, by a part of the name that torch reports.
The first entry that matches counts."""


@dataclass(frozen=True)
class Reading:
    """A prompt with one image and its response, as one model reads them.

    Attributes:
        prompt: tokens of the prompt, visual ones included.
        visual: visual tokens.
        response: tokens of the response.
    """

    prompt: int
    visual: int
    response: int


def peak_of(device_name: str) -> float | None:
    """Dense bfloat16 FLOPs per second of a GPU; None if it is not in the table."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def forward_flops(config: Any, reading: Reading) -> dict[str, float]:
    """FLOPs of one forward pass by part of the model.

    Args:
        config: configuration of a dense Qwen3-VL model.
        reading: what the model reads.
    """
    text, vision = config.text_config, config.vision_config
    tokens = reading.prompt + reading.response
    queries, keys = (n * text.head_dim for n in (text.num_attention_heads, text.num_key_value_heads))
    matrices = text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    merged = vision.spatial_merge_size**2
    patches = merged * reading.visual
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    wide = merged * vision.hidden_size
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return {
        "decoder layers": 2.0 * text.num_hidden_layers * matrices * tokens,
        # Scores and their sum over values, 2 FLOPs each, for half of the pairs of tokens.
        "attention of the decoder": 2.0 * text.num_hidden_layers * queries * tokens**2,
        "head": 2.0 * text.hidden_size * text.vocab_size * reading.response,
        "vision tower": 2.0 * patches * (pixels * vision.hidden_size + vision.depth * block),
        "attention of the vision tower": 4.0 * vision.depth * vision.hidden_size * patches**2,
        "mergers": 2.0 * mergers * reading.visual * wide * (wide + vision.out_hidden_size),
    }


def update_flops(config: Any, readings: list[Reading]) -> float:
    """FLOPs of forward and backward passes over the readings, all weights trained: three forward passes."""
    return 3.0 * sum(sum(forward_flops(config, reading).values()) for reading in readings)
