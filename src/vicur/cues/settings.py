"""The settings of `vicur cues build`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vicur.cues.clients import EndpointConfig
from vicur.cues.requests import Asking
from vicur.data.sources import DataConfig
from vicur.media.images import PIL_LIMIT
from vicur.media.videos import VideoConfig
from vicur.paths import PathText
from vicur.rewards.grader import RewardConfig
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.teacher import SELF

Backend = Literal["endpoint", "local", "exact", "null"]


@dataclass(frozen=True)
class BuildConfig:
    """The settings of `vicur cues build`."""

    data: PathText = "train.parquet"
    """The problems: a .parquet, .json or .jsonl file, a folder, or a data set on the hub, with `@split`
    behind it if it has several splits."""
    out: PathText = "train_cues.parquet"
    """Output file: the same rows with the cue column, in the data's own format; .parquet for folders and hub
    ids."""
    backend: Backend = "endpoint"
    """Where cues come from: "endpoint" (any OpenAI-compatible one), "local" (a checkpoint in this process),
    "exact" (the data's own column, as CueBench has it), "null" (a fixed text; for measuring throughput)."""
    model: PathText | None = None
    """Name of the model at the endpoint; for "local", a checkpoint folder, hub id or "vicur:NAME"."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The endpoint."""
    prompt: PathText = "general"
    """Prompt template: general, geometry, charts, video, rationale, or the path of your own YAML file."""
    asking: Asking = field(default_factory=Asking)
    """Sampling, and how media are sent."""
    samples: int = 1
    """Cues per problem; with more than one, a list of them is written beside the column."""
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
    limit: int | None = None
    """Use only the first N problems; the output has only their rows. Null for all."""
    retry_failed: bool = False
    """Ask again for problems that failed in an earlier run."""
    concurrency: int = 8
    """Number of requests in flight."""
    requests_per_minute: float | None = None
    """Maximum requests per minute; null for no limit."""
    tries: int = 4
    """Attempts per problem before it counts as failed. Times when the endpoint could not be reached do not
    count."""
    backoff_seconds: float = 1.0
    """Wait before the second attempt; doubled with each further one, up to a minute."""
    patience_seconds: float = 300.0
    """Stop when the endpoint could not be reached, or was too busy, for this long."""
    stop_after_failures: int = 20
    """Stop when this many problems in a row have failed."""
    prompt_price: float = 0.0
    """Price per million prompt tokens."""
    completion_price: float = 0.0
    """Price per million completion tokens."""
    budget: float | None = None
    """Stop before the total cost of this run and earlier ones with the same store exceeds this; null for no
    limit."""
    write_partial: bool = False
    """Whether the output is also written when the build stops early, without cues for the rest."""
    image_dir: PathText | None = None
    """Folder that paths of images and videos start from, and may not leave; null for the data's own."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns that fields are read from, where the usual names do not fit: `question: text`."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with unreadable rows: stop, or write them without a cue."""
    max_raw_pixels: int = PIL_LIMIT
    """Upper bound on pixels per image as stored; rows with a larger one count as unreadable, since it may be
    a decompression bomb."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How frames are sampled from videos."""

    def __post_init__(self) -> None:
        for name in ("samples", "limit", "concurrency", "tries", "stop_after_failures"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}.")
        for name in ("backoff_seconds", "patience_seconds", "prompt_price", "completion_price", "budget"):
            amount = getattr(self, name)
            if amount is not None and not 0 <= amount < math.inf:
                raise ValueError(f"{name} must be 0 or more, not {amount}.")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ValueError(f"requests_per_minute must be above 0, not {self.requests_per_minute}.")
        if self.budget is not None and self.prompt_price == self.completion_price == 0:
            raise ValueError("A budget needs prices: set prompt_price and completion_price.")
        if self.model is None and self.backend in ("endpoint", "local"):
            raise ValueError(f"The backend {self.backend} needs a model: set model=NAME.")
        if self.model is not None and self.backend in ("exact", "null"):
            raise ValueError(f"The backend {self.backend} asks no model; leave `model` out.")
        if self.samples > 1 and self.asking.temperature == 0:
            raise ValueError(
                "Several cues of a problem need a temperature above 0, or they would be the same."
            )

    @property
    def store_path(self) -> Path:
        """The file that replies are kept in."""
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


def skipping_bad_rows() -> DataConfig:
    """How data is read where unreadable rows are left out unless set otherwise."""
    return DataConfig(bad_rows="skip")


@dataclass(frozen=True)
class AuditSettings:
    """The settings of `vicur cues audit`."""

    data: DataConfig = field(default_factory=skipping_bad_rows)
    """The data with cues; `data.train` is the file, folder or hub id."""


@dataclass(frozen=True)
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
    problems: int | None = None
    """Use only the first N problems; null for all."""
    siblings: int = 4
    """Responses per problem."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are sampled."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """How responses are graded. Responses of a run keep the grades that the run gave them unless a setting
    here is changed."""
    samples_per_batch: int = 16
    """Problems scored together."""
    seed: int = 0
    """Seed for sampling, and for the choice of other problems' texts."""
    output: PathText | None = None
    """Folder for worth.json and tokens.parquet; null to write none."""

    def __post_init__(self) -> None:
        for name in ("problems", "siblings", "samples_per_batch"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}.")
