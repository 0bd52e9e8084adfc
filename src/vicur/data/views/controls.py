"""Views with less to see: no media, blank, degraded, masked or randomly changed media."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from vicur.data.sample import Sample
from vicur.data.views.view import Attempt, Part, Shown, smooth, with_media


@dataclass(frozen=True)
class Blind(Part):
    """The problem without its media: same template, same system prompt, same words."""

    name = "blind"

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        messages = tuple(
            {**m, "content": [part for part in m["content"] if part["type"] == "text"]}
            for m in prompt.messages
        )
        return Shown(messages)


@dataclass(frozen=True)
class Blank(Part):
    """The problem with black images and frames of the same size: same words and visual tokens, nothing to
    see."""

    name = "blank"
    keeps_tokens = True

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return with_media(prompt, lambda image, _: Image.new("RGB", image.size))


@dataclass(frozen=True)
class Degraded(Part):
    """The problem with the fine detail of its media destroyed, at the same size (VA-OPD section 2.1).

    Each image or frame shrinks by `ratio`, bilinear, and grows back by nearest neighbour.

    Attributes:
        ratio: reduced side lengths over the original ones; at least one pixel remains.

    Raises:
        ValueError: the ratio is not above 0 and at most 1.
    """

    ratio: float = 0.1
    keeps_tokens = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"A degraded view needs a ratio above 0 and at most 1, not {self.ratio}.")

    @property
    def name(self) -> str:
        return f"degraded({self.ratio:g})"

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return with_media(prompt, lambda image, _: self._degrade(image))

    def _degrade(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        small = (max(1, int(self.ratio * width)), max(1, int(self.ratio * height)))
        shrunk = smooth(image).resize(small, Image.Resampling.BILINEAR)
        return shrunk.resize(image.size, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Masked(Part):
    """The problem with patches of its media blacked out at random, at the same size (PAPO).

    The choice of patches depends on the sample, the image and `draw` alone.

    Attributes:
        probability: probability that a patch is black.
        patch: its side in pixels of the raw image.
        draw: seed of the mask; every training step uses another one.

    Raises:
        ValueError: the probability is not between 0 and 1, or a patch has no pixel.
    """

    probability: float = 0.6
    patch: int = 14
    draw: int = 0
    keeps_tokens = True

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"A masked view needs a probability between 0 and 1, not {self.probability}.")
        if self.patch < 1:
            raise ValueError(f"A masked view needs patches of at least 1 pixel, not {self.patch}.")

    @property
    def name(self) -> str:
        return f"masked({self.probability:g}, {self.patch})"

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return with_media(prompt, lambda image, index: self._mask(image, f"{sample.id}/{index}"))

    def at_step(self, step: int) -> Masked:
        return replace(self, draw=step)

    def _mask(self, image: Image.Image, key: str) -> Image.Image:
        random = _generator(self.draw, key)
        width, height = image.size
        rows, columns = -(-height // self.patch), -(-width // self.patch)
        black = random.random((rows, columns)) < self.probability
        pixels = black.repeat(self.patch, 0).repeat(self.patch, 1)[:height, :width]
        masked = smooth(image).copy()
        masked.paste(0, mask=Image.fromarray(pixels))
        return masked


@dataclass(frozen=True)
class Augmented(Part):
    """The problem with brightness, contrast, saturation and noise of its media changed at random, at the same
    size.

    For students that learn to see through such changes what a teacher sees without them (S2VOPD,
    arXiv 2608.14144; the changes are our choice). The choice depends on the sample, the image and `draw`
    alone.

    Attributes:
        strength: each factor is drawn from 1 - strength to 1 + strength; the noise has a standard deviation
            of 25 * strength, of 255.
        draw: seed of the changes; every training step uses another one.

    Raises:
        ValueError: the strength is not between 0 and 1.
    """

    strength: float = 0.5
    draw: int = 0
    keeps_tokens = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"An augmented view needs a strength between 0 and 1, not {self.strength}.")

    @property
    def name(self) -> str:
        return f"augmented({self.strength:g})"

    def change(self, prompt: Shown, sample: Sample, attempt: Attempt | None) -> Shown:
        return with_media(prompt, lambda image, index: self._augment(image, f"{sample.id}/{index}"))

    def at_step(self, step: int) -> Augmented:
        return replace(self, draw=step)

    def _augment(self, image: Image.Image, key: str) -> Image.Image:
        random = _generator(self.draw, key)
        changed = image.convert("RGB")
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            changed = enhancer(changed).enhance(random.uniform(1 - self.strength, 1 + self.strength))
        noise = random.normal(0, 25 * self.strength, (changed.height, changed.width, 3))
        pixels = np.asarray(changed, dtype=np.float64) + noise
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _generator(draw: int, key: str) -> np.random.Generator:
    """Random numbers of an image, the same in every process."""
    digest = hashlib.blake2b(f"{draw}/{key}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
