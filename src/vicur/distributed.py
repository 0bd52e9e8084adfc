"""The processes of a run: joins the job that torchrun started, and exchanges values between its ranks.

Every function also works in a single process, where there is nothing to exchange. Other code handles its own
share of the problems and calls `gather` where it needs those of all ranks.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Value = TypeVar("Value")
Sharding = Literal["full", "hybrid", "replicated"]
"""Where the shards of the weights are: on all ranks; on the ranks of each node, with a copy per node; or
whole on every rank."""
TIMEOUT = timedelta(minutes=60)
"""A rank may wait this long for the others, e.g. while one of them grades long responses."""
PEER_WAIT = timedelta(seconds=10)
"""A rank whose peer is gone waits this long for the message that the peer may have left in the store."""
_FAILURE = "vicur/failure"
_groups: dict[str, dist.ProcessGroup] = {}
_has_joined = False


class PeerError(ValueError):
    """Another rank has ended, so this one must end too."""


def launched() -> bool:
    """Whether torchrun, or another launcher with its environment variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Number of this process on its node; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() else 0


def processes_on_this_node() -> int:
    """Number of processes that the launcher started on this node; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1


def launched_first() -> bool:
    """Whether this process is the main one, also before `start`."""
    return not launched() or os.environ["RANK"] == "0"


def speaks_for(error: BaseException) -> bool:
    """Whether this process prints an error. An error that all ranks share is printed once per node."""
    has_own_error = dist.is_initialized() and not isinstance(error, PeerError)
    return has_own_error or local_rank() == 0


def start(device: torch.device) -> None:
    """Join the other processes of the job. Without a launcher, or the second time, nothing happens.

    Args:
        device: device of this process; selects the backend of its collectives.
    """
    if launched() and not dist.is_initialized():
        _join(device.type, timeout=TIMEOUT)


def _join(device_type: str, **settings: Any) -> None:
    global _has_joined
    _has_joined = True
    dist.init_process_group(_backend(device_type), **settings)


def _backend(device_type: str) -> str:
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"


def stop() -> None:
    """Leave the job."""
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def exit_if_joined(code: int) -> None:
    """End this process, if it has been in a process group, before Python takes itself down.

    A thread of gloo may still have to release a tensor, for which it needs Python. When Python is gone, that
    aborts the process ("terminate called without an active exception"), and the launcher takes a finished run
    for a failed one.

    Args:
        code: exit code.
    """
    if not _has_joined:
        return
    # What Python does at its end, in this order, up to the point at which other threads may not use it.
    threading._shutdown()  # type: ignore[attr-defined]  # a checkpoint may be being written
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the run's files and prints."""
    return rank() == 0


def ensure_group(device_type: str) -> None:
    """Make a process group of this process alone, if it has none: FSDP2 and checkpoints need one."""
    if not dist.is_initialized():
        _join(device_type, store=HashStore(), rank=0, world_size=1)


def background_group() -> dist.ProcessGroup:
    """A group of all ranks for collectives in a background thread, so that they do not mix with others.

    It is made once, because every group keeps connections open.
    """
    if "background" not in _groups:
        ensure_group("cuda" if torch.cuda.is_available() else "cpu")
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)
        _groups["background"] = group
    return _groups["background"]


