"""`vicur diagnose attention`: the visual tokens that the recovery module's sink attends to (ViCuR figure 11).

The control, which the paper lacks: the same image with another question. Where the image precedes the
question, nothing that the module reads depends on the question, so both maps are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from textwrap import fill
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pydantic import Field
from torch import Tensor

from vicur.cuebench.boxes import cue_boxes
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.diagnose.settings import ProblemsSettings
from vicur.diagnostics.attention import Picture, SinkMap, cells_in_boxes, mass_in_boxes, sink_attention
from vicur.models.checkpoints import Dtype, has_recovery, read_config
from vicur.models.load import LoadedModel, load_model
from vicur.reporting.figures import PAPER, new_figure, plain_text
from vicur.reporting.finding import Finding
from vicur.settings.section import Count, PathText, Text, section
from vicur.tables import plain_table
from vicur.wording import counted, shortened

COLOURS = "viridis"
"""Colour map of attention: equal steps look equal, also in grey and with any colour vision."""
MEAN = "mean"
"""Name of the mean over the recovery layers, beside the numbers of the layers."""
TOP = 5
"""Number of cells with the most attention that are listed."""
PICTURES = 4
"""Maximum number of images and frames of a problem in the figure; those with the most attention."""
MOST_ROWS = 16
"""Maximum number of rows in the figure."""
WIDTH = 34
"""Characters per line of the texts above a picture."""
SEARCHED = 1000
"""Number of problems among which another question is sought."""
LARGEST_SIDE = 512
"""Pixels of the longer side of an image in the figure."""


@section
class AttentionSettings(ProblemsSettings):
    """The settings of `vicur diagnose attention`."""

    model: PathText = "vicur:tiny-student"
    """Model with cue recovery: checkpoint folder, hub id, or "vicur:NAME"."""
    dtype: Dtype = "float32"
    """Compute dtype of the model."""
    problems: Count | None = 4
    """Use only the first N problems with an image or a video; null for all."""
    control_question: Text | None = None
    """The other question that is asked about each image; null for that of the next problem with as many
    images and videos and another question."""
    head: Annotated[int, Field(ge=0)] | None = None
    """Head whose attention is shown, from 0; null for the mean over heads."""


@dataclass(frozen=True)
class Seen:
    """The maps of one problem, and those with another question.

    Attributes:
        sample: the problem.
        pictures: its images and temporal patches of videos, in the order of the prompt.
        maps: for each recovery layer, as text, and for `MEAN`, the map of each picture.
        control: the same problem with another question; None if there is none.
        control_maps: its maps; empty without a control.
    """

    sample: Sample
    pictures: Sequence[Picture]
    maps: Mapping[str, Sequence[Tensor]]
    control: Sample | None
    control_maps: Mapping[str, Sequence[Tensor]]

    @property
    def first(self) -> str:
        """Name of the first recovery layer."""
        return next(iter(self.maps))

    @property
    def boxes(self) -> list[tuple[float, float, float, float]]:
        """The boxes of what the cue names, in pixels of the only image; none with several."""
        if len(self.sample.images) != 1 or self.sample.videos:
            return []
        return [box for _, _, box in cue_boxes(self.sample)]

    def difference(self, layer: str) -> float | None:
        """The largest change of any visual token's attention by the other question."""
        if not self.control_maps:
            return None
        pairs = zip(self.maps[layer], self.control_maps[layer], strict=True)
        return max(float((first - other).abs().max()) for first, other in pairs)

    @property
    def largest_difference(self) -> float | None:
        """The largest of all layers."""
        differences = [self.difference(layer) for layer in self.control_maps]
        return max((value for value in differences if value is not None), default=None)


