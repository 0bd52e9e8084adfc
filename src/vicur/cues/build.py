"""Cues for all problems of a data set: `vicur cues build`.

A problem's media are decoded when its turn comes and let go of when it is answered; all that is kept of it
is the key of its cue in the store. Workers, as many as requests may be in flight, take one problem after
another from the same list.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from vicur.cues.clients import (
    CueClient,
    EndpointClient,
    EndpointConfig,
    ExactClient,
    Hopeless,
    LocalClient,
    NullClient,
    RateLimit,
    Reply,
    RequestFailed,
    Unreachable,
    backoff,
    endpoint_identity,
)
from vicur.cues.output import check_output, write_output
from vicur.cues.parsing import Unusable, parse_reply
from vicur.cues.prompts import CuePrompt, load_prompt
from vicur.cues.requests import (
    Asking,
    CueRequest,
    MissingAnswer,
    estimated_tokens,
    media_digest,
    question_for,
    request_key,
    requests_for,
)
from vicur.cues.store import MAGIC, CueStore
from vicur.data.bad_rows import BadRowError
from vicur.data.files import write_whole
from vicur.data.media import PIL_LIMIT, VideoConfig
from vicur.data.sample import Sample
from vicur.data.sources import FileSource, Progress
from vicur.data.tables import Table, open_table
from vicur.data.views import Shown

Backend = Literal["endpoint", "local", "exact", "null"]
FIRST_PATIENCE = 30.0
"""Seconds that an endpoint may be out of reach before it has ever answered: likely a wrong address."""


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


@dataclass(frozen=True)
class Tick:
    """How far a build is.

    Attributes:
        done, count: problems.
        rate: problems a second that were asked for in this run; 0 before the first.
        cost: of this run.
        failed: problems that were set aside.
    """

    done: int
    count: int
    rate: float
    cost: float
    failed: int

    @property
    def note(self) -> str:
        """In a few words, for beside a bar."""
        failed = f", {self.failed} failed" if self.failed else ""
        cost = f", cost {self.cost:.2f}" if self.cost else ""
        return f"{self.rate:.1f}/s{cost}{failed}"


Watch = Callable[[Iterable[Tick], int], Iterable[Tick]]
"""Goes through the ticks of a build and shows them; `training.progress.Progress.over` is one."""


@dataclass(frozen=True)
class FailedProblem:
    """A problem without a cue.

    Attributes:
        row: in the data, from 0.
        id: of the problem.
        number: which of its cues.
        reason: of the last try.
        tries: how many there were; 0 where it could not even be read.
    """

    row: int
    id: str
    number: int
    reason: str
    tries: int


@dataclass(frozen=True)
class BuildSummary:
    """What a build has done.

    Attributes:
        problems: that were to be answered.
        asked: cues that were got in this run.
        kept: cues that were in the store before.
        failed: cues that could not be got.
        bad_rows: rows that are no problem.
        requests: sent in this run.
        prompt_tokens, completion_tokens: in this run.
        cost: of this run.
        total_cost: of all that the store has paid for.
        seconds: that this run took.
        stopped: why it stopped early; None if it did not.
        out: the output; None if it was not written.
        failed_file: the list of what failed; None if nothing did.
        store: where replies are kept.
        notes: what else there is to say.
    """

    problems: int
    asked: int
    kept: int
    failed: tuple[FailedProblem, ...]
    bad_rows: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    total_cost: float
    seconds: float
    stopped: str | None
    out: Path | None
    failed_file: Path | None
    store: Path
    notes: tuple[str, ...]

    def sentences(self) -> list[str]:
        """For people."""
        said = [
            f"{self.problems} problems: {self.asked} cues asked for and got, {self.kept} there already, "
            f"{len(self.failed)} failed.",
            f"{self.requests} requests with {self.prompt_tokens} tokens sent and {self.completion_tokens} "
            f"received in {self.seconds:.1f} s; cost {self.cost:.4f}, with earlier runs "
            f"{self.total_cost:.4f}.",
        ]
        said += self.notes
        if self.bad_rows:
            said.append(f"{self.bad_rows} rows are no problem and have no cue.")
        if self.failed:
            first = self.failed[0]
            said.append(
                f"Without a cue: {len(self.failed)}, the first in row {first.row} ({first.reason}); all are "
                f"in {self.failed_file}. Ask for them again with retry_failed=true."
            )
        if self.stopped is not None:
            said.append(f"Stopped: {self.stopped}")
        if self.out is not None:
            said.append(f"Written: {self.out}.")
        else:
            said.append(
                f"The output was not written. The replies are kept in {self.store}; the same command goes on "
                "from there."
            )
        return said


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do.

    Attributes:
        problems: to be answered.
        bad_rows: rows that are no problem.
        cues: that were to be got in all.
        kept: of these in the store.
        prompt_tokens: an estimate for those that are not, each asked once.
        completion_tokens: the most that they may take.
        cost: an estimate of what it would cost, if all replies were so long.
        request: the first one, as text.
    """

    problems: int
    bad_rows: int
    cues: int
    kept: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    request: str

    def sentences(self) -> list[str]:
        """For people."""
        return [
            f"{self.problems} problems, {self.cues} cues, of which {self.kept} are there already.",
            f"To ask: {self.cues - self.kept}, with about {self.prompt_tokens} tokens sent and at most "
            f"{self.completion_tokens} received; cost about {self.cost:.4f} if all were so long.",
            "A request:",
            self.request,
        ]


