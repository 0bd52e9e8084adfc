"""Models in Qwen3-VL's layout with random weights, for benchmarks: nothing is read from a hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLProcessor

from vicur.cuebench.tiny import build_processor
from vicur.models.checkpoints import AUGMENTED, STOCK, has_recovery, kind_of, read_config

PATCH, MERGE = 16, 2
"""A visual token covers PATCH * MERGE = 32 pixels a side."""
TOKENS, HEAD_ROWS = 151_669, 151_936
"""Tokens of Qwen3-VL's tokenizer, and rows of its embeddings and head."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model.

    Attributes:
        hidden, layers, heads, key_value_heads, feed_forward: the language model's.
        vision_hidden, vision_layers, vision_feed_forward, vision_heads: the vision tower's.
        deepstack: blocks of the vision tower whose features are added to the first decoder layers.
        tied: whether embeddings and head share their weight.
        head_dim: size of an attention head.
        vocabulary: rows of embeddings and head.
    """

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vision_hidden: int
    vision_layers: int
    vision_feed_forward: int
    vision_heads: int
    deepstack: tuple[int, ...]
    tied: bool
    head_dim: int = 128
    vocabulary: int = HEAD_ROWS

    def config(self, processor: Any) -> Qwen3VLConfig:
        """The configuration of a model of this shape that reads a processor's tokens."""
        ids = processor.tokenizer.convert_tokens_to_ids
        side = self.head_dim // 2 * 5 // 16  # [24, 20, 20] of 64 frequencies
        return Qwen3VLConfig(
            text_config={
                "vocab_size": self.vocabulary,
                "hidden_size": self.hidden,
                "intermediate_size": self.feed_forward,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads,
                "head_dim": self.head_dim,
                "max_position_embeddings": 262_144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [self.head_dim // 2 - 2 * side, side, side],
                    "mrope_interleaved": True,
                },
                "tie_word_embeddings": self.tied,
            },
            vision_config={
                "depth": self.vision_layers,
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_feed_forward,
                "num_heads": self.vision_heads,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": 2,
                "out_hidden_size": self.hidden,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": list(self.deepstack),
            },
            image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"),
            tie_word_embeddings=self.tied,
        )


_SMALL_TOWER = (1024, 24, 4096, 16, (5, 11, 17))
_LARGE_TOWER = (1152, 27, 4304, 16, (8, 16, 24))
SHAPES = {
    "2B": Shape(2048, 28, 16, 8, 6144, *_SMALL_TOWER, tied=True),
    "4B": Shape(2560, 36, 32, 8, 9728, *_SMALL_TOWER, tied=True),
    "8B": Shape(4096, 36, 32, 8, 12_288, *_LARGE_TOWER, tied=False),
    "32B": Shape(5120, 64, 64, 8, 25_600, *_LARGE_TOWER, tied=False),
}
"""Qwen3-VL's dense models. The shapes of 4B and 32B were not checked against their configurations."""


def wide_processor(tokens: int) -> Any:
    """A Qwen3-VL processor with patches of 16 pixels and a tokenizer of any number of tokens.

    Args:
        tokens: number of tokens; those beyond CueBench's are never produced from text.
    """
    processor = build_processor()
    tokenizer = processor.tokenizer
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    words = description["model"]["vocab"]
    words |= {f"word{i}": i for i in range(len(tokenizer), tokens)}
    for part in (processor.image_processor, processor.video_processor):
        part.patch_size = PATCH
    return Qwen3VLProcessor(  # made anew: it remembers the ids of its tokenizer's special tokens
        image_processor=processor.image_processor,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(description)), **tokenizer.special_tokens_map
        ),
        video_processor=processor.video_processor,
        chat_template=processor.chat_template,
    )


def write_without_weights(shape: Shape, processor: Any, folder: Path) -> None:
    """Write a checkpoint's configuration and processor."""
    shape.config(processor).save_pretrained(folder)
    processor.save_pretrained(folder)


def random_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with random weights, initialised on the device: 8 billion on a CPU would take minutes."""
    model_class = (AUGMENTED if has_recovery(config) else STOCK)[kind_of(config)][1]
    with device:
        # In the final dtype from the start: casting afterwards would also round the rotary frequencies.
        return model_class._from_config(config, dtype=dtype)  # type: ignore[attr-defined]


class RandomCheckpoints:
    """Takes the place of `vicur.models.load.read_model`: weights are made, not read.

    Args:
        device: device to make them on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, name: str, config: Any = None, dtype: str | None = "float32") -> Any:
        """Same as `read_model`, from a folder that holds no weights."""
        chosen = read_config(name) if config is None else config
        return random_model(chosen, getattr(torch, dtype or "float32"), self.device)
