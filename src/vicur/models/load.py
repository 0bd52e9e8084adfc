"""Loading students and teachers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen3VLConfig
from transformers import Qwen3VLForConditionalGeneration as StockModel
from transformers.utils import logging as transformers_logging

from vicur.models.recovery import CueRecovery, OutputInit
from vicur.models.student import ViCuRQwen3VLConfig, ViCuRQwen3VLForConditionalGeneration
from vicur.models.vocabulary import Vocabulary

PACKAGED = "vicur:"
"""Prefix of checkpoints that ship inside the package, e.g. "vicur:tiny-student"."""


@dataclass(frozen=True)
class RecoveryConfig:
    """The cue recovery module that a student gets."""

    enabled: bool = False
    """Whether the student has the module."""
    interval: int = 5
    """It acts after decoder layers i with i % interval == 0."""
    output_init: OutputInit = "zero"
    """"zero": a fresh student equals its base exactly. "normal": N(0, 0.02), as transformers would."""
    learning_rate: float | None = None
    """Of the module's parameters; the optimizer's if not given. With a zero start and 1e-6 the
    module stays nearly inert, so it usually needs a larger one."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"recovery.interval must be at least 1, not {self.interval}.")


@dataclass(frozen=True)
class StudentConfig:
    """The model that learns."""

    model: str = "vicur:tiny-student"
    """Checkpoint folder, hub id, or "vicur:NAME" for one that ships with the package."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Cue recovery."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to talk to it."""

    model: Any
    processor: Any
    vocabulary: Vocabulary

    @classmethod
    def of(cls, model: Any, processor: Any) -> LoadedModel:
        """Bundle a model with its processor."""
        return cls(model, processor, Vocabulary.of(model, processor))

    @property
    def recovery(self) -> CueRecovery | None:
        """The cue recovery module, if the model has one."""
        if isinstance(self.model, ViCuRQwen3VLForConditionalGeneration):
            return self.model.recovery
        return None

    def save(self, folder: Path) -> None:
        """Write model and processor in transformers' own layout; the folder appears whole or not at all.

        Raises:
            OSError: it cannot be written, or already holds something.
        """
        partial = folder.with_name(folder.name + ".partial")
        try:
            self.model.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            partial.replace(folder)
        except SafetensorError as error:
            raise OSError(f"Checkpoint {folder} cannot be written: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_packaged(folder: str) -> Path:
    """A folder of data that ships inside the package."""
    return Path(str(resources.files("vicur") / folder))


def resolve_checkpoint(name: str) -> str:
    """The folder of a packaged checkpoint; any other name is returned as it is.

    Raises:
        ValueError: there is no packaged checkpoint of that name, or no such folder.
    """
    if name.startswith(PACKAGED):
        root = resolve_packaged("checkpoints")
        folder = root / name.removeprefix(PACKAGED)
        if not folder.is_dir():
            known = ", ".join(sorted(f"{PACKAGED}{p.name}" for p in root.iterdir() if p.is_dir()))
            raise ValueError(f"No checkpoint {name!r} ships with vicur; there are: {known}.")
        return str(folder)
    path = Path(name).expanduser()
    # A hub id is "owner/name"; what starts in a folder that is there is meant as a path.
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local and not (path / "config.json").is_file():
        raise ValueError(f"Model folder {name} does not exist or has no config.json.")
    return str(path) if looks_local else name


def load_model(name: str) -> LoadedModel:
    """Load a checkpoint in float32, with or without cue recovery as it was saved.

    Raises:
        ValueError: the checkpoint lacks weights of its model or has others, each case named.
    """
    path = resolve_checkpoint(name)
    _silence_loading_report()
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    _check_keys(name, missing=info["missing_keys"], unexpected=info["unexpected_keys"])
    return LoadedModel.of(model.to(default_device()), AutoProcessor.from_pretrained(path))


def load_student(config: StudentConfig) -> LoadedModel:
    """Load the student; with recovery enabled, a base checkpoint gets a fresh module.

    The fresh module's weights depend on torch's random state.

    Raises:
        ValueError: as `load_model`; or the checkpoint has a recovery module and it is not enabled.
    """
    path = resolve_checkpoint(config.model)
    saved = AutoConfig.from_pretrained(path)
    has_recovery = isinstance(saved, ViCuRQwen3VLConfig)
    if has_recovery and not config.recovery.enabled:
        raise ValueError(
            f"{config.model} has a cue recovery module. Set student.recovery.enabled=true to train "
            "on with it."
        )
    if has_recovery and config.recovery.interval != saved.recovery_interval:
        raise ValueError(
            f"{config.model} has cue recovery with an interval of {saved.recovery_interval}; set "
            f"student.recovery.interval to that, not {config.recovery.interval}."
        )
    if has_recovery or not config.recovery.enabled:
        return load_model(config.model)
    augmented = ViCuRQwen3VLConfig.from_dict(
        _settings(saved)
        | {
            "recovery_interval": config.recovery.interval,
            "recovery_output_init": config.recovery.output_init,
        }
    )
    _silence_loading_report()
    model, info = ViCuRQwen3VLForConditionalGeneration.from_pretrained(
        path, config=augmented, dtype=torch.float32, output_loading_info=True
    )
    missing = [key for key in info["missing_keys"] if not key.startswith("recovery.")]
    _check_keys(config.model, missing=missing, unexpected=info["unexpected_keys"])
    return LoadedModel.of(model.to(default_device()), AutoProcessor.from_pretrained(path))


def stock_copy(loaded: LoadedModel) -> LoadedModel:
    """A copy of the model as it is now, without its recovery module."""
    stock_config = Qwen3VLConfig.from_dict(_settings(loaded.model.config))
    with torch.device(loaded.model.device):
        copy = StockModel(stock_config)
    weights = {k: v for k, v in loaded.model.state_dict().items() if not k.startswith("recovery.")}
    copy.load_state_dict(weights)
    copy.to(loaded.model.dtype)
    copy.generation_config = loaded.model.generation_config
    return LoadedModel(copy, loaded.processor, loaded.vocabulary)


def checkpoint_activations(model: Any) -> None:
    """Keep only the inputs of decoder layers for the backward pass, and compute their insides again."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.20
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def _settings(config: Any) -> dict[str, Any]:
    """A configuration's own settings, without what names its class or belongs to recovery."""
    named = {"model_type", "architectures", "recovery_interval", "recovery_output_init"}
    return {key: value for key, value in config.to_dict().items() if key not in named}


def _check_keys(name: str, *, missing: Any, unexpected: Any) -> None:
    for what, keys in (("lacks", sorted(missing)), ("has unexpected", sorted(unexpected))):
        if keys:
            listed = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise ValueError(f"Checkpoint {name} {what} weights: {listed}.")


def _silence_loading_report() -> None:
    """For the whole process: transformers prints a table of missing keys and a bar for every load;
    here the keys are checked, and named in an error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