def build_cues(
    config: BuildConfig,
    *,
    watch: Watch | None = None,
    progress: Progress | None = None,
    remarks: Mapping[str, str] | None = None,
    client: CueClient | None = None,
) -> BuildSummary:
    """Get a cue for every problem, and write the data with them.

    Args:
        config: all settings.
        watch: shows how far it is.
        progress: shows how far the check of the rows is.
        remarks: by the id of a problem, what to tell the model besides, as what was wrong with an earlier
            cue. It makes another request of it, whose reply is kept beside the earlier one.
        client: who is asked, in place of what the settings say.

    Raises:
        ValueError: a setting does not fit the data, the output or the store.
        OSError: a file cannot be written.
        KeyboardInterrupt: after requests in flight were waited for and kept.
    """
    prompt = _prompt(config)
    table, source = _open(config, prompt, progress)
    with CueStore(config.store_path) as store:
        owned = client is None
        client = client or make_client(config, source, prompt)
        build = _Build(config, source, prompt, client, store, remarks or {})
        build.run(watch, close=owned)
        return build.finish(table)


def plan_cues(
    config: BuildConfig, *, progress: Progress | None = None, remarks: Mapping[str, str] | None = None
) -> BuildPlan:
    """What `build_cues` would do: a dry run. Nobody is asked, and nothing is written.

    Raises:
        ValueError: as `build_cues`.
    """
    prompt = _prompt(config)
    _, source = _open(config, prompt, progress)
    count = _count(config, source)
    client = make_client(config, source, prompt) if config.backend != "endpoint" else None
    # A dry run needs no key.
    identity = client.identity if client is not None else lambda _: endpoint_identity(str(config.model))
    kept = prompt_tokens = 0
    first: Shown | None = None
    remarks = remarks or {}

    def question(sample: Sample) -> Shown:
        remark = remarks.get(sample.id)
        return question_for(sample, prompt, include_answer=config.include_answer, remark=remark)

    path = config.store_path
    with ExitStack() as stack:
        store = None
        if path.is_file() and path.stat().st_size > len(MAGIC):
            store = stack.enter_context(CueStore(path))
        for index in range(count):
            if store is None:  # then nothing needs to be decoded
                try:
                    outlined = question(source.outline(index))
                except (BadRowError, MissingAnswer):
                    continue
                first = first or outlined
                prompt_tokens += config.samples * estimated_tokens(outlined, config.asking)
                continue
            try:
                sample = source[index]
                asked = _requests(config, prompt, sample, index, remarks)
            except (BadRowError, MissingAnswer):
                continue
            first = first or asked[0].shown
            media = media_digest(sample)
            for request in asked:
                if request_key(request, identity(index), prompt, config.asking, media) in store:
                    kept += 1
                else:
                    prompt_tokens += estimated_tokens(request.shown, config.asking)
    if client is not None:
        asyncio.run(client.close())
    cues = count * config.samples
    completion_tokens = (cues - kept) * config.asking.max_tokens
    return BuildPlan(
        problems=count,
        bad_rows=len(source.bad_rows),
        cues=cues,
        kept=kept,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=config.price(prompt_tokens, completion_tokens),
        request="" if first is None else request_text(first),
    )


