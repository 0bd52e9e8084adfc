"""Cues from a model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vicur.cues.clients.client import Hopeless, Reply, RequestFailed
from vicur.cues.requests import CueRequest
from vicur.encoding.prompts import PromptEncoder
from vicur.files import folder_digest
from vicur.models.load import LoadedModel, load_model
from vicur.rollouts.generator import TorchGenerator
from vicur.rollouts.processors import SamplingConfig


class LocalClient:
    """A model in this process; one request at a time.

    Args:
        name: folder, hub id or "vicur:NAME".
        load: loads the model, at the first request, so that a build with nothing to ask loads none.
    """

    def __init__(self, name: str, load: Callable[[str], LoadedModel] = load_model) -> None:
        self.name = name
        self._load = load
        self._identity = f"local {name} {folder_digest(Path(name))}"
        self._loaded: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, "local model")

    def identity(self, index: int) -> str:
        return self._identity

    async def ask(self, request: CueRequest) -> Reply:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)

    async def close(self) -> None:
        self._thread.shutdown()

    def _answer(self, request: CueRequest) -> Reply:
        if self._loaded is None:
            try:
                self._loaded = self._load(self.name)
            except ValueError as error:
                raise Hopeless(str(error)) from error
        loaded = self._loaded
        encoder = PromptEncoder.of(loaded)
        temperature = 1.0 if request.temperature is None else request.temperature
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=request.max_tokens)
        try:
            (prompt,) = encoder.encode([request.question])
        except ValueError as error:
            raise RequestFailed(f"the model's processor refuses it: {error}", again=False) from error
        responses, texts = TorchGenerator(loaded, sampling).respond(
            [prompt], [request.sample_id], seed=request.seed
        )
        ((response,),), ((text,),) = responses, texts
        return Reply(text, len(prompt), len(response.ids), response.finish_reason == "length")
