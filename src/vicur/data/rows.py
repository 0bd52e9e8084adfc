"""From what a view shows, and responses, to tensors.

`PromptEncoder` turns chats and media into `EncodedPrompt`s; `build_rows` lays prompts and
responses out for one forward pass.

A row is the prompt once, then some of its sibling responses. Each response attends to the prompt
and to itself, and its positions go on where the prompt's end, as if its siblings were not there:

    prompt prompt prompt | a a a | b b | pad

With one response a row is an ordinary sequence. The response tokens of a call are flattened in
the order of their responses; tensors over them carry the suffix N.

Shape suffixes: B rows, L row length, P prompt length, N response tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vicur.data.views import Shown

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
"""The model's own `get_rope_index`: from token types and grids to 3-D rotary positions."""


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as tensors, on the CPU.

    Attributes:
        input_ids: tokens, media placeholders expanded.
        token_types: 0 text, 1 image, 2 video.
        positions: temporal, height and width rotary position of each token.
        media: keyword arguments for the model: pixel values and grids, where there are media.
    """

    input_ids: Int[Tensor, " P"]
    token_types: Int[Tensor, " P"]
    positions: Int[Tensor, "3 P"]
    media: dict[str, Tensor]

    @property
    def next_position(self) -> int:
        """The rotary position of the first response token."""
        return int(self.positions.max()) + 1

    def __len__(self) -> int:
        return len(self.input_ids)


class PromptEncoder:
    """Renders chats with a model's own processor.

    Args:
        processor: a Qwen3-VL style processor (chat template, tokenizer, image processor).
        rope_index: `get_rope_index` of the model that will read the prompts.
    """

    def __init__(self, processor: Any, rope_index: RopeIndex) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.rope_index = rope_index

    def render(self, shown: Shown) -> str:
        """The prompt as text, media as single placeholders, up to where the response begins."""
        return self.processor.apply_chat_template(
            list(shown.messages), tokenize=False, add_generation_prompt=True
        )

    def encode(self, shown: Sequence[Shown]) -> list[EncodedPrompt]:
        """Encode several prompts in one call of the processor.

        Raises:
            ValueError: from the processor, when placeholders and media do not match.
        """
        images = [image for one in shown for image in one.images]
        videos = [list(video) for one in shown for video in one.videos]
        batch = self.processor(
            text=[self.render(one) for one in shown],
            images=images or None,
            videos=videos or None,
            **({"videos_kwargs": {"do_sample_frames": False}} if videos else {}),
        )
        media = _split_media(batch, shown)
        prompts = []
        for ids, types, own_media in zip(batch["input_ids"], batch["mm_token_type_ids"], media, strict=True):
            input_ids, token_types = torch.tensor(ids), torch.tensor(types)
            grids = {k: v for k, v in own_media.items() if k.endswith("grid_thw")}
            positions = self._positions(input_ids, token_types, grids)
            prompts.append(EncodedPrompt(input_ids, token_types, positions, own_media))
        return prompts

    def _positions(self, ids: Tensor, types: Tensor, grids: dict[str, Tensor]) -> Tensor:
        if not grids:
            return torch.arange(len(ids)).expand(3, -1)
        positions, _ = self.rope_index(
            ids[None],
            image_grid_thw=grids.get("image_grid_thw"),
            video_grid_thw=grids.get("video_grid_thw"),
            attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=types[None],
        )
        return positions[:, 0]


def _split_media(batch: Any, shown: Sequence[Shown]) -> list[dict[str, Tensor]]:
    """Give each prompt its own part of the processor's concatenated pixel values and grids."""
    media: list[dict[str, Tensor]] = [{} for _ in shown]
    kinds = (
        ("pixel_values", "image_grid_thw", [len(one.images) for one in shown]),
        ("pixel_values_videos", "video_grid_thw", [len(one.videos) for one in shown]),
    )
    for pixels_key, grid_key, counts in kinds:
        if sum(counts) == 0:
            continue
        pixels, grids = torch.as_tensor(batch[pixels_key]), torch.as_tensor(batch[grid_key])
        first_grid = first_patch = 0
        for own, count in zip(media, counts, strict=True):
            if count == 0:
                continue
            grid = grids[first_grid : first_grid + count]
            patches = int(grid.prod(-1).sum())
            own[pixels_key] = pixels[first_patch : first_patch + patches]
            own[grid_key] = grid
            first_grid, first_patch = first_grid + count, first_patch + patches
    return media


