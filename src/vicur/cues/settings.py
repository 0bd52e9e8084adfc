"""The settings of `vicur cues build`."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vicur.cues.clients.endpoint_config import EndpointConfig
from vicur.cues.prompts import load_prompt
from vicur.cues.requests import Asking
from vicur.data.sample import TextKind
from vicur.data.sources import DataConfig, skipping_bad_rows
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.teacher import SELF
from vicur.settings.section import Count, NonNegative, PathText, Positive, section

Backend = Literal["endpoint", "local", "exact", "null"]


@section
class BuildConfig:
    """The settings of `vicur cues build`."""

    data: DataConfig = field(default_factory=DataConfig)
    """The problems; `data.train` is the file, folder or hub id. Rows that are skipped as unreadable are in
    the output, without a cue."""
    out: PathText = "train_cues.parquet"
    """Output file: the same rows with the cue column, in the data's own format; .parquet for folders and hub
    ids."""
    backend: Backend = "endpoint"
    """Source of the cues: "endpoint" (any OpenAI-compatible one), "local" (a checkpoint in this process),
    "exact" (the data's own column, as CueBench has it), "null" (a fixed text; for measuring throughput)."""
    model: PathText | None = None
    """Name of the model at the endpoint; for "local", a checkpoint folder, hub id or "vicur:NAME"."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """Endpoint of the model."""
    prompt: PathText = "general"
    """Prompt template: general, geometry, charts, video, rationale, or the path of your own YAML file."""
    asking: Asking = field(default_factory=Asking)
    """Sampling, and how media are sent."""
    samples: Count = 1
    """Cues per problem; with more than one, the list of all is written to a second column."""
    include_answer: bool = False
    """Send the gold answer too: only for the baseline of explained answers, never for cues. Needs a prompt
    template with a text for it, as rationale has."""
    column: str | None = None
    """Name of the new column; null for the prompt's own field, cue or rationale."""
    replace: bool = False
    """Whether a column of that name may be replaced."""
    overwrite: bool = False
    """Whether an output file that was not written with the same store may be replaced."""
    store: PathText | None = None
    """File for the model's replies, or a folder that several builds may use one after another; null for a
    file beside the output."""
    limit: Count | None = None
    """Use only the first N problems; the output has only their rows. Null for all."""
    retry_failed: bool = False
    """Ask again for problems that failed in an earlier run."""
    concurrency: Count = 8
    """Number of requests in flight."""
    requests_per_minute: Positive | None = None
    """Maximum requests per minute; null for no limit."""
    tries: Count = 4
    """Attempts per problem before it counts as failed. Times when the endpoint could not be reached do not
    count."""
    backoff_seconds: NonNegative = 1.0
    """Wait before the second attempt; doubled with each further one, up to a minute."""
    patience_seconds: NonNegative = 300.0
    """Stop when the endpoint could not be reached, or was too busy, for this long."""
    stop_after_failures: Count = 20
    """Stop when this many problems in a row have failed."""
    prompt_price: NonNegative = 0.0
    """Price per million prompt tokens."""
    completion_price: NonNegative = 0.0
    """Price per million completion tokens."""
    budget: NonNegative | None = None
    """Stop before the total cost of this run and earlier ones with the same store exceeds this; null for no
    limit."""
    repairs: Annotated[int, Field(ge=0)] = 0
    """Audit the cues and ask again for leaking ones, up to this many times."""
    write_partial: bool = False
    """Whether the output is also written when the build stops early, without cues for the rest."""

    def __post_init__(self) -> None:
        if self.repairs and load_prompt(self.prompt).field != "cue":
            raise ValueError(f"repairs are for cues; the prompt {self.prompt} asks for something else.")
        if self.budget is not None and self.prompt_price == self.completion_price == 0:
            raise ValueError("A budget needs prices: set prompt_price and completion_price.")
        if self.model is None and self.backend in ("endpoint", "local"):
            raise ValueError(f"The backend {self.backend} needs a model: set model=NAME.")
        if self.model is not None and self.backend in ("exact", "null"):
            raise ValueError(f"The backend {self.backend} does not use a model; leave `model` out.")
        if self.samples > 1 and self.asking.temperature == 0:
            raise ValueError(
                "Several cues of a problem need a temperature above 0, or they would be the same."
            )

    @property
    def store_path(self) -> Path:
        """The file that replies are stored in."""
        if self.store is None:
            return Path(self.out + ".cues")
        path = Path(self.store)
        return path / "cues.store" if path.is_dir() or self.store.endswith("/") else path

    @property
    def failed_path(self) -> Path:
        """The file that lists problems without a cue."""
        return Path(self.out + ".failed.jsonl")

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of these tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@section
class AuditSettings:
    """The settings of `vicur cues audit`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The data with cues; `data.train` is the file, folder or hub id."""
    column: TextKind = "cue"
    """The text that is audited."""
    cuebench: bool = False
    """Whether the data is CueBench's, and every claim is checked against its boxes."""
    verifier: str | None = None
    """Model that judges each cue, given image, question and answer; null for none."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The verifier's endpoint."""
    verdicts: PathText | None = None
    """File for the verifier's replies; a rerun asks only for missing ones. Null to keep none."""
    flags: PathText | None = None
    """Parquet file for all flags, each with its span and reason; null to write none."""
    drop: PathText | None = None
    """File for the data without the texts that certainly leak; null to write none."""
    possible: bool = False
    """Whether `drop` also leaves out texts with possible faults."""


@section
class WorthSettings:
    """The settings of `vicur cues worth`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The problems with cues, rationales or answers; `data.train` is the file, folder or hub id."""
    student: PathText = "vicur:tiny-student"
    """The model that responds: checkpoint folder, hub id, or "vicur:NAME"."""
    teacher: PathText = SELF
    """The model that is shown the texts; "self" for the student."""
    run: PathText | None = None
    """Folder of a training run whose responses are used; null to sample them now."""
    kinds: list[TextKind] | None = None
    """Texts to measure; null for all that the data has."""
    problems: Count | None = None
    """Use only the first N problems; null for all."""
    group_size: Count = 4
    """Group size: number of responses to each problem."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the responses."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Grading of the responses. Responses of a run keep the grades that the run gave them unless a setting
    here is changed."""
    samples_per_batch: Count = 16
    """Number of problems scored together."""
    seed: int = 0
    """Seed for sampling, and for the choice of other problems' texts."""
    output: PathText | None = None
    """Folder for worth.json and tokens.parquet; null to write none."""
