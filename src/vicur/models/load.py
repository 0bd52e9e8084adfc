"""Loads students and other models together with their processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vicur import distributed
from vicur.files import RECIPE_FILE, write_folder
from vicur.models.adapters import (
    LoRAConfig,
    adapter_active,
    adapters_off,
    add_adapter,
    has_adapters,
    merged_weights,
    merging,
    save_adapter,
)
from vicur.models.checkpoints import (
    AUGMENTED,
    STOCK,
    Dtype,
    has_recovery,
    kind_of,
    read_config,
    read_model,
    read_processor,
    stock_settings,
)
from vicur.models.devices import choose_device
from vicur.models.policy import Policy
from vicur.models.quantised import check_quantisable, quantise
from vicur.models.recovery import TURN_TOKENS, CueRecovery, OutputInit, Sink
from vicur.models.sharding import stored_tensors, whole_shape, whole_weight, whole_weights
from vicur.models.student import INTERVAL, layers_with_recovery
from vicur.models.vocabulary import Vocabulary
from vicur.settings.section import Count, NonNegative, PathText, Text, section


@section
class RecoveryConfig:
    """The student's cue recovery module."""

    enabled: bool | None = None
    """Whether the student has the cue recovery module; null to follow its checkpoint."""
    interval: Count | None = None
    """The module acts after the decoder layers i with i % interval == 0; null for the layers in the
    checkpoint's configuration, or an interval of 5 for a fresh module."""
    layers: list[int] | None = None
    """Indices of the decoder layers after which the module acts, instead of an interval."""
    sink: Sink | None = None
    """Token that gathers the visual evidence: "first", the first token of the prompt, as in the paper, or
    "question", the last token of the user's turn, which depends on the question also where the image comes
    first. null for that of the checkpoint, or "first" for a fresh module."""
    output_init: OutputInit = "zero"
    """Initialisation of the module's output projection. "zero": a fresh student equals its base exactly.
    "normal": N(0, 0.02), the default of transformers."""
    learning_rate: NonNegative | None = None
    """Learning rate of the module's parameters; null for optimizer.learning_rate. With output_init=zero and
    1e-6 the module hardly moves, so it usually needs a higher one."""
    max_start_kl: NonNegative | None = 0.1
    """Nats per token by which a fresh module may change the student's predictions, as the mean KL of the
    student with the module to the student without it; a run whose preflight finds more is stopped. null for
    no bound. A trained module has none."""

    @property
    def is_described(self) -> bool:
        """Whether anything but `enabled` was set."""
        return any(x is not None for x in (self.interval, self.layers, self.sink, self.learning_rate))

    def layers_of(self, config: Any) -> list[int]:
        """The decoder layers of a model after which the module acts."""
        if self.layers is not None:
            return sorted(self.layers)
        if self.interval is None and has_recovery(config):
            return layers_with_recovery(config)
        return list(range(0, config.text_config.num_hidden_layers, self.interval or INTERVAL))


@section
class StudentConfig:
    """The model that learns."""

    model: PathText = "vicur:tiny-student"
    """Checkpoint of the student: a folder, a hub id, or "vicur:NAME" for one that ships with the package."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """Cue recovery."""
    dtype: Dtype = "float32"
    """Compute dtype. The optimizer updates float32 master weights in either case, because an update of 1e-6
    would be rounded away in bfloat16."""
    freeze_vision: bool = False
    """Whether to freeze the vision tower. The published runs train it."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters (and the cue recovery module, if enabled) instead of all weights."""
    view: Text = "plain"
    """What the student is shown in rollouts and updates: plain, or a view with less to see (docs/views.md):
    degraded(ratio), masked(probability, patch), augmented(strength), blank, frames(count). Evaluations show
    the plain problem."""

    def __post_init__(self) -> None:
        if self.freeze_vision and self.lora is not None and self.lora.vision:
            raise ValueError(
                "student.freeze_vision=true leaves the adapters of student.lora.vision=true nothing to do."
            )