@dataclass(frozen=True)
class Rows:
    """Prompts and responses laid out for one forward pass.

    Attributes:
        input_ids: the tokens, padded.
        token_types: 0 text, 1 image, 2 video; responses and padding are 0.
        position_ids: text position, then temporal, height and width.
        attention_mask: (B, L) where every row has at most one response, else (B, 1, L, L),
            true where the row's token may attend to the column's.
        media: pixel values and grids of all rows, concatenated in order.
        predicts_row, predicts_column: where the hidden state stands that predicts each response
            token: the prompt's last token for a response's first, else the token before.
        response_ids: the response tokens, flattened.
        response_index: to which response each of them belongs, counted over all rows.
    """

    input_ids: Int[Tensor, "B L"]
    token_types: Int[Tensor, "B L"]
    position_ids: Int[Tensor, "4 B L"]
    attention_mask: Bool[Tensor, "B L"] | Bool[Tensor, "B 1 L L"]
    media: dict[str, Tensor]
    predicts_row: Int[Tensor, " N"]
    predicts_column: Int[Tensor, " N"]
    response_ids: Int[Tensor, " N"]
    response_index: Int[Tensor, " N"]

    def model_inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Keyword arguments for a Qwen3-VL model.

        Args:
            dtype: the model's. A 4-D mask is added to the attention scores in it: of a boolean one,
                eager attention would add the zeros and ones.
        """
        mask = self.attention_mask
        if mask.ndim == 4:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return {
            "input_ids": self.input_ids,
            "mm_token_type_ids": self.token_types,
            "position_ids": self.position_ids,
            "attention_mask": mask,
            **self.media,
        }

    def predicting(self, hidden_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "N D"]:
        """The hidden states that predict the response tokens, in their order."""
        return hidden_BLD[self.predicts_row, self.predicts_column]

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "media"}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        media = {name: tensor.to(device, non_blocking=True) for name, tensor in self.media.items()}
        return replace(self, **moved, media=media)


def build_rows(
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[Int[Tensor, " _"]]],
    *,
    pad_id: int,
    padding_side: Literal["left", "right"] = "right",
    pad_to: int | None = None,
) -> Rows:
    """Lay out each prompt with its responses in one row.

    Args:
        prompts: one a row. A prompt may be given several times with different responses: the
            repeated-prompt layout.
        responses: for each prompt, the token ids of its responses; none is allowed (prefill).
        pad_id: token id that fills up short rows; it is never attended to.
        padding_side: where it stands.
        pad_to: row length, if it shall be more than the longest row's.

    Raises:
        ValueError: a response is empty: it has no token that could be scored.
    """
    if any(len(response) == 0 for siblings in responses for response in siblings):
        raise ValueError("A response has no token; even a refusal to answer ends with a stop token.")
    lengths = [
        len(prompt) + sum(map(len, siblings)) for prompt, siblings in zip(prompts, responses, strict=True)
    ]
    length = max(max(lengths), pad_to or 0)
    shape = (len(prompts), length)
    input_ids = torch.full(shape, pad_id)
    token_types = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(4, *shape, dtype=torch.long)
    part = torch.full(shape, -1)  # -1 padding, 0 prompt, 1... the siblings
    rows, columns, ids, owners = [], [], [], []
    response_count = 0
    for row, (prompt, siblings) in enumerate(zip(prompts, responses, strict=True)):
        start = length - lengths[row] if padding_side == "left" else 0
        prompt_end = start + len(prompt)
        input_ids[row, start:prompt_end] = prompt.input_ids
        token_types[row, start:prompt_end] = prompt.token_types
        position_ids[0, row, start:prompt_end] = torch.arange(len(prompt))
        position_ids[1:, row, start:prompt_end] = prompt.positions
        part[row, start:prompt_end] = 0
        cursor = prompt_end
        for sibling, response in enumerate(siblings):
            count, end = len(response), cursor + len(response)
            offsets = torch.arange(count)
            input_ids[row, cursor:end] = response
            position_ids[0, row, cursor:end] = len(prompt) + offsets
            position_ids[1:, row, cursor:end] = prompt.next_position + offsets
            part[row, cursor:end] = sibling + 1
            rows.append(torch.full((count,), row))
            columns.append(torch.cat([torch.tensor([prompt_end - 1]), cursor + offsets[:-1]]))
            ids.append(response)
            owners.append(torch.full((count,), response_count))
            cursor, response_count = end, response_count + 1
    none = torch.zeros(0, dtype=torch.long)
    return Rows(
        input_ids=input_ids,
        token_types=token_types,
        position_ids=position_ids,
        attention_mask=_attention_mask(part),
        media=_join_media(prompts),
        predicts_row=torch.cat([none, *rows]),
        predicts_column=torch.cat([none, *columns]),
        response_ids=torch.cat([none, *ids]),
        response_index=torch.cat([none, *owners]),
    )


def _attention_mask(part_BL: Tensor) -> Tensor:
    """2-D where plain causal attention does, else 4-D so that siblings do not see each other."""
    real = part_BL >= 0
    if int(part_BL.max()) <= 1:
        return real
    length = part_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = part_BL[:, :, None], part_BL[:, None, :]
    visible = (real[:, None, :]) & ((key == 0) | (key == query))
    # Padding attends to itself alone: a row of the softmax without any column would be NaN.
    itself = torch.eye(length, dtype=torch.bool)
    return ((visible & causal & real[:, :, None]) | (itself & ~real[:, :, None]))[:, None]


def _join_media(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.media)
    return {
        name: torch.cat([prompt.media[name] for prompt in prompts if name in prompt.media]) for name in names
    }
