"""Tiny Qwen3-VL models: real architecture, real processor, laptop size.

They are built from a configuration, with a tokenizer trained here on CueBench's own sentences. The rest of
the library treats them like any other model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vicur.cuebench.scenes import COLOURS, IN_DOMAIN, ChordsScene, SegmentsScene

PATCH, MERGE = 8, 2
"""A merged visual token covers PATCH * MERGE = 16 pixels a side: one cell of a segments scene."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Dimensions of a tiny model."""

    hidden: int
    layers: int
    heads: int
    vision_hidden: int
    vision_layers: int


STUDENT = TinySize(hidden=128, layers=4, heads=4, vision_hidden=96, vision_layers=2)
"""Dimensions of the tiny student: 1.5 million parameters."""
TEACHER = TinySize(hidden=192, layers=4, heads=6, vision_hidden=128, vision_layers=2)
"""Dimensions of the tiny teacher: 3.0 million parameters."""
SIZES = {"student": STUDENT, "teacher": TEACHER}


def _corpus() -> Iterator[str]:
    random = np.random.default_rng(0)
    for _ in range(2000):
        scene = SegmentsScene.sample(random, IN_DOMAIN)
        yield f"{scene.question}\n[Hint]: {scene.cue}\n{scene.rationale}"
        yield f"{scene.solution} The hint says: {scene.answer} List all segments. {scene.listing}"
    for _ in range(200):
        chords = ChordsScene.sample(random)
        yield f"{chords.question} {chords.cue} {chords.rationale} {chords.solution}"
    yield "system user assistant\nYou are a helpful assistant."
    yield from (f" {colour}" for colour in COLOURS)


def build_tokenizer(size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on CueBench's sentences; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d|\n| ?[^\s\d]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "im_start_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
    )


def build_processor() -> Qwen3VLProcessor:
    """A real Qwen3-VL processor with small patches."""
    pixels = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 512 * 512}
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **patches, **mean),
        tokenizer=build_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(size=pixels, **patches, **mean),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(size: TinySize, processor: Any) -> Qwen3VLConfig:
    """The configuration of a tiny model that reads this processor's tokens."""
    head_dim = size.hidden // size.heads
    ids = processor.tokenizer.convert_tokens_to_ids
    # Three rotary sections over head_dim / 2 frequencies, the first the widest, as in Qwen3-VL.
    side = head_dim // 2 * 5 // 16
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": 3 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads // 2,
            "head_dim": head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head_dim // 2 - 2 * side, side, side],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 3 * size.vision_hidden,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(size: TinySize, processor: Any) -> Qwen3VLForConditionalGeneration:
    """An untrained tiny model; seed torch first for reproducible weights."""
    model = Qwen3VLForConditionalGeneration(build_config(size, processor))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model
