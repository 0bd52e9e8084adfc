"""Attention of the recovery module's sink, on the image's grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.models.load import LoadedModel
from vicur.models.recovery import RecoveryObserver

Box = tuple[float, float, float, float]


@torch.no_grad()
def sink_attention(
    loaded: LoadedModel, samples: Sequence[Sample]
) -> list[dict[int, Float[Tensor, "rows columns"]]]:
    """The attention map of the sink, for each sample with one image and each recovery layer.

    A map is averaged over heads and sums to 1; one entry is one merged visual token.

    Raises:
        ValueError: the model has no recovery module, or a sample has not exactly one image.
    """
    if loaded.recovery is None:
        raise ValueError("This model has no cue recovery module, so no sink attention to show.")
    encoder = PromptEncoder.of(loaded)
    merge = loaded.model.config.vision_config.spatial_merge_size
    maps = []
    for sample in samples:
        if len(sample.images) != 1 or sample.videos:
            raise ValueError(f"Sample {sample.id} has not exactly one image.")
        prompt = encoder.encode([Plain().show(sample)])[0]
        inputs = build_sequences([prompt], [()], pad_id=loaded.vocabulary.pad_id).to(loaded.device)
        with RecoveryObserver(loaded.recovery, keep_attention=True) as observer:
            loaded.policy(inputs.model_inputs(loaded.dtype), lambda hidden, head: None)
        _, height, width = prompt.media["image_grid_thw"][0].tolist()
        shape = (height // merge, width // merge)
        maps.append({layer: seen[0].reshape(shape) for layer, seen in observer.attention.items()})
    return maps


def mass_in_boxes(
    attention: Float[Tensor, "rows columns"], boxes: Sequence[Box], size: tuple[int, int]
) -> float:
    """Share of an attention map, 0-1, that falls on cells whose centre is in a box.

    Args:
        attention: attention weights that sum to 1.
        boxes: (left, top, right, bottom) in pixels.
        size: (width, height) of the image in pixels.
    """
    rows, columns = attention.shape
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            x = (column + 0.5) * size[0] / columns
            y = (row + 0.5) * size[1] / rows
            if any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes):
                total += float(attention[row, column])
    return total
