"""Sends weights to servers of vLLM over NCCL, with vLLM's own protocol. Needs a GPU on both sides."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

LEAVING = 30.0
"""Maximum time in seconds until a server leaves the group."""


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
        """The weights on the GPU; all ranks must use them up together."""
        device = self.loaded.device
        return ((name, weight.to(device)) for name, weight in self.loaded.current_weights())


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
        self.timeout = min(self.timeout, LEAVING)
        self._post("shutdown_weight_transfer_engine")

    def _workers(self, url: str) -> int:
        answer = httpx.get(f"{url}/get_world_size", timeout=self.timeout)
        answer.raise_for_status()
        return int(answer.json()["world_size"])

    def _post(self, path: str, bodies: Sequence[Any] | None = None) -> None:
        """Call all servers at the same time: they wait for each other."""

        def post(number: int) -> None:
            body = None if bodies is None else bodies[number]
            httpx.post(f"{self.urls[number]}/{path}", json=body, timeout=self.timeout).raise_for_status()

        with ThreadPoolExecutor(len(self.urls)) as pool:
            list(pool.map(post, range(len(self.urls))))


class Sender:
    """Sends the student's weights to the servers. All ranks make one together; the main rank sends.

    Args:
        loaded: the student.
        config: settings with the servers.
    """

    def __init__(self, loaded: LoadedModel, config: VLLMConfig) -> None:
        self._servers = Servers(config.servers, config.timeout_seconds)
        info = NCCLTrainerInitInfo(
            rank=distributed.rank(),
            master_address=_address_for(config.servers[0]),
            master_port=_free_port(),
            world_size=1 + sum(self._servers.workers),
        )
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=self._servers, source=StudentWeights(loaded)
        )

    def send(self) -> None:
        """Send the current weights; all ranks must call this."""
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the group, and let the servers leave it."""
        if distributed.is_main():
            self._servers.shutdown_weight_transfer_engine()
        self._engine.shutdown()


def _address_for(url: str) -> str:
    """The address of this machine that a server can reach: that of the interface towards it."""
    host = httpx.URL(url).host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))  # chooses an interface; nothing is sent
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("", 0))
        return int(bound.getsockname()[1])
