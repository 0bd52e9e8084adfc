"""vLLM on servers, asked over HTTP: the same tokens and pixels as for an engine in this process."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from torch import Tensor

from vicur import distributed
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.vllm.backend import Completion, EngineError, told
from vicur.vllm.inputs import request_body
from vicur.vllm.settings import VLLMConfig

GENERATE = "/inference/v1/generate"
FILE_BYTES = 4 * 2**30
"""Size of a file of weights."""


class RemoteEngine:
    """The client of servers that run a model.

    Args:
        loaded: the model.
        config: settings of the engine, with the servers.
        max_model_len: maximum number of tokens of a prompt and its response.

    Raises:
        EngineError: a server cannot be reached, or takes only shorter prompts.
    """

    def __init__(self, loaded: LoadedModel, config: VLLMConfig, max_model_len: int) -> None:
        self.loaded, self.config = loaded, config
        self.version = 0
        self._merge = loaded.model.config.vision_config.spatial_merge_size
        self._folder = tempfile.TemporaryDirectory(
            prefix="vicur-weights-", dir=config.weights_folder, ignore_cleanup_errors=True
        )
        self._nccl: Any = None
        for url in config.servers:
            self._check(url, max_model_len)

    def load(self) -> None:
        """As described in `Backend.load`."""
        with told("The student's weights do not reach the vLLM servers"):
            if self.config.weight_transfer == "nccl":
                self._send_by_nccl()
            else:
                self._send_by_file()
        self.version += 1

    def generate(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]], sampling: Mapping[str, Any]
    ) -> list[list[Completion]]:
        """As described in `Backend.generate`."""
        bodies = []
        for prompt, group in zip(prompts, seeds, strict=True):
            body = request_body(prompt, self._merge, self.version)
            bodies += [
                body | {"sampling_params": {**sampling, "seed": seed, "logprobs": 0}} for seed in group
            ]
        answers = iter(self._ask(bodies))
        return [[_completion(next(answers)) for _ in group] for group in seeds]

    def score(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """As described in `Backend.score`."""
        bodies, given = [], []
        params = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        for prompt, group in zip(prompts, responses, strict=True):
            for ids in group:
                body = request_body(prompt.continued(ids), self._merge, self.version)
                bodies.append(body | {"sampling_params": params})
                given.append(ids.tolist())
        answers = self._ask(bodies)
        return [_log_probs_of(answer, ids) for answer, ids in zip(answers, given, strict=True)]

    def sleep(self) -> None:
        """As described in `Backend.sleep`: a server has a GPU of its own."""

    def wake(self, part: str) -> None:
        """As described in `Backend.wake`: a server is always awake."""

    def close(self) -> None:
        """As described in `Backend.close`; the servers go on."""
        if self._nccl is not None:
            self._nccl.shutdown()
        self._folder.cleanup()

    def _check(self, url: str, max_model_len: int) -> None:
        """Check that a server is there, and made for a trainer.

        Raises:
            EngineError: it is not.
        """
        with told(f"The vLLM server {url} cannot be used"), self._client() as client:
            models = client.get(f"{url.rstrip('/')}/v1/models")
            models.raise_for_status()
            longest = models.json()["data"][0]["max_model_len"]
            if longest < max_model_len:
                raise EngineError(
                    f"The vLLM server {url} takes {longest:,} tokens of prompt and response, and "
                    f"{max_model_len:,} are needed. Start it with max_model_len={max_model_len}, or set "
                    "max_model_len here, too."
                )
            if client.get(f"{url.rstrip('/')}/server_info").status_code == 404:
                raise EngineError(
                    f"The vLLM server {url} takes no weights and no tokens. Start it with "
                    "`vicur serve CHECKPOINT trainable=true`."
                )

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=self.config.timeout_seconds)

    def _ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The answers to requests, in their order."""
        return asyncio.run(self._ask_all(bodies))

    async def _ask_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        slots = asyncio.Semaphore(self.config.max_num_seqs * len(self.config.servers))
        limits = httpx.Limits(max_connections=None)
        urls = itertools.islice(itertools.cycle(self.config.servers), distributed.rank(), None)
        async with httpx.AsyncClient(timeout=self.config.timeout_seconds, limits=limits) as client:

            async def ask(url: str, body: Mapping[str, Any]) -> Any:
                async with slots:
                    with _failures_of(url):
                        answer = await client.post(url.rstrip("/") + GENERATE, json=body)
                        answer.raise_for_status()
                        return answer.json()

            tasks = [asyncio.create_task(ask(next(urls), body)) for body in bodies]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    def _post_all(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        with self._client() as client:
            for url in self.config.servers:
                with _failures_of(url):
                    client.post(url.rstrip("/") + path, json=body).raise_for_status()

    def _send_by_file(self) -> None:
        """Write the weights to a folder, and let the servers read them."""
        for name, part in _parts(self.loaded.current_weights()):
            if distributed.is_main():
                save_file(part, Path(self._folder.name) / name)

        def reload() -> None:
            arguments = {"weights_path": str(Path(self._folder.name).resolve())}
            self._post_all("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
            self._forget()

        distributed.main_only(reload)

    def _send_by_nccl(self) -> None:
        """Send the weights from GPU to GPU."""
        if self._nccl is None:
            from vicur.vllm.nccl import connect

            self._nccl = connect(self.loaded, self.config)
        self._nccl.send_weights()
        distributed.main_only(self._forget)

    def _forget(self) -> None:
        self._post_all("/reset_prefix_cache")
        self._post_all("/reset_encoder_cache")


def _parts(weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Weights in files of at most `FILE_BYTES`, on the CPU of the main rank."""
    part: dict[str, Tensor] = {}
    numbers = itertools.count(1)
    size = 0
    for name, weight in weights:
        if distributed.is_main():
            part[name] = weight.cpu().contiguous().clone()
        size += weight.nbytes
        if size >= FILE_BYTES:
            yield f"model-{next(numbers):05d}.safetensors", part
            part, size = {}, 0
    yield f"model-{next(numbers):05d}.safetensors", part


@contextmanager
def _failures_of(url: str) -> Iterator[None]:
    """A context in which a server's failures are told.

    Raises:
        EngineError: it answers with an error, too late, or not at all.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        text = " ".join(error.response.text.split())[:300]
        code = error.response.status_code
        raise EngineError(f"The vLLM server {url} answers {code}: {text}") from error
    except httpx.TimeoutException as error:
        raise EngineError(
            f"The vLLM server {url} has not answered in time (timeout_seconds). Is it stuck?"
        ) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"The vLLM server {url} cannot be reached: {reason}") from error


def _completion(answer: Mapping[str, Any]) -> Completion:
    (choice,) = answer["choices"]
    log_probs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return Completion(choice["token_ids"], log_probs, choice["finish_reason"] == "stop")


def _log_probs_of(answer: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
    """The log-probs of the last tokens of a prompt."""
    entries = answer["prompt_logprobs"][-len(ids) :]
    return torch.tensor([entry[str(token)]["logprob"] for entry, token in zip(entries, ids, strict=True)])
