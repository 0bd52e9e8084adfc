"""Held-out problems that a run answers before its first step and after its last."""

from __future__ import annotations

from dataclasses import dataclass

from vicur.data.sources import DataConfig, FileSource
from vicur.evaluation.runner import EvaluationConfig
from vicur.paths import PathText
from vicur.rollouts.processors import SamplingConfig


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out problems, answered before the first step and after the last."""

    data: PathText | None = None
    """Problems with answers, named and read like data.train; null for no validation."""
    problems: int | None = None
    """Use only the first N problems; null for all."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int | None = None
    """Maximum response length in tokens; null for that of rollout.sampling."""
    prompts_per_batch: int = 64
    """Problems answered together; memory grows with it."""

    def __post_init__(self) -> None:
        for name in ("problems", "max_new_tokens", "prompts_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"validation.{name} must be at least 1, not {value}.")
        if self.temperature < 0:
            raise ValueError(f"validation.temperature must be 0 or more, not {self.temperature}.")

    def open(self, data: DataConfig) -> FileSource | None:
        """The held-out problems; None if there are none.

        Args:
            data: how the training problems are read.

        Raises:
            ValueError: they cannot be read, or none has an answer.
        """
        if self.data is None:
            return None
        source = data.open(self.data)
        if self.problems is not None and self.problems < len(source):
            source = source.select(range(self.problems))
        if all(answer is None for answer in source.column("answer")):
            raise ValueError(f"validation.data={self.data}: no problem has an answer to grade by.")
        return source

    def evaluation(self, max_new_tokens: int, seed: int) -> EvaluationConfig:
        """How the student is asked.

        Args:
            max_new_tokens: of a training response.
            seed: of the run.
        """
        sampling = SamplingConfig(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens or max_new_tokens
        )
        return EvaluationConfig(sampling, self.prompts_per_batch, seed)