def attention_of_the_sink(settings: AttentionSettings) -> Finding:
    """The attention of the sink over the visual tokens of a few problems, with another question as a control.

    Raises:
        ValueError: the model has no recovery module or no such head, or no problem has an image or a video.
    """
    if not has_recovery(read_config(settings.model)):
        raise ValueError(
            f"{settings.model} has no cue recovery module, so there is no sink attention to show. vicur init "
            "adds a module to a checkpoint."
        )
    source = replace(settings, problems=None).open()
    loaded = load_model(settings.model, settings.dtype)
    heads = loaded.model.config.text_config.num_attention_heads
    if settings.head is not None and settings.head >= heads:
        raise ValueError(f"head must be below {heads}, the number of heads of {settings.model}.")
    indices = list(islice(_with_media(source), settings.problems))
    if not indices:
        raise ValueError(f"No problem of {source.name} has an image or a video.")
    seen = [_look(loaded, source, index, settings) for index in indices]
    values: dict[str, Any] = {
        "model": settings.model,
        "units": {
            "entropy": "nats",
            "entropy_share": "of the logarithm of the number of visual tokens",
            "in_boxes": "share of the attention on cells whose centre is in a box of the cue",
            "even": "share of the cells whose centre is in such a box",
            "control_difference": "largest change of a token's attention by another question",
            "maps": "share of the attention; one entry per visual token, one table per picture",
        },
        "head": "mean" if settings.head is None else settings.head,
        "problems": [_numbers(problem) for problem in seen],
    }
    rows = [_row(problem, numbers) for problem, numbers in zip(seen, values["problems"], strict=True)]
    table = plain_table(
        "Attention of the sink: entropy in nats (share of the highest), and the control",
        ["problem", "tokens", f"layer {seen[0].first}", "mean of layers", "in boxes", "even", "control"],
        rows,
    )
    temporal = loaded.processor.video_processor.temporal_patch_size
    return Finding("attention", values, partial(draw_attention, seen, temporal), (table,), _notes(seen))


def question_of(sample: Sample) -> str:
    """The longest text of the last message of the user."""
    texts = [part["text"] for part in _last_of_user(sample)["content"] if part["type"] == "text"]
    return max(texts, key=len, default="")


def with_question(sample: Sample, question: str) -> Sample:
    """The problem with another question in the place of its own; media and other texts are kept."""
    last, own_text = _last_of_user(sample), question_of(sample)
    replaced = False
    content = []
    for part in last["content"]:
        is_question = part["type"] == "text" and part["text"] == own_text and not replaced
        replaced |= is_question
        content.append({"type": "text", "text": question} if is_question else part)
    if not replaced:
        content.append({"type": "text", "text": question})
    asked = {**last, "content": content}
    messages = tuple(asked if message is last else message for message in sample.messages)
    return replace(sample, messages=messages)


def _last_of_user(sample: Sample) -> dict[str, Any]:
    return next(message for message in reversed(sample.messages) if message["role"] == "user")


def _with_media(source: FileSource) -> Iterator[int]:
    for index in range(len(source)):
        outline = source.outline(index)
        if outline.images or outline.videos:
            yield index


def _other_question(source: FileSource, index: int) -> str | None:
    """The question of the next problem with as many images and videos and another question."""
    sample = source.outline(index)
    question, media = question_of(sample), (len(sample.images), len(sample.videos))
    for step in range(1, min(len(source), SEARCHED)):
        other = source.outline((index + step) % len(source))
        if (len(other.images), len(other.videos)) == media and question_of(other) not in ("", question):
            return question_of(other)
    return None


def _look(loaded: LoadedModel, source: FileSource, index: int, settings: AttentionSettings) -> Seen:
    """The maps of a problem and of its control, which are computed in prompts of one length."""
    sample = source[index]
    question = settings.control_question or _other_question(source, index)
    control = None if question is None else with_question(sample, question)
    both = [sample] if control is None else [sample, control]
    maps, *others = sink_attention(loaded, both, settings.data.pixel_limits())
    return Seen(
        sample=sample,
        pictures=[item.picture for item in maps],
        maps=_by_layer(maps, settings.head),
        control=control,
        control_maps=_by_layer(others[0], settings.head) if others else {},
    )


def _by_layer(maps: Sequence[SinkMap], head: int | None) -> dict[str, list[Tensor]]:
    """The maps of each layer and their mean, of one head or averaged over heads."""
    by_layer = {str(layer): [item.at(layer, head) for item in maps] for layer in maps[0].layers}
    return {**by_layer, MEAN: [item.mean(head) for item in maps]}


