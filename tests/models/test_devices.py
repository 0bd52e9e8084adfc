"""Devices: chosen, rejected, and a notice if the CPU is used instead of a GPU."""

from __future__ import annotations

import pytest
import torch

from vicur.models import devices
from vicur.models.devices import available_memory, choose_device, cpu_notice, machine_memory, peak_memory
from vicur.run.recipe import load_recipe
from vicur.settings.section import SettingsError


@pytest.fixture
def gpus(monkeypatch):
    """Let torch find this many GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_auto_takes_a_gpu_where_there_is_one(gpus):
    gpus(2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    gpus(0)
    assert choose_device("auto") == torch.device("cpu")


def test_a_missing_gpu_is_rejected(gpus):
    gpus(2)
    with pytest.raises(ValueError, match=r"device=cuda:2, but torch finds 2 GPU\(s\): cuda:0 to cuda:1"):
        choose_device("cuda:2")
    gpus(0)
    with pytest.raises(ValueError, match=r"training\.device=cuda, but "):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "mps", "mps:0"])
def test_unknown_devices(name):
    with pytest.raises(SettingsError, match=r"training\.device"):
        load_recipe("cuebench/opsd_cue", [f"training.device={name}"])


@pytest.mark.parametrize(
    "driver, cuda, visible, sentence",
    [
        (False, None, None, "no GPU was found"),
        (False, "12.8", None, "no GPU was found"),
        (True, None, None, "is a build without CUDA"),
        (True, "12.8", "", "CUDA_VISIBLE_DEVICES hides every GPU"),
        (True, "12.8", "0", "cannot use a GPU"),
        (True, "12.8", None, "cannot use a GPU"),
    ],
)
def test_a_run_on_the_cpu_says_why(monkeypatch, driver, cuda, visible, sentence):
    monkeypatch.setattr(devices, "_driver_present", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cpu = torch.device("cpu")
    assert sentence in cpu_notice("auto", cpu)
    assert cpu_notice("cpu", cpu) is None
    assert cpu_notice("auto", torch.device("cuda:0")) is None


def test_memory_of_a_gpu(monkeypatch):
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 80) if device == gpu else None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 if device == gpu else None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 if device == gpu else None)
    assert available_memory(gpu) == 76 and peak_memory(gpu) == 5


def test_memory_of_the_cpu(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert peak_memory(cpu) > 100 * 2**20  # torch alone takes more
    machine = available_memory(cpu)
    assert machine > peak_memory(cpu) / 2
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "CGROUP_LIMITS", (str(limit),))
    limit.write_text("max\n")
    whole = available_memory(cpu)
    limit.write_text("1000000\n")
    assert available_memory(cpu) == 1_000_000 < machine <= whole
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(cpu) == 250_000 and machine_memory() == 1_000_000
