"""vLLM on servers, asked over HTTP: the same tokens and pixels as for an engine in this process."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from torch import Tensor

from vicur import distributed
from vicur.encoding.prompts import EncodedPrompt
from vicur.models.load import LoadedModel
from vicur.vllm.backend import Completion, EngineError, failures_reported
from vicur.vllm.inputs import request_body
from vicur.vllm.settings import VLLMConfig

GENERATE = "/inference/v1/generate"
MOST_TOGETHER = 64
"""Maximum number of responses of one request: a server refuses more than it decodes together."""
FILE_BYTES = 4 * 2**30
"""Size of a file of weights."""


class ServedModel:
    """The client of servers that run a model: tokens and pixels go there, tokens and log-probs come back.

    Args:
        urls: the servers.
        merge: side, in patches, of a visual token.
        max_model_len: maximum number of tokens of a prompt and its response.
        timeout: maximum time in seconds until a server answers.
        most: maximum number of requests to each server at the same time.

    Raises:
        EngineError: a server cannot be reached, takes no tokens, or takes only shorter prompts.
    """

    def __init__(
        self, urls: Sequence[str], merge: int, max_model_len: int, timeout: float, most: int = 256
    ) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        self.version = 0
        self._merge, self._timeout, self._most = merge, timeout, most
        for url in self.urls:
            self._check(url, max_model_len)

    def generate(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[Sequence[int]], sampling: Mapping[str, Any]
    ) -> list[list[Completion]]:
        """As described in `Backend.generate`."""
        bodies = []
        for prompt, group in zip(prompts, seeds, strict=True):
            body = request_body(prompt, self._merge, self.version)
            for first, number in _runs(group):
                params = {**sampling, "seed": first, "n": number, "logprobs": 0}
                bodies.append(body | {"sampling_params": params})
        answers = asyncio.run(self._ask(bodies))
        completions = iter([completion for answer in answers for completion in _completions(answer)])
        return [[next(completions) for _ in group] for group in seeds]

    def score(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Log-probs of given responses, in nats, one tensor for each in the flat order.

        Args:
            prompts: the prompts.
            responses: token ids of the responses to each prompt.

        Raises:
            EngineError: a server fails.
        """
        bodies, responses_ids = [], []
        params = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        for prompt, group in zip(prompts, responses, strict=True):
            # Images and salt are those of the prompt.
            body = request_body(prompt, self._merge, self.version) | {"sampling_params": params}
            for ids in group:
                responses_ids.append(ids.tolist())
                bodies.append(body | {"token_ids": [*body["token_ids"], *responses_ids[-1]]})
        answers = asyncio.run(self._ask(bodies))
        return [_log_probs_of(answer, ids) for answer, ids in zip(answers, responses_ids, strict=True)]

    def _check(self, url: str, max_model_len: int) -> None:
        """Check that a server is there and takes these prompts.

        Raises:
            EngineError: it is not, or does not.
        """
        with _failures_of(url), httpx.Client(timeout=self._timeout) as client:
            models = client.get(f"{url}/v1/models")
            models.raise_for_status()
            longest = models.json()["data"][0]["max_model_len"]
            if client.get(f"{url}{GENERATE}").status_code == 404:
                raise EngineError(
                    f"The vLLM server {url} does not accept token ids. Start it with `vicur serve`."
                )
        if longest < max_model_len:
            raise EngineError(
                f"The vLLM server {url} takes {longest:,} tokens of prompt and response, and "
                f"{max_model_len:,} may be needed. Start it with max_model_len={max_model_len}."
            )

    async def _ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The answers to requests, in their order."""
        slots = asyncio.Semaphore(self._most * len(self.urls))
        urls = itertools.islice(itertools.cycle(self.urls), distributed.rank(), None)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=self._timeout, limits=limits) as client:

            async def ask(url: str, body: Mapping[str, Any]) -> Any:
                async with slots:
                    with _failures_of(url):
                        answer = await client.post(url + GENERATE, json=body)
                        answer.raise_for_status()
                        return answer.json()

            tasks = [asyncio.create_task(ask(next(urls), body)) for body in bodies]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()


class RemoteEngine(ServedModel):
    """Servers that run the student, and get its weights.

    Args:
        loaded: the student.
        config: settings of the engine, with the servers.
        max_model_len: maximum number of tokens of a prompt and its response.

    Raises:
        EngineError: as in `ServedModel`.
    """

    def __init__(self, loaded: LoadedModel, config: VLLMConfig, max_model_len: int) -> None:
        merge = loaded.model.config.vision_config.spatial_merge_size
        super().__init__(config.servers, merge, max_model_len, config.timeout_seconds, config.max_num_seqs)
        self.loaded, self.config = loaded, config
        self._folder = tempfile.TemporaryDirectory(
            prefix="vicur-weights-", dir=config.weights_folder, ignore_cleanup_errors=True
        )
        self._nccl: Any = None

    def load(self) -> None:
        """As described in `Backend.load`."""
        with failures_reported("The student's weights do not reach the vLLM servers"):
            if self.config.weight_transfer == "nccl":
                self._send_by_nccl()
            else:
                self._send_by_file()
            distributed.main_only(self._forget)
        self.version += 1

    def sleep(self) -> None:
        """As described in `Backend.sleep`: a server has a GPU of its own."""

    def wake(self, part: str) -> None:
        """As described in `Backend.wake`: a server is always awake."""

    def close(self) -> None:
        """As described in `Backend.close`; the servers keep running."""
        if self._nccl is not None:
            with suppress(Exception):  # whatever ended the run is the error to report
                self._nccl.close()
        self._folder.cleanup()

    def _send_by_file(self) -> None:
        """Write the weights to a folder, and let the servers read them."""
        folder = Path(self._folder.name).resolve()
        for name, part in _parts(self.loaded.current_weights()):
            if distributed.is_main():
                save_file(part, folder / name)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        distributed.main_only(lambda: self._post_all("/collective_rpc", body))

    def _send_by_nccl(self) -> None:
        """Send the weights from GPU to GPU."""
        if self._nccl is None:
            from vicur.vllm.nccl import Sender

            self._nccl = Sender(self.loaded, self.config)
        self._nccl.send()

    def _forget(self) -> None:
        """Let the servers drop what they computed with the old weights."""
        self._post_all("/reset_prefix_cache")
        self._post_all("/reset_encoder_cache")

    def _post_all(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        with httpx.Client(timeout=self._timeout) as client:
            for url in self.urls:
                with _failures_of(url):
                    answer = client.post(url + path, json=body)
                    if answer.status_code == 404:
                        raise EngineError(
                            f"The vLLM server {url} does not accept new weights. Start it with `vicur "
                            "serve CHECKPOINT trainable=true`."
                        )
                    answer.raise_for_status()


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
    """A context in which a server's failures are reported.

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


def _runs(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Seeds in a row, as their first and their number: vLLM counts up the seeds of one request's responses.

    The pixels of a prompt are sent once for all of them.
    """
    start = 0
    for end in range(1, len(seeds) + 1):
        is_full = end - start == MOST_TOGETHER
        if is_full or end == len(seeds) or seeds[end] != seeds[end - 1] + 1:
            yield seeds[start], end - start
            start = end


def _completions(answer: Mapping[str, Any]) -> list[Completion]:
    """The responses of an answer, in the order of their seeds."""
    return [
        Completion(
            choice["token_ids"],
            [token["logprob"] for token in choice["logprobs"]["content"]],
            choice["finish_reason"] == "stop",
        )
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
    ]


def _log_probs_of(answer: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
    """The log-probs of the last tokens of a prompt."""
    entries = answer["prompt_logprobs"][-len(ids) :]
    return torch.tensor([entry[str(token)]["logprob"] for entry, token in zip(entries, ids, strict=True)])