def make_client(config: BuildConfig, source: FileSource, prompt: CuePrompt) -> CueClient:
    """Who the settings say is asked.

    Raises:
        ValueError: a key is missing, or the data has no text of its own for "exact".
    """
    if config.backend == "null":
        return NullClient()
    if config.backend == "exact":
        texts = source.column("rationale" if prompt.field == "rationale" else "cue")
        if not any(text is not None for text in texts):
            raise ValueError(
                f"{source.name} has no {prompt.field} of its own; another backend can make some."
            )
        return ExactClient(texts, prompt.field)
    assert config.model is not None
    if config.backend == "local":
        return LocalClient(config.model)
    return EndpointClient(config.model, config.endpoint, config.asking)


def request_text(shown: Shown) -> str:
    """A request as people read it, with media in words."""
    images, videos = iter(shown.images), iter(shown.videos)
    said = []
    for message in shown.messages:
        text = f"[{message['role']}]\n"
        for part in message["content"]:
            if part["type"] == "image":
                width, height = next(images).size
                text += f"<image of {width} x {height} pixels>"
            elif part["type"] == "video":
                video = next(videos)
                width, height = video.size
                text += f"<video: {len(video.frames)} frames of {width} x {height} pixels>"
            else:
                text += part["text"]
        said.append(text)
    return "\n\n".join(said)


def _open(config: BuildConfig, prompt: CuePrompt, progress: Progress | None) -> tuple[Table, FileSource]:
    """The data, once it is clear that the output can be written."""
    table, out = open_table(config.data), Path(config.out)
    replace_own = config.replace or config.backend == "exact"  # whose text the column already is
    check_output(table, Path(config.data), out, list(_types(config, prompt)), replace=replace_own)
    if out.exists() and not (config.overwrite or config.store_path.exists()):
        raise ValueError(f"The output {out} exists already; give another name, or set overwrite=true.")
    source = FileSource(
        table,
        image_dir=config.image_dir,
        columns=config.columns,
        bad_rows=config.bad_rows,
        video=config.video,
        max_raw_pixels=config.max_raw_pixels,
        progress=progress,
    )
    return table, source


def _prompt(config: BuildConfig) -> CuePrompt:
    prompt = load_prompt(config.prompt)
    if config.include_answer:
        prompt.answer_text("")  # an error here, before anything is opened
    return prompt


def _types(config: BuildConfig, prompt: CuePrompt) -> dict[str, pa.DataType]:
    """The new columns."""
    name = config.column or prompt.field
    types = {name: pa.string()}
    if config.samples > 1:
        types[f"{name}s"] = pa.list_(pa.string())
    return types | {f"{name}_model": pa.string(), f"{name}_prompt": pa.string()}


def _count(config: BuildConfig, source: FileSource) -> int:
    return len(source) if config.limit is None else min(config.limit, len(source))


def _requests(
    config: BuildConfig, prompt: CuePrompt, sample: Sample, index: int, remarks: Mapping[str, str]
) -> list[CueRequest]:
    return requests_for(
        sample,
        index,
        prompt,
        config.asking,
        numbers=range(config.samples),
        include_answer=config.include_answer,
        remark=remarks.get(sample.id),
    )


