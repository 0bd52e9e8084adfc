"""One picture to open: problems, answers, and where the recovery module's sink looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.sources import cue_boxes
from vicur.diagnostics.attention import mass_in_boxes
from vicur.rewards.grader import is_correct

matplotlib.use("Agg")

RIGHT, WRONG, BOX = "#1a7f37", "#c4261d", "#0b5cad"


def draw_showcase(
    samples: Sequence[Sample],
    maps: Sequence[Mapping[int, Tensor]],
    responses: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Draw each sample on a line: its image with the cue's boxes, the sink's attention, the answers.

    Args:
        samples: problems with one image each.
        maps: for each sample and recovery layer, the sink's attention on the image's grid.
        responses: for each model name, one response a sample.
        path: of the PNG.
    """
    layers = list(maps[0])
    figure = Figure(figsize=(3.0 * (len(layers) + 1) + 3.6, 3.3 * len(samples) + 0.7), layout="constrained")
    widths = [1.0] * (len(layers) + 1) + [1.2]
    axes = figure.subplots(len(samples), len(widths), width_ratios=widths, squeeze=False)
    figure.suptitle(
        "The first test problems that only one of base and student gets right. Blue: what the cue names. "
        "Red: where the sink of the trained student looks.",
        fontsize=11,
    )
    for i, (sample, line) in enumerate(zip(samples, axes, strict=True)):
        _draw_image(line[0], sample)
        line[0].set_title("what the student sees", fontsize=9)
        for axis, layer in zip(line[1:-1], layers, strict=True):
            _draw_attention(axis, sample, layer, maps[i][layer])
        _write_answers(line[-1], sample, {name: texts[i] for name, texts in responses.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_image(axis: Any, sample: Sample) -> None:
    image = sample.images[0]
    axis.imshow(np.asarray(image), interpolation="nearest")
    for name, value, (left, top, right, bottom) in cue_boxes(sample):
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec=BOX, lw=2)
        )
        above = top > 6  # a name above the image would run into its title
        place = (left, top - 1.5) if above else (left, bottom + 0.5)
        axis.annotate(f"{name} {value}", place, color=BOX, fontsize=8, va="bottom" if above else "top")
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_attention(axis: Any, sample: Sample, layer: int, attention: Tensor) -> None:
    image = sample.images[0]
    boxes = [box for *_, box in cue_boxes(sample)]
    inside = mass_in_boxes(attention, boxes, image.size)
    even = mass_in_boxes(torch.full_like(attention, 1 / attention.numel()), boxes, image.size)
    _draw_image(axis, sample)
    axis.imshow(
        attention.numpy(),
        cmap="Reds",
        alpha=0.65,
        vmin=0,
        vmax=max(float(attention.max()), 4 / attention.numel()),  # even attention looks pale
        extent=(-0.5, image.width - 0.5, image.height - 0.5, -0.5),
    )
    axis.set_title(
        f"sink, layer {layer}: {100 * inside:.0f} % in the boxes (even: {100 * even:.0f} %)", fontsize=9
    )


def _write_answers(axis: Any, sample: Sample, texts: Mapping[str, str]) -> None:
    axis.axis("off")
    question = " ".join(p["text"] for p in sample.messages[-1]["content"] if p["type"] == "text")
    axis.text(0, 0.95, fill(question, 40), fontsize=10, weight="bold", va="top")
    axis.text(0, 0.72, f"right answer: {sample.answer}", fontsize=10, va="top")
    for place, (name, text) in zip((0.55, 0.27), texts.items(), strict=False):
        colour = RIGHT if is_correct(text, sample.answer) else WRONG
        axis.text(0, place, fill(f"{name}: {text}", 42), fontsize=10, va="top", color=colour)
