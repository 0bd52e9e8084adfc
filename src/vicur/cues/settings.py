"""The settings of `vicur cues build`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vicur.cues.clients import EndpointConfig
from vicur.cues.requests import Asking
from vicur.data.images import PIL_LIMIT
from vicur.data.videos import VideoConfig

Backend = Literal["endpoint", "local", "exact", "null"]


@dataclass(frozen=True)
class BuildConfig:
    """What cues are built of, by whom, and at what price."""

    data: str = "train.parquet"
    """The problems: a .parquet, .json or .jsonl file, a folder, or a data set on the hub, with `@split`
    behind it if it has several splits."""
    out: str = "train_cues.parquet"
    """The same rows with the cue column, in the data's own format; .parquet for folders and the hub."""
    backend: Backend = "endpoint"
    """Who is asked: "endpoint" (any OpenAI-compatible one), "local" (a checkpoint in this process), "exact"
    (the data's own column, as CueBench has it), "null" (nobody; for measuring)."""
    model: str | None = None
    """Its name at the endpoint; or, for "local", a folder, a hub id or "vicur:NAME"."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """Where the endpoint is."""
    prompt: str = "general"
    """The words that ask: general, geometry, charts, video, rationale, or the path of a file like them."""
    asking: Asking = field(default_factory=Asking)
    """Sampling, and how media are sent."""
    samples: int = 1
    """Cues of each problem; with several there is a list of them beside the column."""
    include_answer: bool = False
    """Send the gold answer too: only for the baseline of explained answers, never for cues. It takes a
    prompt with words for it, as rationale has."""
    column: str | None = None
    """Name of the new column; the prompt's own field, cue or rationale, if not given."""
    replace: bool = False
    """Whether a column of that name may be replaced."""
    overwrite: bool = False
    """Whether an output file may be replaced that was not written with the same store."""
    store: str | None = None
    """Where replies are kept: a file, or a folder that several builds may use one after another. Beside the
    output if not given."""
    limit: int | None = None
    """Only the first so many problems; the output has only their rows."""
    retry_failed: bool = False
    """Ask again for problems that were set aside by an earlier run."""
    concurrency: int = 8
    """Requests in flight."""
    requests_per_minute: float | None = None
    """At most; None for no limit."""
    tries: int = 4
    """Of a problem, before it is set aside. Times when the endpoint was out of reach do not count."""
    backoff_seconds: float = 1.0
    """Before the second try; doubled with each further one, up to a minute."""
    patience_seconds: float = 300.0
    """The run stops when the endpoint was out of reach, or too busy, for so long."""
    stop_after_failures: int = 20
    """The run stops when so many problems in a row had to be set aside."""
    prompt_price: float = 0.0
    """Of a million tokens sent."""
    completion_price: float = 0.0
    """Of a million tokens received."""
    budget: float | None = None
    """The run stops before all that the store has paid for, in this run and earlier ones, costs more."""
    write_partial: bool = False
    """Whether the output is also written when the run stopped early, without cues for the rest."""
    image_dir: str | None = None
    """Folder that paths of images and videos start from, and may not leave; None for the data's own."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field to the column that holds it, where the usual names do not fit: `question: text`."""
    bad_rows: Literal["error", "skip"] = "error"
    """What a row is that cannot become a problem: the end, or left without a cue."""
    max_raw_pixels: int = PIL_LIMIT
    """Of an image as the file has it; a row with a larger one is bad: it may be a decompression bomb."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How frames are taken from videos."""

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
            raise ValueError(f"The backend {self.backend} needs a model: say which by `model`.")
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
        """Of so many tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6
