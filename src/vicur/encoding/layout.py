"""Prompts and responses laid out for one forward pass.

A sequence is the prompt once, then some of the responses to it. Each response attends to the prompt and
to itself, and its positions continue those of the prompt, as if the other responses were not there:

    prompt prompt prompt | a a a | b b | pad

With one response it is an ordinary sequence. The response tokens of a call are flattened in
the order of their responses; tensors over them carry the suffix N.

Shape suffixes: B sequences, L sequence length, P prompt length, N response tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vicur.encoding.prompts import EncodedPrompt


@dataclass(frozen=True)
class Sequences:
    """Prompts and responses laid out for one forward pass.

    Attributes:
        input_ids: the tokens, padded.
        token_types: 0 text, 1 image, 2 video; responses and padding are 0.
        position_ids: text position, then temporal, height and width.
        attention_mask: (B, L) where every sequence has at most one response, else (B, 1, L, L),
            true where the token of the third axis may attend to that of the fourth.
        media: pixel values and grids of all sequences, concatenated in order.
        predicts_sequence, predicts_column: sequence and position of the hidden state that predicts each
            response token: the prompt's last token for a response's first, else the token before.
        response_ids: the response tokens, flattened.
        response_index: index of the response that each of them belongs to, counted over all sequences.
    """

    input_ids: Int[Tensor, "B L"]
    token_types: Int[Tensor, "B L"]
    position_ids: Int[Tensor, "4 B L"]
    attention_mask: Bool[Tensor, "B L"] | Bool[Tensor, "B 1 L L"]
    media: dict[str, Tensor]
    predicts_sequence: Int[Tensor, " N"]
    predicts_column: Int[Tensor, " N"]
    response_ids: Int[Tensor, " N"]
    response_index: Int[Tensor, " N"]

    def model_inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Keyword arguments for a Qwen3-VL model.

        Args:
            dtype: dtype of the model. A 4-D mask is converted to it and added to the attention scores; of a
                boolean mask, eager attention would add the zeros and ones.
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
        return hidden_BLD[self.predicts_sequence, self.predicts_column]

    def to(self, device: torch.device | str) -> Sequences:
        """The same sequences on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "media"}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        media = {name: tensor.to(device, non_blocking=True) for name, tensor in self.media.items()}
        return replace(self, **moved, media=media)


def build_sequences(
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[Int[Tensor, " _"]]],
    *,
    pad_id: int,
    padding_side: Literal["left", "right"] = "right",
    pad_to: int | None = None,
) -> Sequences:
    """Lay out each prompt with its responses in one sequence.

    Args:
        prompts: one for each sequence. A prompt may occur several times with different responses: the
            repeated-prompt layout.
        responses: for each prompt, the token ids of its responses; there may be none (prefill).
        pad_id: token id that fills up short sequences; it is never attended to.
        padding_side: side on which short sequences are padded.
        pad_to: minimum length of the padded sequences.

    Raises:
        ValueError: a response is empty: it has no token to score.
    """
    if any(len(response) == 0 for group in responses for response in group):
        raise ValueError("A response has no token; even a refusal to answer ends with a stop token.")
    laid_out = [_lay_out(prompt, group) for prompt, group in zip(prompts, responses, strict=True)]
    lengths = [len(sequence.input_ids) for sequence in laid_out]
    length = max(max(lengths), pad_to or 0)
    starts = [length - unpadded if padding_side == "left" else 0 for unpadded in lengths]

    def padded(name: str, fill: int) -> Tensor:
        tensors = [getattr(sequence, name) for sequence in laid_out]
        full = tensors[0].new_full((*tensors[0].shape[:-1], len(tensors), length), fill)
        for i, (tensor, start) in enumerate(zip(tensors, starts, strict=True)):
            full[..., i, start : start + tensor.shape[-1]] = tensor
        return full

    flat = [response for group in responses for response in group]
    none = torch.zeros(0, dtype=torch.long)
    predicts = [start + sequence.predicts for start, sequence in zip(starts, laid_out, strict=True)]
    return Sequences(
        input_ids=padded("input_ids", pad_id),
        token_types=padded("token_types", 0),
        position_ids=padded("position_ids", 0),
        attention_mask=_attention_mask(padded("part", -1)),
        media=_join_media(prompts),
        predicts_sequence=_repeat(torch.arange(len(predicts)), [len(columns) for columns in predicts]),
        predicts_column=torch.cat([none, *predicts]),
        response_ids=torch.cat([none, *flat]),
        response_index=_repeat(torch.arange(len(flat)), [len(response) for response in flat]),
    )


