"""Prompts as vLLM takes them after its own processing: the trainer's tokens and the trainer's pixels.

vLLM could process images and text itself, but then two processors with two sets of limits would have to
agree. It gets the tensors of `EncodedPrompt` instead, so the engine sees what the trainer sees.

The frames of a video are passed as images: the vision tower attends within each group of frames that it
merges in time, so a group is the same function of its pixels either way, and its tokens are in one piece,
without the timestamps between groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicur.encoding.prompts import EncodedPrompt
from vicur.vllm.salts import Medium, prompt_digest

IMAGE, VIDEO = 1, 2
"""Token types in `EncodedPrompt.token_types`."""


@dataclass(frozen=True)
class Picture:
    """An image or a group of frames of a prompt.

    Attributes:
        medium: its place and a digest of its pixels.
        pixels: its patches, (patches, patch size).
        grid: time (1), height and width in patches.
    """

    medium: Medium
    pixels: Tensor
    grid: Tensor


def pictures_of(prompt: EncodedPrompt, merge: int) -> list[Picture]:
    """The images and groups of frames of a prompt, in the order of their tokens.

    Args:
        prompt: the prompt.
        merge: side, in patches, of a visual token.

    Raises:
        ValueError: the visual tokens are not those of the images.
    """
    kinds = ((IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos", "video_grid_thw"))
    pictures = [
        picture
        for kind, pixels, grids in kinds
        if pixels in prompt.media
        for picture in _pictures(prompt.token_types == kind, prompt.media[pixels], prompt.media[grids], merge)
    ]
    return sorted(pictures, key=lambda picture: picture.medium.offset)


def _pictures(is_kind_P: Tensor, pixels: Tensor, grids: Tensor, merge: int) -> Iterator[Picture]:
    positions = is_kind_P.nonzero()[:, 0].tolist()
    token = patch = 0
    for frames, height, width in grids.tolist():
        count = height * width // merge**2
        for _ in range(frames):
            places = positions[token : token + count]
            if len(places) < count or places[-1] - places[0] != count - 1:
                raise ValueError("The visual tokens of a prompt do not fit its images.")
            patches = pixels[patch : patch + height * width]
            yield Picture(
                Medium(places[0], count, _digest(patches, (height, width))),
                patches,
                torch.tensor([1, height, width]),
            )
            token, patch = token + count, patch + height * width
    if token != len(positions):
        raise ValueError("A prompt has more visual tokens than its images.")


def _digest(pixels: Tensor, size: tuple[int, int]) -> str:
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    digest.update(pixels.contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def salt_of(prompt: EncodedPrompt, pictures: list[Picture], version: int) -> str:
    """Salt of a prompt in the prefix cache; other weights have other salts.

    Args:
        prompt: the prompt.
        pictures: its images and groups of frames.
        version: number of times that the engine's weights have changed.
    """
    media = [picture.medium for picture in pictures]
    return f"{version}:{prompt_digest(prompt.input_ids.tolist(), media)}"


def engine_input(prompt: EncodedPrompt, merge: int, version: int) -> Any:
    """A prompt as an input of vLLM's engine.

    Args:
        prompt: the prompt.
        merge: side, in patches, of a visual token.
        version: number of times that the engine's weights have changed.
    """
    from vllm.inputs import mm_input, tokens_input
    from vllm.multimodal.inputs import PlaceholderRange

    ids, pictures = prompt.input_ids.tolist(), pictures_of(prompt, merge)
    salt = salt_of(prompt, pictures, version)
    if not pictures:
        return tokens_input(ids, cache_salt=salt)
    media = [picture.medium for picture in pictures]
    return mm_input(
        ids,
        processed(pictures),
        {"image": [medium.digest for medium in media]},
        {"image": [PlaceholderRange(medium.offset, medium.length) for medium in media]},
        cache_salt=salt,
    )


def processed(pictures: Sequence[Picture]) -> Any:
    """Images as vLLM's processor would hand them to the model: `MultiModalKwargsItems`."""
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    grids = torch.stack([picture.grid for picture in pictures])
    pixels = torch.cat([picture.pixels for picture in pictures])
    fields = {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
        "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }
    features = BatchFeature({"pixel_values": pixels, "image_grid_thw": grids})
    return MultiModalKwargsItems.from_hf_inputs(features, fields)


def request_body(prompt: EncodedPrompt, merge: int, version: int) -> dict[str, Any]:
    """A prompt as the body of a request to a server's `/inference/v1/generate`.

    Args:
        prompt, merge, version: as in `engine_input`.
    """
    pictures = pictures_of(prompt, merge)
    body: dict[str, Any] = {
        "token_ids": prompt.input_ids.tolist(),
        "cache_salt": salt_of(prompt, pictures, version),
    }
    if pictures:
        from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

        media = [picture.medium for picture in pictures]
        body["features"] = {
            "mm_hashes": {"image": [medium.digest for medium in media]},
            "mm_placeholders": {"image": [{"offset": m.offset, "length": m.length} for m in media]},
            "kwargs_data": {"image": [encode_mm_kwargs_item(item) for item in processed(pictures)["image"]]},
        }
    return body
