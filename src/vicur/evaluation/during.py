"""Evaluation during training: held-out problems that the student answers before, during and after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from vicur.data.sources import DataConfig, FileSource
from vicur.data.sources import Observer as RowObserver
from vicur.evaluation.presets import OWN_SAMPLING, part_of, preset_settings
from vicur.evaluation.runner import EvaluationConfig
from vicur.rewards.grader import Grader
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.section import Count, NonNegative, PathText, TokenCount, section


@section
class EvaluateConfig:
    """Held-out problems, answered before the first step and after the last, and in between if `every` is
    set."""

    data: PathText | None = None
    """Held-out problems with answers, in any form that data.train takes; null for no evaluation."""
    every: Count | None = None
    """Number of rollout steps between evaluations; null for only before the first step and after the last."""
    preset: PathText = "greedy"
    """Sampling, image limits and system prompt of the evaluations: greedy, recipe (the sampling of the
    training rollouts), vicur, va-opd, vgs-greedy, vgs-sampled, or a YAML file, as in `vicur eval`."""
    samples: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of responses per problem; null for the preset's."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    temperature: NonNegative | None = None
    """Sampling temperature; null for the preset's."""
    max_new_tokens: TokenCount | None = None
    """Maximum length of a response in tokens; null for the preset's, or rollout.sampling.max_new_tokens if it
    has none."""
    prompts_per_batch: Count = 64
    """Number of problems answered together; memory grows with it."""

    def __post_init__(self) -> None:
        if self.every is not None and self.data is None:
            raise ValueError(
                "Evaluation during training needs held-out problems: set training.evaluate.data, or "
                "training.evaluate.every=null."
            )

    def open(self, data: DataConfig, grader: Grader, observe: RowObserver | None = None) -> FileSource | None:
        """The held-out problems; None if there are none.

        Args:
            data: settings for reading the training problems.
            grader: grades the responses.
            observe: called with every problem, as in `FileSource`.

        Raises:
            ValueError: they cannot be read, none can be graded, or their images would not be shown.
        """
        if self.data is None:
            return None
        source = self.data_config(data).open(self.data, observe=observe)
        check_media(source, data, "training.evaluate.data")
        source = first_problems(source, self.problems)
        answers = source.column("answer")
        if grader.config.function is None and not any(
            answer is not None and grader.can_grade(answer) for answer in answers
        ):
            raise ValueError(
                f"training.evaluate.data={self.data}: no problem has an answer to grade against."
            )
        return source

    def data_config(self, data: DataConfig) -> DataConfig:
        """Settings for reading the held-out problems: those of the preset over those of the training.

        Raises:
            SettingsError: there is no such preset, or it does not fit.
        """
        preset = part_of(preset_settings(self.preset), "data")
        video = part_of(preset, "video")
        stated = {name: value for name, value in preset.items() if not name.startswith("video.")}
        return replace(data, video=replace(data.video, **video), **stated)

    def config(self, rollout: SamplingConfig, seed: int) -> EvaluationConfig:
        """Settings for sampling the student's responses.

        Args:
            rollout: sampling of the training rollouts.
            seed: seed of the run.

        Raises:
            SettingsError: there is no such preset, or it does not fit.
        """
        preset = preset_settings(self.preset)
        start = (
            rollout
            if self.preset == OWN_SAMPLING
            else SamplingConfig(0.0, max_new_tokens=rollout.max_new_tokens)
        )
        stated = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        changes = {name: value for name, value in stated.items() if value is not None}
        sampling = replace(start, **{**part_of(preset, "sampling"), **changes})
        return EvaluationConfig(
            sampling, self.prompts_per_batch, seed, self.samples or preset.get("samples", 1)
        )


def check_media(source: FileSource, data: DataConfig, setting: str) -> None:
    """Check that images of held-out problems are not left unread.

    Raises:
        ValueError: a column holds images, and no problem shows one.
    """
    unused = None if data.text_only else source.unused_media()
    if unused is not None:
        raise ValueError(f"{setting}: {unused}")


def first_problems(source: FileSource, count: int | None) -> FileSource:
    """The first problems of a source; all if there is no count."""
    return source if count is None or count >= len(source) else source.select(range(count))
