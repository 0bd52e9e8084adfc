"""The settings of `vicur eval`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from vicur.data.sources import DataConfig
from vicur.evaluation.responses import lines_path
from vicur.evaluation.runner import EvaluationConfig
from vicur.files import folder_digest
from vicur.models.checkpoints import Dtype, resolve_checkpoint
from vicur.paths import check_file
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.section import Count, PathText, Seed, section
from vicur.vllm.settings import EngineName, VLLMConfig

MAX_NEW_TOKENS = 2048
"""Default length limit of a response: room for a chain of thought."""


def greedy() -> SamplingConfig:
    """Greedy decoding with the default length limit of evaluations."""
    return SamplingConfig(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)


@section
class EvaluationSettings:
    """The settings of `vicur eval`."""

    model: PathText = "vicur:tiny-student"
    """Checkpoint folder, hub id, or "vicur:NAME" for one that ships with the package."""
    dtype: Dtype = "float32"
    """Compute dtype."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems; `data.train` is the file, folder or hub id."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses."""
    sampling: SamplingConfig = field(default_factory=greedy)
    """Sampling of the responses; greedy by default."""
    prompts_per_batch: Count = 32
    """Number of problems answered together; memory grows with it."""
    engine: EngineName = "torch"
    """Engine that runs the model: "torch" (PyTorch) or "vllm" (vLLM)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    seed: Seed = 0
    """Sampling seed; it has no effect on greedy decoding."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    output: PathText | None = None
    """Parquet file for responses and verdicts; null to store nothing."""
    overwrite: bool = False
    """Whether to replace an output file that comes from another evaluation or another command."""

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix != ".parquet":
            raise ValueError(f"output {self.output} must end in .parquet.")
        self.sampling.check_engine(self.engine)

    @property
    def config(self) -> EvaluationConfig:
        """Settings for sampling the responses."""
        return EvaluationConfig(self.sampling, self.prompts_per_batch, self.seed)

    def identity(self) -> dict[str, Any]:
        """All settings that the model's responses depend on, except the problems.

        The problems are left out because each stored response has the id and a digest of its own problem.
        """
        limits = self.data.pixel_limits()
        folder = Path(resolve_checkpoint(self.model))
        return {
            "model": self.model,
            "files of the model": folder_digest(folder),
            "dtype": self.dtype,
            "seed": self.seed if self.sampling.temperature else None,
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
        inputs, output = list(inputs), Path(self.output)
        # Both may exist: `ResponseStore` refuses those that another evaluation or command has written.
        check_file(output, "--output", inputs, overwrite=True)
        check_file(lines_path(output), "The file for responses", inputs, overwrite=True)
