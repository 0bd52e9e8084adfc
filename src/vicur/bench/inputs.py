"""Prompts of an exact size: a number of visual tokens among a number of prompt tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.lengths import prompt_length
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits, VisualSizes
from vicur.models.load import LoadedModel

FILLERS = (" a", " the", ".", " 1", "a")
"""Words that lengthen a question, tried in turn: one of them is a single token in most tokenizers."""


@dataclass(frozen=True)
class InputSize:
    """The size of a prompt.

    Attributes:
        visual: number of visual tokens.
        prompt: number of all tokens, those included.
    """

    visual: int
    prompt: int

    @classmethod
    def read(cls, text: str) -> InputSize:
        """The size written as VISUAL/PROMPT, e.g. 64/88.

        Raises:
            ValueError: it is written otherwise, or not all tokens can be visual.
        """
        parts = text.replace(",", "").split("/")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"An input is VISUAL/PROMPT tokens, such as 64/88, not {text}.")
        visual, prompt = map(int, parts)
        if not 1 <= visual < prompt:
            raise ValueError(f"input {text}: of {prompt} prompt tokens, {visual} cannot be visual.")
        return cls(visual, prompt)

    def __str__(self) -> str:
        return f"{self.visual:,}/{self.prompt:,}"


def encoded(size: InputSize, loaded: LoadedModel) -> EncodedPrompt:
    """A prompt of a size for a model: an image, and a question that is padded to the length.

    Raises:
        ValueError: there is no such prompt, e.g. because the chat template alone is longer.
    """
    side = VisualSizes(loaded.processor, PixelLimits()).image_side
    pixels = size.visual * side**2
    encoder = PromptEncoder.of(loaded, PixelLimits(pixels, pixels))
    rows, columns = grid_of(size.visual)
    # A colour for each visual token.
    colours = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    shape = (side * columns, side * rows)
    image = Image.fromarray(colours).resize(shape, Image.Resampling.NEAREST)
    sample = _padded(size, encoder, image)
    (prompt,) = encoder.encode([Plain().show(sample)])
    visual = int((prompt.token_types == 1).sum())
    if (visual, len(prompt)) != (size.visual, size.prompt):
        raise ValueError(f"The processor makes {visual} visual tokens of {len(prompt)}, not {size}.")
    return prompt


def grid_of(visual: int) -> tuple[int, int]:
    """Rows and columns of visual tokens, as near to a square as their number allows."""
    rows = next(rows for rows in range(math.isqrt(visual), 0, -1) if visual % rows == 0)
    return rows, visual // rows


def _padded(size: InputSize, encoder: PromptEncoder, image: Image.Image) -> Sample:
    """The problem whose prompt has the length."""

    def length(question: str) -> int:
        return prompt_length(encoder, Plain().show(_asking(question, image)))

    missing = size.prompt - length("")
    if missing < 0:
        raise ValueError(
            f"input {size}: with {size.visual} visual tokens a prompt has at least {size.prompt - missing} "
            "tokens, those of the chat template included."
        )
    for filler in FILLERS:
        count = missing
        for _ in range(8):  # a filler may be more than one token, and the first one may differ
            off = size.prompt - length(filler * count)
            if off == 0:
                return _asking(filler * count, image)
            count = max(0, count + (off if abs(off) < 2 else off // 2))
    raise ValueError(f"input {size}: no question has exactly this length under this tokenizer.")


def _asking(question: str, image: Image.Image) -> Sample:
    parts = ({"type": "image"}, {"type": "text", "text": question})
    return Sample("latency", ({"role": "user", "content": parts},), (image,))
