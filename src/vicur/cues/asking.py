"""One run of a build: its requests, retries, cost and results.

A problem's media are decoded when its turn comes and released when it is answered; only the key of its cue in
the store is kept. There are as many workers as requests may be in flight; all take their problems from the
same list.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from vicur.bad_rows import BadRowError
from vicur.cues.clients.client import CueClient
from vicur.cues.output import mover, write_output
from vicur.cues.parsing import Unusable, cue_of
from vicur.cues.prompts import CuePrompt
from vicur.cues.requests import (
    CueRequest,
    MissingAnswer,
    estimated_tokens,
    request_key,
    requests_for,
)
from vicur.cues.settings import BuildConfig
from vicur.cues.store import CueStore
from vicur.cues.summary import BuildSummary, FailedProblem, Tick, Watch
from vicur.data.digests import media_digest
from vicur.data.sample import Sample
from vicur.data.sources import FileSource
from vicur.data.tables import Table
from vicur.endpoints.limits import RateLimit, backoff
from vicur.endpoints.patience import FIRST_SILENCE
from vicur.endpoints.request import Hopeless, Reply, RequestFailed, Unreachable
from vicur.files import write_whole


def new_columns(config: BuildConfig, prompt: CuePrompt) -> dict[str, pa.DataType]:
    """Names and types of the new columns."""
    name = config.new_column or prompt.field
    types = {name: pa.string()}
    if config.cues_per_problem > 1:
        types[f"{name}s"] = pa.list_(pa.string())
    return types | {f"{name}_model": pa.string(), f"{name}_prompt": pa.string()}


def num_problems(config: BuildConfig, source: FileSource) -> int:
    """Number of problems to process."""
    return len(source) if config.problems is None else min(config.problems, len(source))


def requests_of(
    config: BuildConfig, prompt: CuePrompt, sample: Sample, index: int, remarks: Mapping[str, str]
) -> list[CueRequest]:
    """A request for each cue of a problem."""
    return requests_for(
        sample,
        index,
        prompt,
        config.asking,
        numbers=range(config.cues_per_problem),
        include_answer=config.include_answer,
        remark=remarks.get(sample.id),
    )


class Asker:
    """Sends the requests of one run.

    Args:
        config: all settings.
        source: the problems.
        prompt: the prompt template.
        client: the cue source.
        store: the store for replies.
        remarks: additional remarks to the model, by problem id.
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
        self.count = num_problems(config, source)
        self.keys: list[list[str]] = [[] for _ in range(self.count)]
        self.failed: list[FailedProblem] = []
        self.done = self.asked = self.kept = self.answered = 0
        self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.cost_before = store.cost
        self.stopped: str | None = None
        self.started = self.last_reply = time.monotonic()
        self.seconds = 0.0
        self._has_replied = False
        self._failures_in_a_row = 0
        self._reserved = 0.0
        self._token_ratio = store.token_ratio
        self._rate = RateLimit(config.requests_per_minute)

    def run(self, watch: Watch | None, *, close: bool) -> None:
        """Request every cue that the store lacks.

        Raises:
            KeyboardInterrupt: on Ctrl-C, once the requests in flight are answered and stored.
        """
        # Closed explicitly, or workers would keep writing to a closed store after an error in `watch`.
        with closing(self._ticks(close)) as ticks:
            for _ in ticks if watch is None else watch(ticks, self.count):
                pass
        self.seconds = time.monotonic() - self.started

    def _ticks(self, close: bool) -> Generator[Tick, None, None]:
        """Run the event loop from one tick to the next, so that the caller needs no asyncio."""
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
                item = await news.get()
                if isinstance(item, Tick):
                    yield item
                else:
                    count -= 1
                    item.result()  # re-raises the worker's exception
        except (asyncio.CancelledError, GeneratorExit):  # Ctrl-C: requests in flight are already paid for
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
        """Get all cues of a problem."""
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
            # Two problems may differ only in their id; the second then waits for the first's cue.
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
            for request in requests_of(self.config, self.prompt, sample, index, self.remarks)
        ]

    async def _cue(self, request: CueRequest, key: str) -> bool:
        """Get one cue into the store; return False if no request was needed."""
        if key in self.store:
            self.kept += 1
            return False
        failure = self.store.failure(key)
        if failure is not None and not self.config.retry_failed:
            self._fail(request, failure.reason, failure.tries)
            return False
        tries = waits = 0
        while True:
            # Until the first reply it is unknown how many tokens an image really takes.
            alone = self.config.budget is not None and self._token_ratio is None
            async with self._first if alone else _nothing():
                estimate = self._cost_bound(request)
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
        """Send one request and store the reply; return the error, or None."""
        self._reserved += estimate
        self.requests += 1
        try:
            reply = await self.client.ask(request)
        except (Unreachable, RequestFailed, Hopeless) as error:
            return error
        finally:
            self._reserved -= estimate
        self.last_reply, self._has_replied = time.monotonic(), True
        cost, counted = self._count_in(request, reply)
        try:
            cue = cue_of(reply, request.field)
        except Unusable as error:
            self.store.add_cost(key, cost, str(error))
            return RequestFailed(str(error), again=error.again)
        about = {"id": request.sample_id, "number": request.number, "seed": request.seed}
        about |= {"model": self.client.name, "prompt": self.prompt.label, "cut_off": reply.cut_off}
        self.store.add(key, cue, cost=cost, **about, **counted)
        return None

    def _count_in(self, request: CueRequest, reply: Reply) -> tuple[float, dict[str, float]]:
        """Count a reply's tokens, estimated if the endpoint does not; return its price and the counts."""
        estimated = estimated_tokens(request.question, self.config.asking)
        sent = estimated if reply.prompt_tokens is None else reply.prompt_tokens
        received = request.max_tokens if reply.completion_tokens is None else reply.completion_tokens
        self.prompt_tokens += sent
        self.completion_tokens += received
        ratio = sent / estimated
        self._token_ratio = max(self._token_ratio or 0.0, ratio)
        counted = {"prompt_tokens": sent, "completion_tokens": received, "token_ratio": round(ratio, 4)}
        return self.config.price(sent, received), counted

    def _cost_bound(self, request: CueRequest) -> float:
        ratio = 1.0 if self._token_ratio is None else self._token_ratio
        return self.config.price(
            ratio * estimated_tokens(request.question, self.config.asking), request.max_tokens
        )

    def _afford(self, estimate: float) -> bool:
        """Whether one more request fits into the budget, with all that are in flight."""
        if self.stopped is not None:
            return False
        budget = self.config.budget
        if budget is not None and self.store.cost + self._reserved + estimate > budget:
            self._stop(
                f"the budget of {budget:g} does not cover another request ({self.store.cost:.4f} spent so "
                "far). Raise it to continue."
            )
            return False
        return True

    async def _turn(self) -> bool:
        await self._rate.turn()
        return self.stopped is None

    def _out_of_patience(self, error: Unreachable) -> bool:
        patience = self.config.patience_seconds
        if not (self._has_replied or error.answered):
            patience = min(patience, FIRST_SILENCE)
        if time.monotonic() - self.last_reply < patience:
            return False
        # No problem is at fault, so none is set aside.
        self._stop(f"no request succeeded for {patience:g} s: {error}. Rerun the command once it is up.")
        return True

    async def _pause(self, seconds: float) -> bool:
        """Wait, but not beyond the end of the run; return whether the run continues."""
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
        self._write_failures(failed)
        out = None
        notes = list(self.store.notes)
        if self.stopped is None or config.write_partial:
            out = Path(config.output)
            rows, added = self._columns(table)
            move = None if config.data.image_dir is not None else mover(table, self.source, out)
            write_output(
                table,
                out,
                rows,
                added,
                new_columns(config, self.prompt),
                move,
                replace=self._may_replace(out),
                before=partial(self.store.note_file, out),
            )
            if move is None:
                notes += _media_elsewhere(self.source, table, out, config)
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
            output=out,
            failed_file=failed_file,
            store=self.store.path,
            notes=tuple(notes),
        )

    def _write_failures(self, failed: Sequence[FailedProblem]) -> None:
        """Write the list of failures; without any, remove that of an earlier run."""
        path = self.config.failed_path
        if not failed:
            if self._may_replace(path):
                path.unlink(missing_ok=True)
            return
        lines = "".join(json.dumps(asdict(problem)) + "\n" for problem in failed)

        def write(file: Path) -> None:
            file.write_text(lines, encoding="utf-8")
            self.store.note_file(path, file)

        write_whole(path, write, replace=self._may_replace(path))

    def _may_replace(self, path: Path) -> bool:
        return self.config.overwrite or self.store.has_written(path)

    def _columns(self, table: Table) -> tuple[list[int], dict[str, list[Any]]]:
        """The rows of the output and their new columns. With a limit, the rows after it are left out."""
        of_row = {self.source.row_number(index): index for index in range(self.count)}
        last = len(table) if self.count == len(self.source) else max(of_row) + 1
        names = list(new_columns(self.config, self.prompt))
        values: dict[str, list[Any]] = {name: [] for name in names}
        for row in range(last):
            keys = self.keys[of_row[row]] if row in of_row else []
            cues = [self.store.cue(key) for key in keys if key in self.store]
            made = bool(cues)
            values[names[0]].append(cues[0] if made else None)
            if self.config.cues_per_problem > 1:
                values[names[1]].append(cues if made else None)
            values[names[-2]].append(self.client.name if made else None)
            values[names[-1]].append(self.prompt.label if made else None)
        return list(range(last)), values


async def _next(ticks: AsyncIterator[Tick]) -> Tick | None:
    return await anext(ticks, None)


def _nothing() -> AbstractAsyncContextManager[None]:
    return nullcontext()


def _media_elsewhere(source: FileSource, table: Table, out: Path, config: BuildConfig) -> list[str]:
    """The option that readers of the output need if its paths are not relative to its own folder."""
    image_dir = config.data.image_dir
    folder = Path(image_dir) if image_dir is not None else table.folders[0]
    columns = [source.schema[kind] for kind in ("images", "videos") if source.schema[kind] is not None]
    if image_dir is None and folder.resolve() == out.parent.resolve():
        return []
    first = table[source.row_number(0)]
    named = [first.get(str(column)) for column in columns]
    while any(isinstance(entry, list) for entry in named):
        named = [path for entry in named for path in (entry if isinstance(entry, list) else [entry])]
    paths = [e.get("path") if isinstance(e, dict) and not e.get("bytes") else e for e in named]
    relative = [p for p in paths if isinstance(p, str) and not p.startswith(("data:", "/"))]
    return (
        [f"Commands that read it need --image-dir {folder}, which its image paths are relative to."]
        if relative
        else []
    )
