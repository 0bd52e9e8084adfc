"""The settings of `vicur eval`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vicur.data.sources import DataConfig
from vicur.endpoints.config import EndpointConfig, endpoint_identity
from vicur.evaluation.controls import Control
from vicur.evaluation.presets import (
    OWN_SAMPLING,
    differences,
    preset_settings,
    recipe_of_model,
    shown_settings,
)
from vicur.evaluation.responses import lines_path
from vicur.evaluation.runner import EvaluationConfig, check_samples
from vicur.files import folder_digest
from vicur.models.checkpoints import Dtype, resolve_checkpoint
from vicur.paths import check_distinct, check_file, check_folder, names_of
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.schema import Layer, Schema
from vicur.settings.section import Count, PathText, Seed, SettingsError, Text, section
from vicur.vllm.settings import EngineName, VLLMConfig

MAX_NEW_TOKENS = 2048
"""Default length limit of a response: room for a chain of thought."""
OTHER_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".arrow", ".txt", ".xlsx")
"""Suffixes of files that are not written, and that no folder has on purpose."""
SUMMARY, TABLE = "summary.json", "summary.md"
"""Files of an output folder, beside one parquet file for each model and control."""


def greedy() -> SamplingConfig:
    """Greedy decoding with the default length limit of evaluations."""
    return SamplingConfig(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)


@section
class EvaluationSettings:
    """The settings of `vicur eval`."""

    model: PathText | list[PathText] = "vicur:tiny-student"
    """Checkpoint folder, hub id, or "vicur:NAME" for one that ships with the package; several to compare
    them on the same problems."""
    names: list[Text] = field(default_factory=list)
    """A name for each model in tables and files; by default the end of its path."""
    baseline: Text | None = None
    """Name of the model that the others are compared with; null for the first."""
    preset: PathText = "greedy"
    """Settings to start from: greedy, recipe (the sampling of the model's training rollouts), vicur, va-opd,
    vgs-greedy, vgs-sampled (the papers'), or a YAML file of your own. Settings given here override it."""
    dtype: Dtype = "float32"
    """Compute dtype."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems; `data.train` is the file, folder or hub id. The system prompt, the format of options, and
    the limits of images and videos are by default those that the model was trained with, if its folder or
    that of its run has a recipe.yaml."""
    control: list[Control] = field(default_factory=list)
    """Evaluate also with images that cannot help: blank (black), degraded (no fine detail), blind (none),
    other (those of another problem). A model that is as good without seeing is not looking."""
    by: list[Text] = field(default_factory=list)
    """Columns of the data by whose values the accuracy is also reported, e.g. category."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of responses per problem (k). The accuracy is the mean over them, avg@k."""
    sampling: SamplingConfig = field(default_factory=greedy)
    """Sampling of the responses; greedy by default."""
    prompts_per_batch: Count = 32
    """Number of problems answered together; memory grows with it."""
    engine: EngineName = "torch"
    """Engine that runs the model: "torch" (PyTorch) or "vllm" (vLLM)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """With endpoint.base_url set: an OpenAI-compatible endpoint that runs the models, whose names at the
    endpoint are then given as `model`. Other settings of it do nothing without base_url."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 16
    """Number of requests in flight at an endpoint; at most prompts_per_batch * samples are."""
    tries: Count = 5
    """Number of times that a request to an endpoint is sent before its problem is excluded and counted."""
    seed: Seed = 0
    """Sampling seed; it has no effect on greedy decoding."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    output: PathText | None = None
    """Parquet file for responses and verdicts, or a folder; with several models or controls a folder, which
    gets a file for each and a summary. null to store nothing."""
    overwrite: bool = False
    """Whether to replace output files that come from another evaluation or another command."""

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix.lower() in OTHER_FORMATS:
            raise ValueError(f"output {self.output} must end in .parquet, or be a folder.")
        if self.output is not None and not self.is_folder and len(self.arms) > 1:
            raise ValueError(
                f"output {self.output} must be a folder: there is a file for each model and control."
            )
        self.sampling.check_engine(self.engine)
        check_samples(self.samples, self.sampling)

    @property
    def models(self) -> list[str]:
        """The models."""
        return list(self.model) if isinstance(self.model, list) else [self.model]

    @property
    def model_names(self) -> list[str]:
        """A name for each model."""
        return names_of(self.models, self.names)

    @property
    def baseline_name(self) -> str:
        """Name of the model that the others are compared with."""
        return self.baseline or self.model_names[0]

    @property
    def arms(self) -> list[tuple[str, str, Control | None]]:
        """What is evaluated: name, model and control of each; a model comes before its controls."""
        controls: list[Control | None] = [None, *dict.fromkeys(self.control)]
        return [
            (name if control is None else f"{name}, {control}", model, control)
            for name, model in zip(self.model_names, self.models, strict=True)
            for control in controls
        ]

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder, not a parquet file."""
        return self.output is not None and Path(self.output).suffix != ".parquet"

    def output_of(self, name: str) -> Path | None:
        """The parquet file of a model, or of a model under a control; None to store nothing.

        Args:
            name: its name among `arms`.
        """
        if self.output is None:
            return None
        path = Path(self.output)
        file = name.replace(", ", ".").replace("/", "-").replace(":", "-")
        return path / f"{file}.parquet" if self.is_folder else path

    @property
    def config(self) -> EvaluationConfig:
        """Settings for sampling the responses."""
        return EvaluationConfig(self.sampling, self.prompts_per_batch, self.seed, self.samples)

    def identity(self, control: Control | None = None) -> dict[str, Any]:
        """All settings that a model's responses depend on, except the problems and their number.

        The problems are left out because each stored response has the id and a digest of what was shown.
        """
        limits = self.data.pixel_limits()
        (model,) = self.models
        if self.endpoint.base_url is None:
            files = folder_digest(Path(resolve_checkpoint(model)))
            runs = {"files of the model": files, "dtype": self.dtype}
        else:
            runs = {"endpoint": endpoint_identity(model, self.endpoint)}
        return {
            "model": model,
            **runs,
            "seed": self.seed if self.sampling.temperature else None,
            **({} if control is None else {"control": control}),
            **({} if self.engine == "torch" else {"engine": self.engine}),
            **{f"sampling.{name}": value for name, value in asdict(self.sampling).items()},
            **{f"data.{name}": value for name, value in asdict(limits).items()},
        }

    def check_output(self, inputs: Iterable[Path] = ()) -> None:
        """Make sure that the output can be written, before anything expensive runs.

        Args:
            inputs: the data files.

        Raises:
            ValueError: it cannot, or is one of the data files.
        """
        if self.output is None:
            return
        inputs = list(inputs)
        if self.is_folder:
            check_folder(Path(self.output), "--output")
        files = [file for name, *_ in self.arms if (file := self.output_of(name)) is not None]
        check_distinct({name: file for name, *_ in self.arms if (file := self.output_of(name)) is not None})
        for file in files:
            # Both may exist: `ResponseStore` refuses those that another evaluation or command has written.
            check_file(file, "--output", inputs, overwrite=True)
            check_file(lines_path(file), "The file for responses", inputs, overwrite=True)


def settings_of_models(schema: Schema[EvaluationSettings], user: Sequence[Layer]) -> list[EvaluationSettings]:
    """The settings for each model: the user's over those of the preset, and these over those of its training.

    Args:
        schema: the schema of `EvaluationSettings`.
        user: the user's settings, for all models.

    Raises:
        SettingsError: a setting does not exist or does not fit, also one of the preset or of a recipe.
        ValueError: there is no such model.
    """
    flat = schema.merged("", user).flat
    preset = str(flat.get("preset", EvaluationSettings().preset))
    above = [Layer(f"preset {preset}", preset_settings(preset)), *user]
    # With the sampling of the recipes, whether the number of samples fits is known for each model only.
    sampled = [Layer("", {"sampling.temperature": 1.0})] if preset == OWN_SAMPLING else []
    together = schema.load([*sampled, *above])
    if together.baseline_name not in together.model_names:
        names = ", ".join(together.model_names)
        raise SettingsError(f"baseline={together.baseline} is none of the models {names}.")
    each = []
    for name, model in zip(together.model_names, together.models, strict=True):
        layers = [*above, Layer("", {"model": model, "names": [name], "baseline": together.baseline_name})]
        recipe = None if together.endpoint.base_url is not None else recipe_of_model(model)
        if recipe is not None:
            trained = shown_settings(recipe, sampling=preset == OWN_SAMPLING)
            layers.insert(0, Layer(f"the recipe of {model}", trained))
        elif preset == OWN_SAMPLING:
            raise SettingsError(f"preset={OWN_SAMPLING}: there is no recipe.yaml with {model} or its run.")
        each.append(schema.load(layers))
    return each


def notes_on(settings: EvaluationSettings) -> list[str]:
    """What a model is shown otherwise than in its training, in sentences.

    Args:
        settings: the settings of one model.
    """
    (model,), (name,) = settings.models, settings.model_names
    recipe = None if settings.endpoint.base_url is not None else recipe_of_model(model)
    if recipe is None:
        return []
    return [f"Warning: {name}: {text}." for text in differences(recipe, asdict(settings))]
