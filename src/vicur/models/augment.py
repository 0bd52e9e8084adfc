"""Adds cue recovery to a checkpoint: counts the new parameters and writes the student."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vicur.models.checkpoints import AUGMENTED, STOCK, Dtype, has_recovery, kind_of, read_config
from vicur.models.load import LoadedModel, RecoveryConfig, augmented_config
from vicur.models.student import layers_with_recovery
from vicur.settings.section import PathText, Seed, section


@section
class InitSettings:
    """The settings of `vicur init`."""

    base: PathText
    """Base checkpoint: a folder, a hub id, "vicur:NAME", or, for a dry run, a config.json."""
    output: PathText | None = None
    """Folder for the new checkpoint; it must be empty or not exist."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """The cue recovery module."""
    dtype: Dtype | None = None
    """Dtype of the new checkpoint; null for that of the base."""
    seed: Seed = 0
    """Seed for initialising the new weights."""


@dataclass(frozen=True)
class Addition:
    """Number of parameters that cue recovery adds to a model.

    Attributes:
        base: number of parameters without cue recovery.
        layers: number of parameters of the attention after each decoder layer, by the layer's index.
        norms: number of parameters of the two norms that all layers share.
    """

    base: int
    layers: dict[int, int]
    norms: int

    @property
    def added(self) -> int:
        """Total number of new parameters."""
        return sum(self.layers.values()) + self.norms

    @property
    def total(self) -> int:
        """Number of parameters of the augmented model."""
        return self.base + self.added

    @property
    def share(self) -> float:
        """Share of new parameters in the augmented model, 0-1."""
        return self.added / self.total

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain types, for JSON."""
        return {
            "base": self.base,
            "layers": {str(layer): count for layer, count in self.layers.items()},
            "norms": self.norms,
            "added": self.added,
            "total": self.total,
            "share_percent": round(100 * self.share, 4),
        }


def addition_to(base: Any, recovery: RecoveryConfig) -> Addition:
    """The parameters that cue recovery would add to a model; no weights are created or read.

    Args:
        base: a transformers configuration.
        recovery: settings of the module.

    Raises:
        ValueError: the model has no such layer, or has the module already.
    """
    if has_recovery(base):
        raise ValueError(f"The model already has cue recovery, after layers {layers_with_recovery(base)}.")
    kind = kind_of(base)
    with torch.device("meta"):
        stock = STOCK[kind][1](base)
        augmented = AUGMENTED[kind][1](augmented_config(base, recovery))
    module = augmented.recovery
    norms = [module.query_norm, module.visual_norm]
    return Addition(
        base=_count(stock),
        layers={int(layer): _count(attention) for layer, attention in module.layers.items()},
        norms=sum(map(_count, norms)),
    )


def describe(base: str, recovery: RecoveryConfig) -> Addition:
    """The result of `addition_to` for a checkpoint; only its config.json is read.

    Args:
        base: folder, hub id, "vicur:NAME", or the path of a config.json.
        recovery: settings of the module.
    """
    return addition_to(read_config(base), recovery)


def save_augmented(loaded: LoadedModel, base: str, recovery: RecoveryConfig, folder: Path) -> None:
    """Write a student with a new recovery module, and a model card.

    Raises:
        OSError: the folder is not empty, or cannot be written.
    """
    loaded.model.config.recovery_is_fresh = True
    parameters = _count(loaded.model)
    new = _count(loaded.model.recovery)
    card = _CARD.format(
        base=base,
        sink=_SINKS[loaded.model.config.recovery_sink],
        layers=", ".join(map(str, layers_with_recovery(loaded.model.config))),
        init=recovery.output_init,
        state="equals its base in every logit" if recovery.output_init == "zero" else "differs from its base",
        new=f"{new:,}",
        share=f"{100 * new / parameters:.2f}",
        total=f"{parameters:,}",
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    loaded.save(folder, card)


def _count(module: Any) -> int:
    """Number of parameters of a module; tied ones count once."""
    assert isinstance(module, nn.Module)
    return sum(parameter.numel() for parameter in module.parameters())


_SINKS = {
    "first": "The first token of a prompt",
    "question": "The last token of the user's turn",
}
_CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {base}
tags: [vicur, cue-recovery]
---
# {base} with cue recovery

{sink} gathers visual evidence by cross-attention during prefill, after the decoder
layers {layers} (ViCuR, arXiv 2606.05718, section 3.2). The module is new and untrained: its output
projections start as `{init}`, so the model {state}. It adds {new} parameters, {share} % of {total}.

```python
import vicur  # registers the model with transformers
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("PATH")
```

Without `import vicur`, transformers does not know the model type, and the stock Qwen3-VL class would drop the
module's weights. A prompt must be prefilled in one piece: no chunked prefill, no prefix cache, and no image
in a later turn on top of a cache.
"""