def mesh(sharding: Sharding, device_type: str) -> DeviceMesh:
    """The ranks as a mesh for FSDP2: one dimension of shards, or replicas by shards.

    Raises:
        ValueError: hybrid sharding, and nodes have different numbers of processes.
    """
    ensure_group(device_type)
    if sharding == "full":
        return init_device_mesh(device_type, (size(),), mesh_dim_names=("shard",))
    shards = 1
    if sharding == "hybrid":
        counts = sorted({*gather(processes_on_this_node())})
        if len(counts) > 1:
            raise ValueError(
                "training.sharding=hybrid needs the same number of processes on every node, but there are "
                f"nodes with {counts[0]} and with {counts[-1]}."
            )
        shards = counts[0]
    return init_device_mesh(device_type, (size() // shards, shards), mesh_dim_names=("replicate", "shard"))


def share(count: int, of: int | None = None) -> slice:
    """The contiguous share of `count` items that belongs to a rank; shares differ by at most one item.

    Args:
        count: number of items.
        of: the rank; this one if not given.
    """
    number = rank() if of is None else of
    least, more = divmod(count, size())
    start = number * least + min(number, more)
    return slice(start, start + least + (number < more))


def gather(value: Value) -> list[Value]:
    """The values of all ranks, in rank order, on every rank.

    Tensors in the value must be on the CPU. All ranks must call this, in the same order.
    """
    if size() == 1:
        return [value]
    values: list[Value | None] = [None] * size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_tensor(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, joined along the first dimension, on this rank's device."""
    if size() == 1:
        return tensor
    return torch.cat(gather(tensor.detach().cpu())).to(tensor.device)


def gather_list(items: Sequence[Value]) -> list[Value]:
    """The items of all ranks, in rank order."""
    return [item for part in gather(list(items)) for item in part]


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    return max(gather(number))


def total(number: float) -> float:
    """The sum of the ranks' numbers."""
    return sum(gather(number))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return any(gather(flag))


def agree(work: Callable[[], Value]) -> Value:
    """Do something on every rank. If it fails on one of them, it fails on all.

    For work without collectives, e.g. reading this rank's problems: a rank that fails alone would leave the
    others waiting.

    Raises:
        PeerError: it failed on another rank; the message is that rank's.
    """
    error: Exception | None = None
    result: Value | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    if size() > 1:
        messages = gather(None if error is None else _said(error))
        if error is None:
            for number, message in enumerate(messages):
                if message is not None:
                    raise PeerError(f"rank {number}: {message}")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def main_only(work: Callable[[], None]) -> None:
    """Do something on the main rank while the others wait. If it fails, it fails on all ranks.

    Raises:
        PeerError: it failed on the main rank, and this is another.
    """
    agree(lambda: work() if is_main() else None)


def main_value(work: Callable[[], Value]) -> Value:
    """The value that the main rank computes, on all ranks.

    Raises:
        PeerError: it failed on the main rank, and this is another.
    """
    value = agree(lambda: work() if is_main() else None)
    return gather(value)[0]  # type: ignore[return-value]


@contextmanager
def shared_failures() -> Iterator[None]:
    """A context in which a rank that fails tells the others why.

    When a rank ends, the collectives of the others fail with an error of the network. They then raise that
    rank's error instead.

    Raises:
        PeerError: another rank failed first.
    """
    try:
        yield
    except PeerError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if size() == 1:
            raise
        store = dist.distributed_c10d._get_default_store()
        # The launcher stops the other processes when one fails: for these it is an interrupt.
        if isinstance(error, KeyboardInterrupt):
            if type(error) is KeyboardInterrupt and _has_failure(store):
                raise _peer_error(store, error) from error
            raise
        if _is_of_the_network(error):
            raise _peer_error(store, error) from error
        store.set(_FAILURE, f"rank {rank()}: {_said(error)}")
        raise


def _said(error: BaseException) -> str:
    """What an error says; the messages of Python's own errors make sense only with their names."""
    is_sentence = isinstance(error, ValueError | OSError | FloatingPointError)
    return str(error) if is_sentence else f"{type(error).__name__}: {error}"


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, was raised by a collective because a peer is gone."""
    if error is None:
        return False
    if isinstance(error, dist.DistError):
        return True
    # gloo raises plain RuntimeErrors that begin with the line of its source. An error of a checkpoint may be
    # caused by one.
    is_gloos = type(error) is RuntimeError and "gloo/" in str(error)
    return is_gloos or _is_of_the_network(error.__cause__)


def _has_failure(store: dist.Store) -> bool:
    try:
        return bool(store.check([_FAILURE]))
    except Exception:  # the store may be gone with its rank
        return False


def _peer_error(store: dist.Store, error: BaseException) -> PeerError:
    """The failure that another rank has left in the store, or that it ended without a message."""
    try:
        store.wait([_FAILURE], PEER_WAIT)
    except (Exception, KeyboardInterrupt):
        if not _has_failure(store):
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            return PeerError(f"Another process of this job ended without a message ({first_line}).")
    return PeerError(store.get(_FAILURE).decode())