@dataclass(frozen=True)
class LoadedModel:
    """A model with its policy, processor and vocabulary.

    Attributes:
        policy: runs the model, whose weights may be sharded.
        processor: the model's processor.
        vocabulary: the tokens that are sampled and scored.
        mode: makes the context in which the model is run. Several loaded models may share one model: a
            self-teacher can be the student with adapters and recovery off.
        has_fresh_recovery: whether it has a recovery module that was never trained.
    """

    policy: Policy
    processor: Any
    vocabulary: Vocabulary
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    has_fresh_recovery: bool = False

    @classmethod
    def of(cls, model: Any, processor: Any) -> LoadedModel:
        """Bundle a model with its processor."""
        return cls(Policy(model), processor, Vocabulary.of(model, processor))

    @property
    def model(self) -> Any:
        """The Qwen3-VL model for conditional generation. Where its weights are sharded, only the policy may
        run it."""
        return self.policy.model

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.policy.dtype

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return self.policy.device

    @property
    def recovery(self) -> CueRecovery | None:
        """The cue recovery module, if the model has one."""
        return self.model.recovery if has_recovery(self.model.config) else None

    def current_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as a checkpoint names them, one after another, where they are stored.

        They are in the compute dtype, an adapter merged. Every rank gets all weights: all ranks must use up
        the iterator.
        """
        self.policy.reshard()
        tensors = dict(stored_tensors(self.model))
        factors = {name: whole_weight(tensor) for name, tensor in tensors.items() if "lora_" in name}
        merged = merging(self.model, factors)
        for name, tensor in tensors.items():
            if name not in factors:
                weight = merged(name, whole_weight(tensor))
                yield name.replace(".base_layer", ""), weight.to(self.dtype)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """The shapes of `current_weights`, by name in the same order."""
        self.policy.reshard()
        return {
            name.replace(".base_layer", ""): whole_shape(tensor)
            for name, tensor in stored_tensors(self.model)
            if "lora_" not in name
        }

    def save(self, folder: Path, card: str | None = None, recipe: str | None = None) -> None:
        """Write model and processor in transformers' layout; the folder appears complete or not at all.

        A LoRA student is written with its adapter merged; `adapter/` holds the adapter alone. With several
        ranks all must call this; the main rank writes.

        Args:
            folder: folder to write to.
            card: text of the model card, written to README.md.
            recipe: the recipe of its training as YAML, written to recipe.yaml: evaluations take its system
                prompt and image limits from there.

        Raises:
            OSError: the folder cannot be written, or is not empty.
        """
        self.policy.reshard()
        weights = whole_weights(self.model, self.dtype)
        distributed.main_only(lambda: self._write(folder, weights, card, recipe))

    def _write(self, folder: Path, weights: dict[str, Tensor], card: str | None, recipe: str | None) -> None:
        def write(partial: Path) -> None:
            if has_adapters(self.model):
                self.model.save_pretrained(partial, state_dict=merged_weights(self.model, weights))
                save_adapter(self.model, weights, partial / "adapter", base=self.model.config._name_or_path)
            else:
                self.model.save_pretrained(partial, state_dict=weights)
            self.model.config.dtype = self.dtype  # transformers writes that of the stored weights
            self.model.config.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            if card is not None:
                (partial / "README.md").write_text(card, encoding="utf-8")
            if recipe is not None:
                (partial / RECIPE_FILE).write_text(recipe, encoding="utf-8")

        check_free(folder)
        try:
            write_folder(folder, write)
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written: {error}.") from error


def check_free(folder: Path) -> None:
    """Make sure that a checkpoint can be written to a folder.

    Raises:
        OSError: it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder} already exists. Choose another folder or remove it.")


def load_model(name: str, dtype: Dtype | None = "float32", device: torch.device | None = None) -> LoadedModel:
    """Load a checkpoint, with cue recovery if it was saved with it.

    Args:
        name: folder, hub id or "vicur:NAME".
        dtype: compute dtype; None for the one it was saved in.
        device: device of the model; by default a GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: the checkpoint is missing or broken, lacks weights or has unexpected ones.
    """
    model = read_model(name, dtype=dtype)
    return LoadedModel.of(model.to(device or choose_device()), read_processor(name))


def load_student(config: StudentConfig, device: torch.device | None = None) -> LoadedModel:
    """Load the student; with recovery enabled, a base checkpoint gets a new module.

    The initial weights of a new module or adapter depend on torch's random state.

    Args:
        config: settings of the student.
        device: as in `load_model`.

    Raises:
        ValueError: as in `load_model`; or the checkpoint has a recovery module, and the settings disable it
            or place it after other layers; or the base cannot be quantised here.
    """
    quantised = config.lora is not None and config.lora.quantize == "nf4"
    if quantised:
        distributed.main_only(check_quantisable)
    saved = read_config(config.model)
    if has_recovery(saved):
        _check_same_recovery(config, saved)
    elif config.recovery.enabled is None and config.recovery.is_described:
        raise ValueError(
            f"student.recovery has settings, but {config.model} has no cue recovery and gets none. Set "
            "student.recovery.enabled=true, or remove the other settings of student.recovery."
        )
    is_augmented = bool(config.recovery.enabled) and not has_recovery(saved)
    settings = None
    if is_augmented:
        settings = augmented_config(saved, config.recovery, read_processor(config.model).tokenizer)
    model = read_model(config.model, settings, config.dtype)
    device = device or choose_device()
    if quantised:
        quantise(model, device)
    loaded = LoadedModel.of(model.to(device), read_processor(config.model))
    if config.lora is not None:
        add_adapter(loaded.model, config.lora)
    if config.freeze_vision:
        loaded.model.model.visual.requires_grad_(False)
    return replace(loaded, has_fresh_recovery=is_augmented or _was_fresh(model))


