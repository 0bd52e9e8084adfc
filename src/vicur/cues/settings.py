"""The settings of `vicur cues build`."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vicur.cues.prompts import load_prompt
from vicur.cues.requests import Asking
from vicur.data.sample import TextKind
from vicur.data.sources import DataConfig, skipping_bad_rows
from vicur.endpoints.config import EndpointConfig
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.teacher import SELF
from vicur.settings.section import LARGEST, Count, NonNegative, PathText, Seed, Text, section
from vicur.vllm.settings import EngineName, VLLMConfig

Backend = Literal["endpoint", "local", "exact", "null"]


@section
class BuildConfig:
    """The settings of `vicur cues build`."""

    data: DataConfig = field(default_factory=DataConfig)
    """The problems; `data.train` is the file, folder or hub id. Rows that are skipped as unreadable are in
    the output, without a cue."""
    output: PathText = "train_cues.parquet"
    """Output file: the rows of the data with the new column, in the data's format (.parquet for folders and
    hub ids)."""
    backend: Backend = "endpoint"
    """Source of the cues: "endpoint" (any OpenAI-compatible endpoint), "local" (a checkpoint, run in this
    process), "exact" (the column that the data already has, as CueBench does), "null" (a fixed text, for
    measuring throughput)."""
    model: PathText | None = None
    """Name of the model at the endpoint; for "local", a checkpoint folder, hub id or "vicur:NAME"."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """Endpoint of the model."""
    engine: EngineName = "torch"
    """Engine that runs the model of backend=local: "torch" (PyTorch) or "vllm" (vLLM)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    prompt: PathText = "general"
    """Prompt template: general, geometry, charts, video, rationale, or the path of your own YAML file."""
    asking: Asking = field(default_factory=Asking)
    """Sampling, and how media are sent."""
    cues_per_problem: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of cues per problem; with more than one, the list of all cues is written to a second column."""
    include_answer: bool = False
    """Whether to send the gold answer too, for rationales that explain it; never for cues. The prompt
    template must have an answer section, as rationale has."""
    new_column: Text | None = None
    """Name of the new column; null for the prompt template's field, cue or rationale."""
    replace: bool = False
    """Whether to replace a column of that name in the data."""
    overwrite: bool = False
    """Whether to replace an output file that was not written from the same store, or was changed since."""
    store: PathText | None = None
    """File for the model's replies, or a folder that several builds may use one after another; null for a
    file beside the output."""
    problems: Count | None = None
    """Use only the first N problems, and write only their rows; null for all."""
    retry_failed: bool = False
    """Whether to retry problems that failed in an earlier run."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    """Maximum number of concurrent requests."""
    requests_per_minute: Annotated[float, Field(ge=0.001, le=LARGEST)] | None = None
    """Maximum number of requests per minute; null for no limit."""
    tries: Count = 4
    """Number of attempts per problem before it counts as failed. Attempts that do not reach the endpoint are
    not counted."""
    backoff_seconds: NonNegative = 1.0
    """Wait in seconds before the second attempt; doubled with each further attempt, up to a minute."""
    patience_seconds: NonNegative = 300.0
    """Stop after the endpoint has been unreachable or overloaded for this many seconds."""
    stop_after_failures: Count = 20
    """Stop after this many consecutive failed problems."""
    prompt_price: NonNegative = 0.0
    """Price per million prompt tokens."""
    completion_price: NonNegative = 0.0
    """Price per million completion tokens."""
    budget: NonNegative | None = None
    """Stop before the total cost of this run and earlier ones with the same store exceeds this; null for no
    limit."""
    repairs: Annotated[int, Field(ge=0)] = 0
    """Audit the cues and regenerate those with definite faults, up to this many times."""
    write_partial: bool = False
    """Whether to write the output even if the build stops early; the remaining problems then have no cue."""

    def __post_init__(self) -> None:
        if self.repairs and load_prompt(self.prompt).field != "cue":
            raise ValueError(f"repairs are for cues; the prompt {self.prompt} asks for something else.")
        if self.budget is not None and self.prompt_price == self.completion_price == 0:
            raise ValueError("A budget needs prices: set prompt_price and completion_price.")
        if self.model is None and self.backend in ("endpoint", "local"):
            raise ValueError(f"The backend {self.backend} needs a model: set model=NAME.")
        SamplingConfig(temperature=self.asking.temperature or 0.0).check_engine(self.engine)
        if self.engine != "torch" and self.backend != "local":
            raise ValueError(f"engine={self.engine} runs the model of backend=local, not of {self.backend}.")
        if self.model is not None and self.backend in ("exact", "null"):
            raise ValueError(f"The backend {self.backend} does not use a model; leave `model` out.")
        if self.cues_per_problem > 1 and self.asking.temperature == 0:
            raise ValueError(
                "Several cues of a problem need a temperature above 0, or they would be the same."
            )

    @property
    def store_path(self) -> Path:
        """The file that replies are stored in."""
        if self.store is None:
            return Path(self.output + ".cues")
        path = Path(self.store)
        return path / "cues.store" if path.is_dir() or self.store.endswith("/") else path

    @property
    def failed_path(self) -> Path:
        """The file that lists problems without a cue."""
        return Path(self.output + ".failed.jsonl")

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of these tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@section
class AuditSettings:
    """The settings of `vicur cues audit`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The data with cues; `data.train` is the file, folder or hub id."""
    kind: TextKind = "cue"
    """Kind of text to audit."""
    cuebench: bool = False
    """Whether to check every claim against the objects that CueBench drew; for CueBench data only."""
    verifier: Text | None = None
    """Model that judges each cue, given image, question and answer; null for none."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The verifier's endpoint."""
    verdicts: PathText | None = None
    """File for the verifier's replies; a rerun requests only missing ones. null to store none."""
    flags: PathText | None = None
    """Parquet file for all flags, each with its span and reason; null to write none."""
    drop: PathText | None = None
    """File for a copy of the data without the texts that have definite faults; null to write none."""
    possible: bool = False
    """Whether `drop` also removes texts with possible faults."""
    overwrite: bool = False
    """Whether to replace files of `flags` and `drop` that exist."""


@section
class WorthSettings:
    """The settings of `vicur cues worth`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The problems with cues, rationales or answers; `data.train` is the file, folder or hub id."""
    student: PathText = "vicur:tiny-student"
    """Model that writes the responses: checkpoint folder, hub id, or "vicur:NAME"."""
    teacher: PathText = SELF
    """Model that scores the responses given each text; "self" for the student."""
    run: PathText | None = None
    """Folder of a training run whose responses to use; null to sample new ones."""
    kinds: list[TextKind] | None = None
    """Kinds of text to measure; null for all that the data has."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    group_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Number of responses per problem."""
    student_loss: bool = False
    """Whether to split the student's loss into the part about the texts alone and the part that it can learn
    (ViCuR eq. 18). Needs several texts per problem (columns cues, rationales, answers), and costs a pass of
    the student."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the responses."""
    engine: EngineName = "torch"
    """Engine that samples the responses: "torch" (PyTorch) or "vllm" (vLLM)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    """Settings of vLLM, used if engine=vllm."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses. Responses of a run keep the grades that the run gave them unless a setting
    here is changed."""
    prompts_per_batch: Count = 16
    """Number of problems scored together; memory grows with it."""
    seed: Seed = 0
    """Seed for sampling and for choosing other problems' texts."""
    output: PathText | None = None
    """Folder for worth.json and tokens.parquet; null to write none."""
    overwrite: bool = False
    """Whether to replace these files if they exist."""

    def __post_init__(self) -> None:
        self.sampling.check_engine(self.engine)
