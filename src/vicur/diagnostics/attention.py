"""Attention of the recovery module's sink, on the grids of images and video frames.

Sink and visual tokens attend only to the tokens before them: where an image precedes the question, its map
cannot depend on the question.

Shape suffixes: H heads, R rows, C columns, N visual tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.media.pixels import PixelLimits
from vicur.models.load import LoadedModel
from vicur.models.recovery import RecoveryObserver

Box = tuple[float, float, float, float]
Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")
"""Kinds of media; token type 1 is an image's and 2 a video's."""


@dataclass(frozen=True)
class Picture:
    """An image, or one temporal patch of a video, as the model sees it: a grid of visual tokens.

    Attributes:
        kind: kind of the medium.
        index: number of the medium among the images or the videos of its problem, from 0.
        patch: number of the temporal patch, from 0; 0 for an image.
        shape: rows and columns of the grid.
    """

    kind: Kind
    index: int
    patch: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class SinkMap:
    """The share of the sink's attention that one picture gets.

    Attributes:
        picture: the picture.
        layers: for each recovery layer, the attention of every head on every visual token. Over all pictures
            of a prompt, that of a head at a layer sums to 1.
    """

    picture: Picture
    layers: Mapping[int, Float[Tensor, "H R C"]]

    def at(self, layer: int, head: int | None = None) -> Float[Tensor, "R C"]:
        """The map of a layer: of one head, or averaged over heads."""
        return self.layers[layer].mean(0) if head is None else self.layers[layer][head]

    def mean(self, head: int | None = None) -> Float[Tensor, "R C"]:
        """The map averaged over all recovery layers."""
        return torch.stack([self.at(layer, head) for layer in self.layers]).mean(0)


@torch.no_grad()
def sink_attention(
    loaded: LoadedModel, samples: Sequence[Sample], limits: PixelLimits | None = None
) -> list[list[SinkMap]]:
    """The attention of the sink of each sample, on all its images and videos (ViCuR figure 11).

    Args:
        loaded: a model with cue recovery.
        samples: problems with at least one image or video.
        limits: pixel limits of images and frames; by default the checkpoint's own.

    Returns:
        for each sample its maps, in the order in which the pictures are in the prompt.

    Raises:
        ValueError: the model has no recovery module, or a sample has neither image nor video.
    """
    if loaded.recovery is None:
        raise ValueError("The model has no cue recovery module, so there is no sink attention to show.")
    for sample in samples:
        if not sample.images and not sample.videos:
            raise ValueError(f"Problem {sample.id} has neither an image nor a video to attend to.")
    encoder = PromptEncoder.of(loaded, limits)
    merge = loaded.model.config.vision_config.spatial_merge_size
    prompts = [encoder.encode([Plain().show(sample)])[0] for sample in samples]
    # One length, with padding in each: products of other shapes round differently, and so prompts with the
    # same beginning would have maps that are only almost equal.
    length = 1 + max(map(len, prompts), default=0)
    all_maps = []
    for prompt in prompts:
        inputs = build_sequences([prompt], [()], pad_id=loaded.vocabulary.pad_id, pad_to=length)
        with RecoveryObserver(loaded.recovery, keep_attention=True) as observer:
            loaded.policy(inputs.to(loaded.device).model_inputs(loaded.dtype), lambda hidden, head: None)
        seen = {layer: weights[0] for layer, weights in observer.attention.items()}
        all_maps.append(
            [_map(picture, seen, first) for picture, first in _with_starts(pictures_of(prompt, merge))]
        )
    return all_maps


def pictures_of(prompt: EncodedPrompt, merge: int) -> list[Picture]:
    """The images and temporal patches of videos whose tokens a prompt holds, in their order.

    Args:
        prompt: the prompt.
        merge: number of patches, along each side, that are merged into one visual token.
    """
    waiting = {kind: _pictures(kind, prompt, merge) for kind in KINDS}
    types = prompt.token_types[prompt.token_types > 0].tolist()
    pictures: list[Picture] = []
    position = 0
    while position < len(types):
        pictures.append(next(waiting[KINDS[types[position] - 1]]))
        position += pictures[-1].shape[0] * pictures[-1].shape[1]
    assert position == len(types), "the grids of a prompt hold exactly its visual tokens"
    return pictures


def _pictures(kind: Kind, prompt: EncodedPrompt, merge: int) -> Iterator[Picture]:
    grids = prompt.media.get(f"{kind}_grid_thw")
    for index, (patches, height, width) in enumerate([] if grids is None else grids.tolist()):
        for patch in range(patches):
            yield Picture(kind, index, patch, (height // merge, width // merge))


def _with_starts(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, int]]:
    """Each picture with the number of visual tokens before it."""
    first = 0
    for picture in pictures:
        yield picture, first
        first += picture.shape[0] * picture.shape[1]


def _map(picture: Picture, seen: Mapping[int, Float[Tensor, "H N"]], first: int) -> SinkMap:
    rows, columns = picture.shape
    tokens = slice(first, first + rows * columns)
    return SinkMap(
        picture, {layer: weights[:, tokens].unflatten(-1, (rows, columns)) for layer, weights in seen.items()}
    )


def mass_in_boxes(attention: Float[Tensor, "R C"], boxes: Sequence[Box], size: tuple[int, int]) -> float:
    """Share of an attention map, 0-1, that falls on cells whose centre is in a box.

    Args:
        attention: attention weights that sum to 1.
        boxes: (left, top, right, bottom) in pixels.
        size: (width, height) of the image in pixels.
    """
    return float(attention[cells_in_boxes(attention.shape, boxes, size)].sum())


def cells_in_boxes(shape: Sequence[int], boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Which cells of a grid (rows, columns) have their centre in a box, as a mask of that shape.

    Args:
        shape: rows and columns.
        boxes: (left, top, right, bottom) in pixels.
        size: (width, height) of the image in pixels.
    """
    rows, columns = shape
    y = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) * size[1] / rows
    x = (torch.arange(columns, dtype=torch.float64)[None] + 0.5) * size[0] / columns
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        inside |= (left <= x) & (x < right) & (top <= y) & (y < bottom)
    return inside