@dataclass(frozen=True)
class _Sequence:
    """One sequence before padding.

    Attributes:
        input_ids, token_types: (L,).
        position_ids: (4, L).
        part: (L,), 0 in the prompt and 1, 2, ... in the responses.
        predicts: (T of all responses,), the columns whose hidden states predict response tokens.
    """

    input_ids: Tensor
    token_types: Tensor
    position_ids: Tensor
    part: Tensor
    predicts: Tensor


def _lay_out(prompt: EncodedPrompt, responses: Sequence[Tensor]) -> _Sequence:
    """The prompt, then its responses; the positions of each response continue those of the prompt."""
    lengths = [len(response) for response in responses]
    prompt_length, total = len(prompt), sum(lengths)
    columns = prompt_length + torch.arange(total)
    firsts = torch.tensor(lengths, dtype=torch.long).cumsum(0) - torch.tensor(lengths, dtype=torch.long)
    offsets = torch.arange(total) - _repeat(firsts, lengths)
    text_positions = torch.cat([torch.arange(prompt_length), prompt_length + offsets])
    rotary = torch.cat([prompt.positions, (prompt.next_position + offsets).expand(3, -1)], -1)
    return _Sequence(
        input_ids=torch.cat([prompt.input_ids, *responses]),
        token_types=torch.cat([prompt.token_types, torch.zeros(total, dtype=torch.long)]),
        position_ids=torch.cat([text_positions[None], rotary]),
        part=torch.cat(
            [torch.zeros(prompt_length, dtype=torch.long), _repeat(torch.arange(len(lengths)), lengths) + 1]
        ),
        # A response's first token is predicted by the prompt's last, the others by the one before.
        predicts=torch.where(offsets == 0, prompt_length - 1, columns - 1),
    )


def _repeat(values: Tensor, counts: list[int]) -> Tensor:
    return values.repeat_interleave(torch.tensor(counts, dtype=torch.long))


def responses_per_sequence(prompt_length: int, response_lengths: Sequence[int], hidden_size: int) -> int:
    """Number of responses to put in one sequence with their prompt, at the least estimated cost.

    Sharing saves prompts. But attention under a mask costs the square of a sequence's length, so long
    responses are cheaper in sequences of their own. Cost of a sequence of L tokens: L (6 D + L), the ratio of
    a decoder layer's matrix products (24 D^2 L) to its attention (4 D L^2).

    Args:
        prompt_length: length of the prompt in tokens.
        response_lengths: lengths of all responses to the prompt, in tokens.
        hidden_size: hidden size D of the model.
    """

    def cost(width: int) -> int:
        total = 0
        for first in range(0, len(response_lengths), width):
            length = prompt_length + sum(response_lengths[first : first + width])
            total += length * (6 * hidden_size + length)
        return total

    return min(range(len(response_lengths), 0, -1), key=cost, default=1)


def _attention_mask(part_BL: Tensor) -> Tensor:
    """2-D where plain causal attention is enough, else 4-D so that responses do not see each other."""
    real = part_BL >= 0
    if int(part_BL.max()) <= 1:
        return real
    length = part_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = part_BL[:, :, None], part_BL[:, None, :]
    visible = (real[:, None, :]) & ((key == 0) | (key == query))
    # Padding attends only to itself: a softmax over no position at all would be NaN.
    itself = torch.eye(length, dtype=torch.bool)
    return ((visible & causal & real[:, :, None]) | (itself & ~real[:, :, None]))[:, None]


def _join_media(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.media)
    return {
        name: torch.cat([prompt.media[name] for prompt in prompts if name in prompt.media]) for name in names
    }
