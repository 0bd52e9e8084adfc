"""Sends weights to servers of vLLM over NCCL, with vLLM's own protocol. Needs a GPU on both sides."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
)

from vicur import distributed
from vicur.models.load import LoadedModel
from vicur.vllm.settings import VLLMConfig


class StudentWeights(WeightSource):
    """A model's weights: their names and shapes at once, their values one after another.

    Args:
        loaded: the model.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of every weight."""
        shapes = self.loaded.weight_shapes()
        return [ParamMeta(name, self.loaded.dtype, tuple(shape)) for name, shape in shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """The weights; all ranks must use them up together."""
        return self.loaded.current_weights()


class Servers:
    """The servers as one: vLLM's trainer drives them through these methods.

    Args:
        urls: the servers.
        timeout: maximum time in seconds until a server answers.
    """

    def __init__(self, urls: Sequence[str], timeout: float) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        self.timeout = timeout
        self.workers = [self._workers(url) for url in self.urls]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the servers join the group, each with the ranks of its workers."""
        bodies, offset = [], 1
        for workers in self.workers:
            bodies.append({"init_info": init_info | {"rank_offset": offset}})
            offset += workers
        self._post("init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        """Announce new weights."""
        self._post("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Let the servers receive the weights."""
        self._post("update_weights", [{"update_info": update_info}] * len(self.urls))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let the servers use the new weights."""
        self._post("finish_weight_update")

    def shutdown_weight_transfer_engine(self) -> None:
        """Let the servers leave the group."""
        self._post("shutdown_weight_transfer_engine")

    def _workers(self, url: str) -> int:
        answer = httpx.get(f"{url}/get_world_size", timeout=self.timeout)
        answer.raise_for_status()
        return int(answer.json()["world_size"])

    def _post(self, path: str, bodies: Sequence[Any] | None = None) -> None:
        """Call all servers at the same time: they wait for each other."""
        import asyncio

        async def call_all() -> None:
            async with httpx.AsyncClient(timeout=self.timeout) as client:
                calls = [
                    client.post(f"{url}/{path}", json=None if bodies is None else bodies[i])
                    for i, url in enumerate(self.urls)
                ]
                for answer in await asyncio.gather(*calls):
                    answer.raise_for_status()

        asyncio.run(call_all())


def connect(loaded: LoadedModel, config: VLLMConfig) -> Any:
    """vLLM's sender of weights, connected to the servers. The main rank sends; all ranks must call this.

    Args:
        loaded: the model.
        config: settings with the servers.
    """
    servers = Servers(config.servers, config.timeout_seconds)
    info = NCCLTrainerInitInfo(
        rank=distributed.rank(),
        master_address=socket.gethostbyname(socket.gethostname()),
        master_port=_free_port(),
        world_size=1 + sum(servers.workers),
    )
    return NCCLTrainerWeightTransferEngine.trainer_init(info, client=servers, source=StudentWeights(loaded))


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("", 0))
        return int(bound.getsockname()[1])