def _was_fresh(model: Any) -> bool:
    """Whether a model's recovery module was saved untrained. What is saved of the model from now on is not
    marked so, because it is loaded to be trained."""
    was_fresh = has_recovery(model.config) and bool(model.config.recovery_is_fresh)
    if was_fresh:
        model.config.recovery_is_fresh = False
    return was_fresh


def augmented_config(base: Any, recovery: RecoveryConfig, tokenizer: Any = None) -> Any:
    """The configuration of a base with cue recovery.

    Args:
        base: configuration of the base.
        recovery: settings of the module.
        tokenizer: tokenizer of the model, for the sink "question".

    Raises:
        ValueError: the model has no such layer, or the tokenizer has no tokens around a turn.
    """
    added: dict[str, Any] = {
        "recovery_layers": recovery.layers_of(base),
        "recovery_sink": recovery.sink or "first",
        "recovery_output_init": recovery.output_init,
    }
    if recovery.sink == "question" and tokenizer is not None:
        added["recovery_turn_ids"] = _turn_ids(tokenizer)
    config = AUGMENTED[kind_of(base)][0].from_dict(stock_settings(base) | added)  # type: ignore[attr-defined]
    layers_with_recovery(config)
    return config


def _turn_ids(tokenizer: Any) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in TURN_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            "student.recovery.sink=question needs a tokenizer with the tokens "
            f"{' and '.join(TURN_TOKENS)} around a turn; this one has no {missing[0]}. Set "
            "student.recovery.sink=first."
        )
    return [int(vocabulary[token]) for token in TURN_TOKENS]


def _check_same_recovery(config: StudentConfig, saved: Any) -> None:
    if config.recovery.enabled is False:
        raise ValueError(
            f"{config.model} has a cue recovery module, but student.recovery.enabled=false. Remove the "
            "setting to keep training the module, or start from a checkpoint without it."
        )
    saved_layers, layers = layers_with_recovery(saved), config.recovery.layers_of(saved)
    if layers != saved_layers:
        raise ValueError(
            f"{config.model} has cue recovery after layers {saved_layers}, but the settings place it after "
            f"{layers}. Remove student.recovery.interval and student.recovery.layers."
        )
    if config.recovery.sink not in (None, saved.recovery_sink):
        raise ValueError(
            f"The recovery module of {config.model} gathers in the sink {saved.recovery_sink}, not "
            f"{config.recovery.sink}. Remove student.recovery.sink."
        )


def copy_of(loaded: LoadedModel, *, with_recovery: bool, device: torch.device | None = None) -> LoadedModel:
    """A copy of the model's current weights, with or without its recovery module, without adapters.

    Args:
        loaded: the model, in full precision or half precision, not quantised.
        with_recovery: whether the copy has the recovery module too, if the model has one.
        device: device of the copy; by default that of the model.
    """
    config = loaded.model.config
    keep = with_recovery and has_recovery(config)
    config_class, model_class = (AUGMENTED if keep else STOCK)[kind_of(config)]
    settings = config.to_dict() if keep else stock_settings(config)
    with torch.device(device or loaded.device):
        # In the final dtype from the start: casting afterwards would also round the rotary frequencies.
        copied = model_class._from_config(  # type: ignore[attr-defined]
            config_class.from_dict(settings),  # type: ignore[attr-defined]
            dtype=loaded.dtype,
        )
    weights = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in loaded.model.state_dict().items()
        if "lora_" not in name and (keep or not name.startswith("recovery."))
    }
    copied.load_state_dict(weights)
    copied.generation_config = loaded.model.generation_config
    return replace(loaded, policy=Policy(copied), mode=nullcontext)


def as_base(loaded: LoadedModel) -> LoadedModel:
    """The same model, run with its adapters and its recovery module off."""

    def mode() -> AbstractContextManager[Any]:
        stack = ExitStack()
        if has_adapters(loaded.model):
            stack.enter_context(adapters_off(loaded.model))
        if loaded.recovery is not None:
            stack.enter_context(loaded.model.without_recovery())
        return stack

    return replace(loaded, mode=mode)


def with_adapter(loaded: LoadedModel, name: str) -> LoadedModel:
    """The same model, run with another adapter in place of the trained one."""
    return replace(loaded, mode=lambda: adapter_active(loaded.model, name))