def _numbers(seen: Seen) -> dict[str, Any]:
    """The numbers of a problem, for JSON."""
    return {
        "id": seen.sample.id,
        "question": question_of(seen.sample),
        "control_question": None if seen.control is None else question_of(seen.control),
        "pictures": [
            {
                "kind": picture.kind,
                "index": picture.index,
                "temporal_patch": picture.patch,
                "rows": picture.shape[0],
                "columns": picture.shape[1],
            }
            for picture in seen.pictures
        ],
        "visual_tokens": sum(picture.shape[0] * picture.shape[1] for picture in seen.pictures),
        "layers": {layer: _numbers_of_layer(seen, layer) for layer in seen.maps},
    }


def _numbers_of_layer(seen: Seen, layer: str) -> dict[str, Any]:
    maps = seen.maps[layer]
    weights_N = torch.cat([grid.flatten() for grid in maps]).double()
    entropy = float(torch.special.entr(weights_N).sum())
    numbers: dict[str, Any] = {
        "entropy": entropy,
        "entropy_share": entropy / math.log(len(weights_N)) if len(weights_N) > 1 else None,
        "top_cells": _top_cells(maps),
        "control_difference": seen.difference(layer),
        "maps": [[[float(f"{value:.4g}") for value in row] for row in grid.tolist()] for grid in maps],
    }
    if seen.boxes:
        size = seen.sample.images[0].size
        numbers["in_boxes"] = mass_in_boxes(maps[0], seen.boxes, size)
        numbers["even"] = float(cells_in_boxes(maps[0].shape, seen.boxes, size).double().mean())
    return numbers


