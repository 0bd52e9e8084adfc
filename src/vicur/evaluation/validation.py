"""Held-out problems that a run answers before its first step and after its last."""

from __future__ import annotations

from vicur.data.sources import DataConfig, FileSource, Observer
from vicur.evaluation.runner import EvaluationConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.section import Count, NonNegative, PathText, TokenCount, section


@section
class ValidationConfig:
    """Held-out problems, answered before the first step and after the last, and in between if `every` is
    set."""

    data: PathText | None = None
    """Held-out problems with answers, in any form that data.train takes; null for no validation."""
    every: Count | None = None
    """Number of rollout steps between validations; null for only before the first step and after the
    last."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 for greedy decoding."""
    max_new_tokens: TokenCount | None = None
    """Maximum length of a response in tokens; null for rollout.sampling.max_new_tokens."""
    prompts_per_batch: Count = 64
    """Number of problems answered together; memory grows with it."""

    def __post_init__(self) -> None:
        if self.every is not None and self.data is None:
            raise ValueError(
                "Validation during training needs held-out problems: set validation.data, or "
                "validation.every=null."
            )

    def open(self, data: DataConfig, observe: Observer | None = None) -> FileSource | None:
        """The held-out problems; None if there are none.

        Args:
            data: settings for reading the training problems.
            observe: called with every problem, as in `FileSource`.

        Raises:
            ValueError: they cannot be read, or none has an answer.
        """
        if self.data is None:
            return None
        source = data.open(self.data, observe=observe)
        if self.problems is not None and self.problems < len(source):
            source = source.select(range(self.problems))
        if all(answer is None for answer in source.column("answer")):
            raise ValueError(f"validation.data={self.data}: no problem has an answer to grade against.")
        return source

    def evaluation(self, max_new_tokens: int, seed: int) -> EvaluationConfig:
        """Settings for sampling the student's responses.

        Args:
            max_new_tokens: maximum length of a training response.
            seed: seed of the run.
        """
        sampling = SamplingConfig(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens or max_new_tokens
        )
        return EvaluationConfig(sampling, self.prompts_per_batch, seed)
