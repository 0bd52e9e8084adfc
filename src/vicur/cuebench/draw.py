"""Rasterise strokes: the only place where CueBench turns geometry into pixels.

A scene passes polylines in pixel coordinates; this module draws them with
anti-aliasing, breaks them, and adds sensor noise. It knows nothing about digits,
chords or questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""

SUPERSAMPLING = 4
"""Strokes are drawn at this multiple of the final size and averaged down."""


@dataclass(frozen=True)
class Stroke:
    """One polyline.

    Attributes:
        points: vertices in pixels, (0, 0) at the top left corner.
        colour: RGB, 0-255.
        width: pen width in pixels.
    """

    points: tuple[Point, ...]
    colour: Colour
    width: float


@dataclass(frozen=True)
class Label:
    """A piece of text, centred on a point.

    Attributes:
        text: text to write.
        centre: pixel position of the middle of the text.
        colour: RGB, 0-255.
        size: font size in pixels.
    """

    text: str
    centre: Point
    colour: Colour
    size: float


def stroke_box(strokes: Sequence[Stroke], *, size: int) -> Box:
    """The smallest pixel box around the strokes, pen width included, clipped to the image."""
    xs = [x for stroke in strokes for x, _ in stroke.points]
    ys = [y for stroke in strokes for _, y in stroke.points]
    reach = max(stroke.width for stroke in strokes) / 2 + 0.5
    return (
        max(0.0, min(xs) - reach),
        max(0.0, min(ys) - reach),
        min(float(size), max(xs) + reach),
        min(float(size), max(ys) + reach),
    )


def label_box(label: Label) -> Box:
    """The pixel box that the text of a label covers."""
    font = ImageFont.load_default(label.size)
    left, top, right, bottom = font.getbbox(label.text, anchor="mm")
    x, y = label.centre
    return (x + left, y + top, x + right, y + bottom)


def rasterise(
    strokes: Sequence[Stroke],
    *,
    size: int,
    background: Colour,
    labels: Sequence[Label] = (),
    noise: float = 0.0,
    break_probability: float = 0.0,
    seed: int = 0,
) -> Image.Image:
    """Draw strokes and labels on a square image.

    Args:
        strokes: strokes in drawing order.
        size: side of the image in pixels.
        background: RGB, 0-255.
        labels: text, drawn on top of the strokes.
        noise: standard deviation of the Gaussian pixel noise, in units of 1/255.
        break_probability: chance that a piece of stroke about two pixels long is left out.
        seed: seed of noise and breaks.

    Returns:
        an RGB image of `size` x `size` pixels.
    """
    random = np.random.default_rng(seed)
    canvas = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), background)
    pen = ImageDraw.Draw(canvas)
    for stroke in strokes:
        for start, end in _pieces(stroke.points):
            if random.random() < break_probability:
                continue
            _draw_piece(pen, start, end, stroke)
    image = canvas.resize((size, size), Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    for label in labels:
        font = ImageFont.load_default(label.size)
        pen.text(label.centre, label.text, fill=label.colour, font=font, anchor="mm")
    if noise > 0:
        pixels = np.asarray(image, dtype=np.float64)
        pixels = pixels + random.normal(0.0, noise, pixels.shape)
        image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    return image


def _pieces(points: Sequence[Point], length: float = 2.0) -> list[tuple[Point, Point]]:
    """Cut a polyline into straight pieces of about `length` pixels."""
    pieces = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        count = max(1, round(float(np.hypot(x1 - x0, y1 - y0)) / length))
        ts = np.linspace(0.0, 1.0, count + 1)
        knots = [(x0 + (x1 - x0) * float(t), y0 + (y1 - y0) * float(t)) for t in ts]
        pieces += list(itertools.pairwise(knots))
    return pieces


def _draw_piece(pen: ImageDraw.ImageDraw, start: Point, end: Point, stroke: Stroke) -> None:
    scale = SUPERSAMPLING
    (x0, y0), (x1, y1) = start, end
    pen.line(
        [(x0 * scale, y0 * scale), (x1 * scale, y1 * scale)],
        fill=stroke.colour,
        width=max(1, round(stroke.width * scale)),
    )
