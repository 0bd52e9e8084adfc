"""Chooses a run's device and measures its memory."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch

from vicur import distributed

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
"""Values of the setting `training.device`."""


def choose_device(name: str = "auto", number: int = 0) -> torch.device:
    """The device of a setting. With a GPU, float32 convolutions are computed in float32 from then on.

    Args:
        name: "auto" for a GPU if torch finds one, otherwise the CPU; or "cpu", "cuda", "cuda:N".
        number: number of the GPU where the name has none: of several processes on a machine each has its own.

    Raises:
        ValueError: there is no such device.
    """
    check_name(name)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"training.device={name}, but {_why_no_gpu()}.")
    # With its number, which set_device requires.
    device = torch.device(name if ":" in name else f"cuda:{number}")
    count, processes = torch.cuda.device_count(), distributed.processes_on_this_node()
    if processes > 1 and ":" in name:
        raise ValueError(
            f"training.device={name} would give {processes} processes the same GPU. Set training.device=cuda "
            "instead: each process then takes its own."
        )
    if processes > count:
        raise ValueError(
            f"{processes} processes were started on this machine, but torch finds {count} GPU(s): each "
            "process needs its own. Use a smaller --nproc-per-node, or training.device=cpu."
        )
    if device.index >= count:
        raise ValueError(
            f"training.device={name}, but torch finds {count} GPU(s): cuda:0 to cuda:{count - 1}."
        )
    # By default cuDNN rounds the inputs of float32 convolutions, here the patch embedding's, to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    return device


def check_name(name: str) -> None:
    """Check the spelling of a device, not whether it exists.

    Raises:
        ValueError: a run cannot use such a device.
    """
    if name.partition(":")[0] == "mps":
        raise ValueError(
            "training.device=mps is not supported: sampling needs float64, which Apple GPUs lack. Set "
            "training.device=cpu."
        )
    if DEVICE.fullmatch(name) is None:
        raise ValueError(f"training.device must be auto, cpu, cuda or cuda:N, not {name!r}.")


def cpu_notice(name: str, device: torch.device) -> str | None:
    """A sentence if a run uses the CPU without being set to it; None otherwise.

    Args:
        name: value of the setting.
        device: the device that it selected.
    """
    if name != "auto" or device.type != "cpu":
        return None
    return f"Running on the CPU: {_why_no_gpu()}. (training.device=cpu hides this line.)"


def _why_no_gpu() -> str:
    if not _driver_present():
        return "no GPU was found"
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"an NVIDIA driver is installed, but torch {torch.__version__} is a build without CUDA; install "
            "a CUDA build (https://pytorch.org/get-started/locally)"
        )
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    return (
        f"an NVIDIA driver is installed, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot "
        "use a GPU; compare its CUDA version with the driver's in nvidia-smi"
    )


def _driver_present() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def available_memory(device: torch.device) -> int | None:
    """Number of bytes that a run may use; None if unknown.

    On a GPU, free memory plus torch's reserved memory; on a CPU, this process's share of the memory of the
    machine or container.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    machine = machine_memory()
    return None if machine is None else machine // distributed.processes_on_this_node()


def machine_memory() -> int | None:
    """Number of bytes of CPU memory of the machine or container; None if unknown."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limits = [_read_number(Path(name)) for name in CGROUP_LIMITS]
    return min([machine, *(limit for limit in limits if limit is not None)])


CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, under cgroup version 2 and 1."""


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of a GPU; that of a CPU process cannot be reset portably."""
    if device.type == "cuda":
        torch.cuda.init()  # before this there are no statistics to reset
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The peak number of bytes in use: by torch's allocator on a GPU, by the whole process on a CPU.

    None if the operating system does not report it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
