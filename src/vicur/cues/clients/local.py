"""Cues from a model in this process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vicur.cues.requests import CueRequest
from vicur.encoding.prompts import EncodedPrompt, PromptEncoder
from vicur.endpoints.request import Hopeless, Reply, RequestFailed
from vicur.files import folder_digest
from vicur.models.load import LoadedModel, load_model
from vicur.rollouts.engines import Engine, make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.vllm.settings import EngineName, VLLMConfig

Waiting = tuple[CueRequest, "Future[Reply]"]


class LocalClient:
    """A model in this process. With vLLM, requests that wait while it is busy are answered together.

    Args:
        name: folder, hub id or "vicur:NAME".
        load: loads the model, at the first request, so that a build with nothing to ask loads none.
        engine: engine that runs the model.
        vllm: settings for the engine "vllm".
    """

    def __init__(
        self,
        name: str,
        load: Callable[[str], LoadedModel] = load_model,
        engine: EngineName = "torch",
        vllm: VLLMConfig | None = None,
    ) -> None:
        self.name = name
        self._load, self._engine_name, self._vllm = load, engine, vllm or VLLMConfig()
        self._identity = f"local {name} {folder_digest(Path(name))}" + (
            "" if engine == "torch" else f" {engine}"
        )
        self._engine: Engine | None = None
        self._thread = ThreadPoolExecutor(1, "local model")
        self._lock = threading.Lock()
        self._waiting: list[Waiting] = []

    def identity(self, index: int) -> str:
        return self._identity

    async def ask(self, request: CueRequest) -> Reply:
        future: Future[Reply] = Future()
        with self._lock:
            self._waiting.append((request, future))
        self._thread.submit(self._answer_waiting)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        self._thread.shutdown()
        if self._engine is not None:
            self._engine.close()

    def _answer_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        waiting = [(request, future) for request, future in waiting if future.set_running_or_notify_cancel()]
        alike: dict[tuple[object, ...], list[Waiting]] = defaultdict(list)
        for number, (request, future) in enumerate(waiting):
            # A batch changes rounding: with PyTorch every build is the same.
            apart = number if self._engine_name == "torch" else None
            alike[request.temperature, request.max_tokens, request.seed, apart].append((request, future))
        for group in alike.values():
            try:
                self._answer(group)
            except Exception as error:
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)

    def _answer(self, group: Sequence[Waiting]) -> None:
        """Answer requests with the same sampling settings."""
        engine = self._loaded_engine()
        first, _ = group[0]
        temperature = 1.0 if first.temperature is None else first.temperature
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=first.max_tokens)
        encoder = PromptEncoder.of(engine.loaded)
        asked: list[tuple[CueRequest, Future[Reply], EncodedPrompt]] = []
        for request, future in group:
            try:
                (prompt,) = encoder.encode([request.question])
            except ValueError as error:
                failure = RequestFailed(f"the model's processor refuses it: {error}", again=False)
                future.set_exception(failure)
                continue
            if len(prompt) + first.max_tokens > (self._vllm.max_model_len or sys.maxsize):
                failure = RequestFailed("it is longer than vllm.max_model_len", again=False)
                future.set_exception(failure)
                continue
            asked.append((request, future, prompt))
        if not asked:
            return
        responses, texts = ModelGenerator(engine, sampling).respond(
            [prompt for _, _, prompt in asked],
            [request.sample_id for request, _, _ in asked],
            seed=first.seed,
        )
        for (_, future, prompt), (response,), (text,) in zip(asked, responses, texts, strict=True):
            is_cut = response.finish_reason == "length"
            future.set_result(Reply(text, len(prompt), len(response.ids), is_cut))

    def _loaded_engine(self) -> Engine:
        if self._engine is None:
            try:
                self._engine = make_engine(self._load(self.name), self._engine_name, self._vllm)
            except ValueError as error:
                raise Hopeless(str(error)) from error
        return self._engine
