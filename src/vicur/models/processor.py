"""Checks a checkpoint's processor before it is used: its chat template, its sizes, an image and a video."""

from __future__ import annotations

import functools
import json
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLProcessor

from vicur.compat import video_processor_options
from vicur.isolated import isolated_command
from vicur.models.stored import refused

_WORKER = Path(__file__).with_name("template_worker.py")
_START_LIMIT = 120.0
"""Time limit in seconds for importing transformers: a second, but much longer from a cold network disk."""
_SECONDS = 10.0
"""Time limit for rendering the chats below, in seconds. A template takes a few milliseconds."""
_MEMORY = 2 * 2**30
"""Maximum address space for rendering them, in bytes."""
_CHARACTERS = 1_000_000
"""Maximum length of a rendered chat below, in characters."""
_LARGEST_SHORTEST_EDGE = 2**24
"""Largest lower bound on the pixels of an image, to which smaller images are enlarged."""

_IMAGE: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What is shown?"}]
_VIDEO: list[dict[str, Any]] = [{"type": "video"}, {"type": "text", "text": "What happens? " * 300}]
_CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": _IMAGE}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": _VIDEO}],
    [
        {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
        {"role": "user", "content": [*_IMAGE, *_IMAGE]},
    ],
]


def check_template(processor: Any, name: str) -> None:
    """Render a few short chats in a process of its own, which is killed at its limits.

    Args:
        processor: the processor with the chat template.
        name: the checkpoint, for messages.

    Raises:
        ValueError: the template fails, does not end, or makes too much of a short chat.
    """
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise ValueError(f"The processor of {name} has no chat template that is a text.")
    variables = json.dumps(processor.tokenizer.special_tokens_map, default=str)
    fault = _template_fault(template, processor.image_token, variables)
    if fault is not None:
        raise ValueError(f"The chat template of {name} {fault}.")


@functools.cache
def _template_fault(template: str, placeholder: str, variables: str) -> str | None:
    """What is wrong with a template, in words that follow its name; None if it renders every chat.

    Args:
        template: the template.
        placeholder: the text that it must write for an image.
        variables: the variables that transformers gives to templates, as JSON.
    """
    question = {
        "template": template,
        "placeholder": placeholder,
        "chats": _CHATS,
        "variables": json.loads(variables),
        "seconds": _SECONDS,
        "memory": _MEMORY,
        "characters": _CHARACTERS,
    }
    try:
        done = subprocess.run(
            isolated_command(_WORKER),
            input=json.dumps(question).encode() + b"\n",
            capture_output=True,
            timeout=_START_LIMIT + _SECONDS,
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {_START_LIMIT:g} seconds for a short chat"
    if done.returncode == -signal.SIGALRM:
        return f"takes more than {_SECONDS:g} seconds for a short chat"
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
        return f"cannot be checked: the process that renders it ended with {reason[0][:300]}"
    fault: str | None = json.loads(done.stdout)["fault"]
    return fault


def check_processor(processor: Any, config: Any, name: str) -> None:
    """Check the sizes of a processor, and process one image and one video of the smallest size.

    Args:
        processor: the processor of the checkpoint.
        config: the model's configuration.
        name: the checkpoint, for messages.

    Raises:
        ValueError: a value cannot be used, differs from the model's, or the processor raises any error.
    """
    if not isinstance(processor, Qwen3VLProcessor):
        raise ValueError(
            f"The processor of {name} is a {type(processor).__name__}, and the model needs a "
            "Qwen3VLProcessor (processor_class in its preprocessor_config.json)."
        )
    for kind in ("image", "video"):
        part = vars(processor)[f"{kind}_processor"]
        with refused(f"The {kind} processor of {name} cannot be used"):
            _check_sizes(part, config.vision_config)
            _check_colours(part)
    with refused(f"The processor of {name} cannot process an image and a video"):
        _try(processor, config)


def _check_sizes(part: Any, vision: Any) -> None:
    sizes = (
        ("patch_size", part.patch_size, vision.patch_size),
        ("merge_size", part.merge_size, vision.spatial_merge_size),
        ("temporal_patch_size", part.temporal_patch_size, vision.temporal_patch_size),
    )
    for key, value, needed in sizes:
        if value != needed:
            raise ValueError(f"its {key} is {value!r}, and the model's is {needed}.")
    low, high = part.size["shortest_edge"], part.size["longest_edge"]
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
        raise ValueError(
            "its size must have a shortest_edge and a longest_edge, in pixels, with the first not above the "
            f"second, not {low!r} and {high!r}."
        )
    if low > _LARGEST_SHORTEST_EDGE:
        raise ValueError(
            f"its size enlarges every image to {low:,} pixels (shortest_edge); the most is "
            f"{_LARGEST_SHORTEST_EDGE:,}."
        )


def _check_colours(part: Any) -> None:
    for key, values in (("image_mean", part.image_mean), ("image_std", part.image_std)):
        numbers = isinstance(values, list | tuple) and len(values) == 3 and all(map(_is_number, values))
        if not numbers or (key == "image_std" and min(values) <= 0):
            raise ValueError(f"its {key} must be three numbers, one for each colour, not {values!r}.")
    if not _is_number(part.rescale_factor) or part.rescale_factor <= 0:
        raise ValueError(f"its rescale_factor must be a number above 0, not {part.rescale_factor!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _try(processor: Any, config: Any) -> None:
    """Process an image and a video that are one visual token each.

    Raises:
        ValueError: the tokens of the image are not those of the model.
    """
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    start, end = processor.vision_start_token, processor.vision_end_token
    options = video_processor_options(processor.video_processor)
    frames = vision.temporal_patch_size
    options["video_metadata"] = [
        {"total_num_frames": frames, "fps": 1.0, "frames_indices": list(range(frames))}
    ]
    batch = processor(
        text=[f"{start}{processor.image_token}{end}{start}{processor.video_token}{end}"],
        images=[np.zeros((side, side, 3), dtype=np.uint8)],
        videos=[torch.zeros(frames, 3, side, side, dtype=torch.uint8)],
        images_kwargs={"size": {"shortest_edge": side**2, "longest_edge": side**2}},
        videos_kwargs=options,
    )
    ids = list(batch["input_ids"][0])
    for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
        if ids.count(token) != 1:
            raise ValueError(f"the model's {kind}_token_id is {token}, which is not the tokenizer's.")
    if not torch.isfinite(torch.as_tensor(np.asarray(batch["pixel_values"]))).all():
        raise ValueError("it makes pixels that are not finite.")
