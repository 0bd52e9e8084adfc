"""Prompts as tensors: a sample under a view, encoded by the model's own processor.

Shape suffixes: F frames, P prompt length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vicur.bad_rows import RowProblem
from vicur.compat import video_processor_options
from vicur.data.special_tokens import QuotedTokens
from vicur.data.views import Shown
from vicur.media.pixels import PixelLimits, VisualSizes
from vicur.media.video import Video
from vicur.models.load import LoadedModel
from vicur.models.stored import refused

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
"""The model's own `get_rope_index`: from token types and grids to 3-D rotary positions."""


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as tensors, on the CPU.

    Attributes:
        input_ids: tokens, with media placeholders expanded.
        token_types: 0 text, 1 image, 2 video.
        positions: temporal, height and width rotary position of each token.
        media: keyword arguments for the model: pixel values and grids; empty without media.
    """

    input_ids: Int[Tensor, " P"]
    token_types: Int[Tensor, " P"]
    positions: Int[Tensor, "3 P"]
    media: dict[str, Tensor]

    @classmethod
    def of_text(cls, ids: Sequence[int]) -> EncodedPrompt:
        """A prompt of text tokens."""
        count = len(ids)
        positions = torch.arange(count).expand(3, -1)
        return cls(torch.tensor(ids), torch.zeros(count, dtype=torch.long), positions, {})

    @property
    def next_position(self) -> int:
        """The rotary position of the first response token."""
        return int(self.positions.max()) + 1

    def __len__(self) -> int:
        return len(self.input_ids)


class PromptEncoder:
    """Renders chats with a model's own processor. Special tokens inside their texts are encoded as text.

    Args:
        processor: a Qwen3-VL style processor (chat template, tokenizer, image processor).
        rope_index: `get_rope_index` of the model that will read the prompts.
        limits: limits on the pixels of images and frames; by default the checkpoint's own.
    """

    def __init__(self, processor: Any, rope_index: RopeIndex, limits: PixelLimits | None = None) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.rope_index = rope_index
        self.sizes = VisualSizes(processor, limits or PixelLimits())
        self._quoted = QuotedTokens(self.tokenizer)
        self._token_type = {processor.image_token_id: 1, processor.video_token_id: 2}

    @classmethod
    def of(cls, loaded: LoadedModel, limits: PixelLimits | None = None) -> PromptEncoder:
        """An encoder of a model's prompts, by the processor and the positions of that model."""
        return cls(loaded.processor, loaded.model.model.get_rope_index, limits)

    @classmethod
    def for_lengths(cls, processor: Any, limits: PixelLimits) -> PromptEncoder:
        """An encoder that renders and measures prompts, without a model: it cannot `encode` them."""
        return cls(processor, _no_positions, limits)

    def render(self, prompt: Shown) -> str:
        """The prompt as text, up to where the response begins, with a single placeholder for each medium."""
        text, mark = self._render(prompt)
        return text if mark is None else text.replace(mark, "")

    def text_ids(self, prompt: Shown) -> list[int]:
        """The tokens of `render`, with a single placeholder for each medium."""
        text, mark = self._render(prompt)
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids if mark is None else [token for part in self._quoted.restored(ids, mark) for token in part]

    def process(
        self, contents: Sequence[Shown], **media: Any
    ) -> tuple[Any, list[list[int]], list[list[int]]]:
        """Call the processor.

        Args:
            contents: the prompts.
            media: images, videos, and the processor's keyword arguments for them.

        Returns:
            its output, and for each prompt the token ids and the token types (0 text, 1 image, 2 video).

        Raises:
            ValueError: from the processor, when placeholders and media do not match.
        """
        rendered = [self._render(content) for content in contents]
        batch = self.processor(text=[text for text, _ in rendered], **media)
        ids: list[list[int]] = []
        types: list[list[int]] = []
        prompts = zip(batch["input_ids"], batch["mm_token_type_ids"], rendered, strict=True)
        for prompt_ids, prompt_types, (_, mark) in prompts:
            if mark is not None:
                prompt_ids, prompt_types = self._restored(prompt_ids, prompt_types, mark)
            ids.append(list(prompt_ids))
            types.append(list(prompt_types))
        return batch, ids, types

    def encode(self, contents: Sequence[Shown]) -> list[EncodedPrompt]:
        """Encode several prompts in one call of the processor.

        Raises:
            ValueError: from the processor, when placeholders and media do not match.
        """
        images = [image for content in contents for image in content.images]
        videos = [video for content in contents for video in content.videos]
        options: dict[str, Any] = {}
        if images:
            options["images_kwargs"] = {"size": self.sizes.image_bounds}
        if videos:
            options["videos_kwargs"] = self.video_options(videos)
        frames = [self._frames(video) for video in videos]
        batch, all_ids, all_types = self.process(
            contents, images=images or None, videos=frames or None, **options
        )
        media = _split_media(batch, contents)
        prompts = []
        for ids, types, prompt_media in zip(all_ids, all_types, media, strict=True):
            input_ids, token_types = torch.tensor(ids), torch.tensor(types)
            grids = {k: v for k, v in prompt_media.items() if k.endswith("grid_thw")}
            positions = self._positions(input_ids, token_types, grids)
            prompts.append(EncodedPrompt(input_ids, token_types, positions, prompt_media))
        return prompts

    def _render(self, prompt: Shown) -> tuple[str, str | None]:
        """The prompt with special tokens inside its texts broken by a mark, and the mark if there is one.

        Raises:
            RowProblem: the chat template refuses the messages.
        """
        messages, mark = self._quoted.marked(prompt.messages)
        roles = ", ".join(str(message["role"]) for message in messages)
        try:
            with refused(f"the model's chat template refuses a chat of {roles}"):
                text = self.processor.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
        except ValueError as error:
            raise RowProblem("malformed", str(error)) from error
        return text, mark

    def _restored(self, ids: Sequence[int], types: Sequence[int], mark: str) -> tuple[list[int], list[int]]:
        """Token ids and types of a marked prompt as they are without the mark."""
        new_ids: list[int] = []
        new_types: list[int] = []
        for part in self._quoted.restored(ids, mark):
            # Media are special tokens, each a part of its own; every token of a text is of type 0.
            kind = self._token_type.get(part[0], 0)
            new_ids += part
            new_types += [kind] * len(part)
        assert new_types.count(0) - len(new_ids) == list(types).count(0) - len(ids), "no medium was lost"
        return new_ids, new_types

    def video_options(self, videos: Sequence[Video]) -> dict[str, Any]:
        """Processor settings that keep frames as they are, at their true times."""
        options = video_processor_options(self.processor.video_processor)
        options["video_metadata"] = [
            {
                "total_num_frames": len(video.frames) if video.numbers is None else video.numbers[-1] + 1,
                "fps": video.frames_per_second,
                "frames_indices": list(range(len(video.frames)) if video.numbers is None else video.numbers),
            }
            for video in videos
        ]
        return options

    def _frames(self, video: Video) -> UInt8[Tensor, "F 3 height width"]:
        """The frames at the size at which the model sees them, resized as the processor does it."""
        frames = torch.stack([functional.pil_to_tensor(frame.convert("RGB")) for frame in video.frames])
        size = list(self.sizes.frame_size(len(video.frames), video.size))
        return functional.resize(frames, size, InterpolationMode.BICUBIC, antialias=True)

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


def _no_positions(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("an encoder made by `for_lengths` has no model to compute positions")


def _split_media(batch: Any, contents: Sequence[Shown]) -> list[dict[str, Tensor]]:
    """Give each prompt its own part of the processor's concatenated pixel values and grids."""
    media: list[dict[str, Tensor]] = [{} for _ in contents]
    kinds = (
        ("pixel_values", "image_grid_thw", [len(content.images) for content in contents]),
        ("pixel_values_videos", "video_grid_thw", [len(content.videos) for content in contents]),
    )
    for pixels_key, grid_key, counts in kinds:
        if sum(counts) == 0:
            continue
        pixels, grids = torch.as_tensor(batch[pixels_key]), torch.as_tensor(batch[grid_key])
        first_grid = first_patch = 0
        for prompt_media, count in zip(media, counts, strict=True):
            if count == 0:
                continue
            grid = grids[first_grid : first_grid + count]
            patches = int(grid.prod(-1).sum())
            prompt_media[pixels_key] = pixels[first_patch : first_patch + patches]
            prompt_media[grid_key] = grid
            first_grid, first_patch = first_grid + count, first_patch + patches
    return media