def _top_cells(maps: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The cells with the most attention: number of the picture, row, column, weight."""
    cells = [
        {"picture": number, "row": row, "column": column, "weight": value}
        for number, grid in enumerate(maps)
        for row, values in enumerate(grid.tolist())
        for column, value in enumerate(values)
    ]
    return sorted(cells, key=lambda cell: -cell["weight"])[:TOP]


def _row(seen: Seen, numbers: Mapping[str, Any]) -> list[Any]:
    """The row of a problem in the table."""
    first, mean = numbers["layers"][seen.first], numbers["layers"][MEAN]
    entropies = [
        f"{layer['entropy']:.2f}"
        + ("" if layer["entropy_share"] is None else f" ({100 * layer['entropy_share']:.0f} %)")
        for layer in (first, mean)
    ]
    boxes = [first.get("in_boxes"), first.get("even")]
    return [seen.sample.id, numbers["visual_tokens"], *entropies, *boxes, seen.largest_difference]


def _notes(seen: Sequence[Seen]) -> tuple[str, ...]:
    """How to read the maps, and what is missing."""
    controlled = [problem for problem in seen if problem.control is not None]
    equal = sum(problem.largest_difference == 0 for problem in controlled)
    notes = []
    if controlled:
        notes.append(
            f"Another question about the same images changes nothing, at any layer, in {equal} of "
            f"{counted(len(controlled), 'problem')} (difference exactly 0)."
            + (" Sink and visual tokens precede the question there." if equal else "")
        )
    if len(controlled) < len(seen):
        notes.append(
            f"{counted(len(seen) - len(controlled), 'problem')} without a control: no other problem with as "
            "many images has another question. Set control_question."
        )
    if any(len(problem.pictures) > PICTURES for problem in seen):
        notes.append(f"The figure has the {PICTURES} images or frames of a problem with the most attention.")
    if sum(len(_most_attended(problem)) for problem in seen) > MOST_ROWS:
        notes.append(f"The figure has the first {MOST_ROWS} images or frames.")
    notes.append("Attention shows what the module reads, not what decides the answer.")
    return tuple(notes)


def draw_attention(seen: Sequence[Seen], temporal: int = 2) -> Figure:
    """One row per image or temporal patch: the picture, its grid, and the maps on the picture.

    Args:
        seen: the problems.
        temporal: number of frames in a temporal patch.
    """
    rows = [(problem, number) for problem in seen for number in _most_attended(problem)][:MOST_ROWS]
    figure, panels = new_figure(len(rows), 5, width=2.3, height=2.5)
    for line, (problem, number) in enumerate(rows):
        _draw_row(figure, panels[5 * line : 5 * line + 5], problem, number, temporal)
    return figure


def _most_attended(seen: Seen) -> list[int]:
    """Numbers of the pictures with the most attention, in the order of the prompt."""
    masses = [float(grid.sum()) for grid in seen.maps[MEAN]]
    return sorted(sorted(range(len(masses)), key=lambda number: -masses[number])[:PICTURES])


def _draw_row(figure: Figure, panels: Sequence[Axes], seen: Seen, number: int, temporal: int) -> None:
    """Draw a picture: all maps of a problem have one scale, so that they can be compared."""
    layer = seen.first
    image = _image_of(seen.sample, seen.pictures[number], temporal)
    grids = [seen.maps[layer], seen.maps[layer], seen.maps[MEAN], seen.control_maps.get(layer)]
    highest = max(float(grid.max()) for maps in grids if maps is not None for grid in maps)
    titles = [
        _label(seen, seen.pictures[number], temporal),
        f"layer {layer}, tokens",
        f"layer {layer}",
        "mean of layers",
        _label_of_control(seen),
    ]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_axis_off()
        panel.set_title(plain_text(title), fontsize=7, fontweight="normal")
    panels[0].imshow(np.asarray(image), extent=_extent(image))
    _draw_boxes(panels[0], seen, image)
    scale: dict[str, Any] = {"cmap": COLOURS, "vmin": 0.0, "vmax": highest, "interpolation": "nearest"}
    shown_maps = None
    for column, maps in enumerate(grids, start=1):
        if maps is None:
            continue
        opacity = 1.0
        if column > 1:  # in grey below the map, so that all colours are attention
            panels[column].imshow(np.asarray(image.convert("L")), extent=_extent(image), cmap="gray")
            opacity = 0.6
        shown_maps = panels[column].imshow(
            maps[number].float().numpy(), extent=_extent(image), alpha=opacity, **scale
        )
        if column == 1:
            tokens_map = shown_maps
    figure.colorbar(tokens_map, ax=panels[-1], fraction=0.05, label="share of attention").ax.grid(False)


def _extent(image: Image.Image) -> tuple[float, float, float, float]:
    """The area of a picture: the origin is its upper left corner."""
    return (0.0, float(image.width), float(image.height), 0.0)


def _draw_boxes(panel: Axes, seen: Seen, image: Image.Image) -> None:
    if not seen.boxes:
        return
    scale = image.width / seen.sample.images[0].width
    for left, top, right, bottom in seen.boxes:
        corner, width, height = (scale * left, scale * top), scale * (right - left), scale * (bottom - top)
        for colour, line in ((PAPER, 2.5), ("black", 1.0)):  # visible on any image
            panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _image_of(sample: Sample, picture: Picture, temporal: int) -> Image.Image:
    """The image, or the first frame of the temporal patch, small enough for a figure."""
    if picture.kind == "image":
        image = sample.images[picture.index]
    else:
        frames = sample.videos[picture.index].frames
        image = frames[min(picture.patch * temporal, len(frames) - 1)]
    image = image.convert("RGB")
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image


def _label(seen: Seen, picture: Picture, temporal: int) -> str:
    """The question, and which image or frames the row is about, if there are several."""
    question = _wrapped(question_of(seen.sample))
    if len(seen.pictures) == 1:
        return question
    if picture.kind == "image":
        return f"{question}\nimage {picture.index + 1}"
    frames = len(seen.sample.videos[picture.index].frames)
    first, last = picture.patch * temporal + 1, min((picture.patch + 1) * temporal, frames)
    which = f"frame {first}" if last <= first else f"frames {first}-{last}"
    return f"{question}\nvideo {picture.index + 1}, {which}"


def _label_of_control(seen: Seen) -> str:
    """The other question, and how much it changes the maps."""
    if seen.control is None:
        return "no other question"
    question, largest = _wrapped(question_of(seen.control)), seen.largest_difference
    size = "0 at all layers" if largest == 0 else f"up to {largest:.1e}, of all layers"
    return f"{question}\nlayer {seen.first}; difference {size}"


def _wrapped(text: str) -> str:
    return fill(shortened(text, 3 * WIDTH), WIDTH)
