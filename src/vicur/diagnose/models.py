"""Settings and loading that the analyses which run models share: students, a teacher, and responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vicur.data.sample import Sample
from vicur.diagnose.settings import ProblemsSettings
from vicur.files import RECIPE_FILE
from vicur.models.checkpoints import Dtype
from vicur.models.devices import choose_device
from vicur.models.load import LoadedModel, load_model
from vicur.progress import Bars
from vicur.reporting.runs import RecordedRun
from vicur.rewards.grader import Grader, RewardConfig
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.run.export import initial_student, load_weights
from vicur.scoring.scorer import Scorer, ScoringConfig
from vicur.scoring.teacher import as_teacher_of
from vicur.settings.section import Count, PathText, Seed, section
from vicur.training.checkpoint import FINAL, FOLDER, Saved, read_checkpoint, step_folders
from vicur.vllm.settings import EngineName, VLLMConfig
from vicur.worth.responses import StudentResponses, sample_responses

GroupSize = Annotated[int, Field(ge=1, le=4096)]
"""Number of responses to each problem."""


@section
class ModelsSettings(ProblemsSettings):
    """Models that are run on problems: students that write responses, and a teacher that scores them."""

    teacher: PathText | None = None
    """The teacher: checkpoint folder, hub id or "vicur:NAME"."""
    dtype: Dtype = "float32"
    """Compute dtype of students and teacher."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the responses."""
    engine: EngineName = "torch"
    """Engine that samples the responses: "torch" (PyTorch) or "vllm" (vLLM)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses."""
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    """Layout and batching of the forward passes that score responses."""
    prompts_per_batch: Count = 16
    """Number of problems sampled and scored together; memory grows with it."""
    seed: Seed = 0
    """Seed for sampling."""

    def __post_init__(self) -> None:
        self.sampling.check_engine(self.engine)

    def load(self, name: str, bars: Bars) -> LoadedModel:
        """Load a checkpoint.

        Raises:
            ValueError: it is missing or broken.
        """
        return bars("loading models").during(lambda: load_model(name, self.dtype))

    def load_teacher(self, bars: Bars) -> LoadedModel:
        """Load the teacher.

        Raises:
            ValueError: there is none, or it is missing or broken.
        """
        if self.teacher is None:
            raise ValueError("This needs a teacher: set --teacher.")
        return self.load(self.teacher, bars)

    def scorer_of(self, loaded: LoadedModel) -> Scorer:
        """Scores responses with a model."""
        return Scorer(loaded, self.scoring, self.data.pixel_limits())

    def teacher_scorer(self, student: LoadedModel, teacher: LoadedModel) -> Scorer:
        """Scores a student's responses with a teacher, over the student's vocabulary.

        Raises:
            ValueError: the vocabularies differ.
        """
        return self.scorer_of(as_teacher_of(student, teacher))

    def open_engine(self, loaded: LoadedModel) -> Engine:
        """The engine that samples a model's responses; the caller closes it."""
        return make_engine(loaded, self.engine, self.vllm, prompts_per_batch=self.prompts_per_batch)

    def answer(
        self, loaded: LoadedModel, samples: Sequence[Sample], bars: Bars, *, group_size: int = 1
    ) -> StudentResponses:
        """Let a model answer every problem from its own prompt, and grade the responses.

        Args:
            loaded: the model.
            samples: the problems.
            bars: progress bars.
            group_size: number of responses to each problem.
        """
        with closing(self.open_engine(loaded)) as engine:
            return sample_responses(
                engine,
                samples,
                group_size=group_size,
                sampling=self.sampling,
                seed=self.seed,
                prompts_per_batch=self.prompts_per_batch,
                grader=Grader(self.rewards),
                limits=self.data.pixel_limits(),
                progress=bars("answering"),
            )


@dataclass(frozen=True)
class SavedModel:
    """A model of which the weights can be loaded.

    Attributes:
        step: the step of a run after which it had these weights; None for a checkpoint outside a run.
        load: loads it. The models of a run share their memory: loading one overwrites the one before.
    """

    step: int | None
    load: Callable[[], LoadedModel]


def is_run(name: str) -> bool:
    """Whether a name is the folder of a training run."""
    return (Path(name) / "status.json").is_file() and (Path(name) / RECIPE_FILE).is_file()


def saved_models(name: str, settings: ModelsSettings, bars: Bars) -> list[SavedModel]:
    """The models behind a name: one for a checkpoint; for a run, those of its steps in their order.

    A run has its student before the first step, its checkpoints, and the model in `checkpoints/final` unless
    the last step has a checkpoint. Checkpoints that the run has deleted (training.checkpoints.keep) are gone.

    Raises:
        ValueError: a checkpoint of the run is damaged.
    """
    if not is_run(name):
        return [SavedModel(None, partial(settings.load, name, bars))]
    folder = Path(name)
    weights = RunWeights(folder, bars)
    checkpoints = [read_checkpoint(path) for path in reversed(step_folders(folder / FOLDER))]
    models = [SavedModel(0, weights.initial)]
    models += [SavedModel(saved.state.step, partial(weights.after, saved)) for saved in checkpoints]
    last, final = int(RecordedRun(folder, name).status["step"]), folder / FOLDER / FINAL
    if final.is_dir() and last not in [model.step for model in models]:
        models.append(SavedModel(last, partial(settings.load, str(final), bars)))
    return models


class RunWeights:
    """The student of a run, with the weights of one step at a time.

    Args:
        run: the run's folder.
        bars: progress bars.
    """

    def __init__(self, run: Path, bars: Bars) -> None:
        self.run, self.bars = run, bars
        self._student: LoadedModel | None = None

    def initial(self) -> LoadedModel:
        """The student before the first step."""
        self._student = None  # frees its memory before the next one is loaded
        loaded = self.bars("loading models").during(lambda: initial_student(self.run))
        device = choose_device()
        loaded.policy.model.to(device)
        loaded.policy.device = device
        self._student = loaded
        return loaded

    def after(self, saved: Saved) -> LoadedModel:
        """The same student with the weights of a checkpoint."""
        loaded = self.initial() if self._student is None else self._student
        load_weights(loaded, saved)
        return loaded