class _Build:
    """One run.

    Args:
        config: all settings.
        source: the problems.
        prompt: the words.
        client: who is asked.
        store: where replies go.
        remarks: what to tell the model besides, by the id of a problem.
    """

    def __init__(
        self,
        config: BuildConfig,
        source: FileSource,
        prompt: CuePrompt,
        client: CueClient,
        store: CueStore,
        remarks: Mapping[str, str],
    ) -> None:
        self.config, self.source, self.prompt = config, source, prompt
        self.client, self.store, self.remarks = client, store, remarks
        self.count = _count(config, source)
        self.keys: list[list[str]] = [[] for _ in range(self.count)]
        self.failed: list[FailedProblem] = []
        self.done = self.asked = self.kept = self.answered = 0
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.cost_before = store.cost
        self.stopped: str | None = None
        self.started = self.last_reply = time.monotonic()
        self.seconds = 0.0
        self._heard = False
        self._failures_in_a_row = 0
        self._reserved = 0.0
        self._token_ratio = store.token_ratio
        self._rate = RateLimit(config.requests_per_minute)

    def run(self, watch: Watch | None, *, close: bool) -> None:
        """Get what is missing.

        Raises:
            KeyboardInterrupt: after requests in flight were waited for and kept.
        """
        # Closed here and now: an error outside would else leave workers behind that write to a closed store.
        with closing(self._ticks(close)) as ticks:
            for _ in ticks if watch is None else watch(ticks, self.count):
                pass
        self.seconds = time.monotonic() - self.started

    def _ticks(self, close: bool) -> Generator[Tick, None, None]:
        """The event loop, run from one tick to the next, so that whoever shows them need not know of it."""
        with asyncio.Runner() as runner:
            ticks = self._answer_all()
            try:
                while (tick := runner.run(_next(ticks))) is not None:
                    yield tick
            finally:
                runner.run(ticks.aclose())
                if close:
                    runner.run(self.client.close())

    async def _answer_all(self) -> AsyncGenerator[Tick, None]:
        self._stopping = asyncio.Event()
        self._first = asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = {}
        news: asyncio.Queue[Tick | asyncio.Task[None]] = asyncio.Queue()
        problems = iter(range(self.count))
        count = min(self.config.concurrency, self.count)
        workers = [asyncio.create_task(self._work(problems, news)) for _ in range(count)]
        for worker in workers:
            worker.add_done_callback(news.put_nowait)
        try:
            while count or not news.empty():
                found = await news.get()
                if isinstance(found, Tick):
                    yield found
                else:
                    count -= 1
                    found.result()  # raises what ended the worker
        except (asyncio.CancelledError, GeneratorExit):  # Ctrl-C: what is in flight is as good as paid for
            self._stop("interrupted.")
            await asyncio.gather(*workers, return_exceptions=True)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, problems: Iterator[int], news: asyncio.Queue[Any]) -> None:
        for index in problems:
            await self._problem(index)
            if self.stopped is not None:
                return
            self.done += 1
            seconds = time.monotonic() - self.started
            rate = self.answered / seconds if seconds > 0 else 0.0
            cost = self.store.cost - self.cost_before
            news.put_nowait(Tick(self.done, self.count, rate, cost, len(self.failed)))

    async def _problem(self, index: int) -> None:
        """All cues of a problem."""
        try:
            asked = await asyncio.to_thread(self._prepare, index)
        except BadRowError as error:
            row = self.source.row_number(index)
            self.failed.append(FailedProblem(row, error.bad.id or f"row {row}", 0, error.bad.reason, 0))
            return
        except MissingAnswer as error:
            row = self.source.row_number(index)
            self.failed.append(FailedProblem(row, self.source.outline(index).id, 0, str(error), 0))
            return
        new = False
        for request, key in asked:
            self.keys[index].append(key)
            # Two problems may be the same in all but their id; then the second waits for the first's cue.
            lock = self._locks.setdefault(key, asyncio.Lock())
            async with lock:
                new |= await self._cue(request, key)
            self._locks.pop(key, None)
            if self.stopped is not None:
                return
        self.answered += new

    def _prepare(self, index: int) -> list[tuple[CueRequest, str]]:
        """Decode a problem's media, and make its requests with the keys of their replies."""
        sample = self.source[index]
        media, identity = media_digest(sample), self.client.identity(index)
        return [
            (request, request_key(request, identity, self.prompt, self.config.asking, media))
            for request in _requests(self.config, self.prompt, sample, index, self.remarks)
        ]

    async def _cue(self, request: CueRequest, key: str) -> bool:
        """See to it that the store has one cue; whether anybody was asked."""
        if key in self.store:
            self.kept += 1
            return False
        failure = self.store.failure(key)
        if failure is not None and not self.config.retry_failed:
            self._fail(request, failure.reason, failure.tries)
            return False
        tries = waits = 0
        while True:
            # Until the first reply nobody knows how many tokens an image really takes.
            alone = self.config.budget is not None and self._token_ratio is None
            async with self._first if alone else _nothing():
                estimate = self._most_it_costs(request)
                if not self._afford(estimate) or not await self._turn():
                    return True
                outcome = await self._attempt(request.again(tries), key, estimate)
            if outcome is None:
                self.asked += 1
                self._failures_in_a_row = 0
                return True
            if isinstance(outcome, Hopeless):
                self._stop(str(outcome).rstrip(".") + ".")
                return True
            after = None
            if isinstance(outcome, Unreachable):
                if self._out_of_patience(outcome):
                    return True
                waits, after = waits + 1, outcome.after
            else:
                tries, waits = tries + 1, 0
                if tries >= self.config.tries or not outcome.again:
                    self._set_aside(request, key, str(outcome), tries)
                    return True
            if not await self._pause(backoff(max(waits, tries) - 1, self.config.backoff_seconds, after)):
                return True

    async def _attempt(
        self, request: CueRequest, key: str, estimate: float
    ) -> Unreachable | RequestFailed | Hopeless | None:
        """Ask once and keep what comes back; what went wrong, or None."""
        self._reserved += estimate
        self.requests += 1
        try:
            reply = await self.client.ask(request)
        except (Unreachable, RequestFailed, Hopeless) as error:
            return error
        finally:
            self._reserved -= estimate
        self.last_reply, self._heard = time.monotonic(), True
        cost, counted = self._count_in(request, reply)
        try:
            cue = parse_reply(reply.text, request.field, cut_off=reply.cut_off)
        except Unusable as error:
            self.store.add_cost(key, cost, str(error))
            return RequestFailed(str(error), again=True)
        about = {"id": request.sample_id, "number": request.number, "seed": request.seed}
        about |= {"model": self.client.name, "prompt": self.prompt.label, "cut_off": reply.cut_off}
        self.store.add(key, cue, cost=cost, **about, **counted)
        return None

    def _count_in(self, request: CueRequest, reply: Reply) -> tuple[float, dict[str, float]]:
        """The price of a reply; estimated where the endpoint does not count its tokens."""
        estimated = estimated_tokens(request.shown, self.config.asking)
        sent = estimated if reply.prompt_tokens is None else reply.prompt_tokens
        received = request.max_tokens if reply.completion_tokens is None else reply.completion_tokens
        self.prompt_tokens += sent
        self.completion_tokens += received
        ratio = sent / estimated
        self._token_ratio = max(self._token_ratio or 0.0, ratio)
        counted = {"prompt_tokens": sent, "completion_tokens": received, "token_ratio": round(ratio, 4)}
        return self.config.price(sent, received), counted

    def _most_it_costs(self, request: CueRequest) -> float:
        ratio = 1.0 if self._token_ratio is None else self._token_ratio
        return self.config.price(
            ratio * estimated_tokens(request.shown, self.config.asking), request.max_tokens
        )

    def _afford(self, estimate: float) -> bool:
        """Whether one more request fits into the budget, with all that are in flight."""
        if self.stopped is not None:
            return False
        budget = self.config.budget
        if budget is not None and self.store.cost + self._reserved + estimate > budget:
            self._stop(
                f"the budget of {budget:g} has no room for another request; {self.store.cost:.4f} are spent. "
                "Raise it to go on."
            )
            return False
        return True

    async def _turn(self) -> bool:
        await self._rate.turn()
        return self.stopped is None

    def _out_of_patience(self, error: Unreachable) -> bool:
        patience = self.config.patience_seconds
        if not self._heard:
            patience = min(patience, FIRST_PATIENCE)
        if time.monotonic() - self.last_reply < patience:
            return False
        # No problem is at fault, so none is set aside.
        self._stop(f"for {patience:g} seconds no request came through: {error}. Run it again once it is up.")
        return True

    async def _pause(self, seconds: float) -> bool:
        """Wait, but not longer than the run lasts; whether it goes on."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def _set_aside(self, request: CueRequest, key: str, reason: str, tries: int) -> None:
        self.store.add_failure(key, reason, tries)
        self._fail(request, reason, tries)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.config.stop_after_failures:
            self._stop(f"{self._failures_in_a_row} problems in a row failed, the last one: {reason}.")

    def _fail(self, request: CueRequest, reason: str, tries: int) -> None:
        row = self.source.row_number(request.index)
        self.failed.append(FailedProblem(row, request.sample_id, request.number, reason, tries))

    def _stop(self, reason: str) -> None:
        if self.stopped is None:
            self.stopped = reason
        self._stopping.set()

    def finish(self, table: Table) -> BuildSummary:
        """Write the output and the list of failures."""
        config = self.config
        failed = tuple(sorted(self.failed, key=lambda problem: (problem.row, problem.number)))
        failed_file = config.failed_path if failed else None
        if failed:
            lines = "".join(json.dumps(asdict(problem)) + "\n" for problem in failed)
            write_whole(config.failed_path, lambda partial: partial.write_text(lines, encoding="utf-8"))
        else:
            config.failed_path.unlink(missing_ok=True)
        out = None
        notes = list(self.store.notes)
        if self.stopped is None or config.write_partial:
            out = Path(config.out)
            rows, added = self._columns(table)
            write_output(table, out, rows, added, _types(config, self.prompt))
            notes += _moved_media(self.source, table, out, config)
        return BuildSummary(
            problems=self.count,
            asked=self.asked,
            kept=self.kept,
            failed=failed,
            bad_rows=len(self.source.bad_rows),
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost=self.store.cost - self.cost_before,
            total_cost=self.store.cost,
            seconds=self.seconds,
            stopped=self.stopped,
            out=out,
            failed_file=failed_file,
            store=self.store.path,
            notes=tuple(notes),
        )

    def _columns(self, table: Table) -> tuple[list[int], dict[str, list[Any]]]:
        """The rows of the output and their new columns. With a limit the rows behind it are left out."""
        of_row = {self.source.row_number(index): index for index in range(self.count)}
        last = len(table) if self.count == len(self.source) else max(of_row) + 1
        names = list(_types(self.config, self.prompt))
        values: dict[str, list[Any]] = {name: [] for name in names}
        for row in range(last):
            keys = self.keys[of_row[row]] if row in of_row else []
            cues = [self.store.cue(key) for key in keys if key in self.store]
            made = bool(cues)
            values[names[0]].append(cues[0] if made else None)
            if self.config.samples > 1:
                values[names[1]].append(cues if made else None)
            values[names[-2]].append(self.client.name if made else None)
            values[names[-1]].append(self.prompt.label if made else None)
        return list(range(last)), values


async def _next(ticks: AsyncIterator[Tick]) -> Tick | None:
    return await anext(ticks, None)


def _nothing() -> AbstractAsyncContextManager[None]:
    return nullcontext()


def _moved_media(source: FileSource, table: Table, out: Path, config: BuildConfig) -> list[str]:
    """Whether paths in the output start from another folder than the output's own."""
    folder = Path(config.image_dir) if config.image_dir is not None else table.folders[0]
    columns = [source.schema[ours] for ours in ("images", "videos") if source.schema[ours] is not None]
    if config.image_dir is None and folder.resolve() == out.parent.resolve():
        return []
    first = table[source.row_number(0)]
    named = [first.get(str(column)) for column in columns]
    while any(isinstance(entry, list) for entry in named):
        named = [one for entry in named for one in (entry if isinstance(entry, list) else [entry])]
    paths = [e.get("path") if isinstance(e, dict) and not e.get("bytes") else e for e in named]
    relative = [p for p in paths if isinstance(p, str) and not p.startswith(("data:", "/"))]
    return (
        [f"Its media are named by paths that start from {folder}: say so by image_dir."] if relative else []
    )
