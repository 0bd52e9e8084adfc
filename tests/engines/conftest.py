"""An engine of vLLM with the weights of a small student, shared by all tests of a worker."""

from __future__ import annotations

import pytest
import torch
from comparing import picture, sharpened
from copies import Copy

from vicur.cuebench.tiny import STUDENT, build_model
from vicur.data.sample import Sample
from vicur.media.video import Video
from vicur.models.load import LoadedModel, RecoveryConfig, StudentConfig, load_student
from vicur.vllm.settings import VLLMConfig


def message(role: str, *parts: str) -> dict:
    """A message of texts, "<image>" and "<video>"."""
    kinds = {"<image>": {"type": "image"}, "<video>": {"type": "video"}}
    return {"role": role, "content": [kinds.get(part, {"type": "text", "text": part}) for part in parts]}


@pytest.fixture
def copies(monkeypatch):
    """The copies that stand in for vLLM, as they are made."""
    monkeypatch.setattr("vicur.rollouts.vllm_engine.check_installed", lambda: None)
    monkeypatch.setattr("vicur.rollouts.vllm_engine.make_backend", Copy)
    monkeypatch.setattr(Copy, "made", [])
    return Copy.made


LONG = "Answer with one word. " * 40


@pytest.fixture(scope="session")
def kinds() -> dict[str, Sample]:
    """A problem of every kind that a batch can hold."""
    frames = tuple(picture(20 + i, 64, 48) for i in range(5))
    return {
        "one image": Sample("one", (message("user", "<image>", "What is it?"),), (picture(1, 96, 64),)),
        "three images": Sample(
            "three",
            (message("user", "<image>", "and", "<image>", "or", "<image>", "Which?"),),
            (picture(2, 64, 64), picture(3, 96, 96), picture(4, 128, 32)),
        ),
        "video": Sample(
            "video", (message("user", "<video>", "What happens?"),), videos=(Video(frames, 2.0),)
        ),
        "video and image": Sample(
            "both",
            (message("user", "<image>", "<video>", "Is it there?"),),
            (picture(5, 64, 64),),
            (Video(frames[:3], 1.0),),
        ),
        "long system prompt": Sample(
            "long",
            (message("system", LONG), message("user", "<image>", "What is it?")),
            (picture(6, 96, 96),),
        ),
        "text only": Sample("text", (message("user", "What is two and two?"),)),
    }


@pytest.fixture(scope="session")
def engine_settings() -> VLLMConfig:
    return VLLMConfig(max_num_seqs=64, kv_cache_gib=1)


@pytest.fixture(scope="session")
def engine_folder(processor, tmp_path_factory) -> str:
    """A checkpoint with random weights; vLLM's attention on CPUs needs heads of 32 and more."""
    torch.manual_seed(0)
    model = sharpened(build_model(STUDENT, processor))
    folder = tmp_path_factory.mktemp("engine-base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def engine_student(engine_folder) -> LoadedModel:
    """The student of the engine, with recovery that does something after layers 0 and 2."""
    torch.manual_seed(1)
    config = RecoveryConfig(enabled=True, interval=2, output_init="normal")
    loaded = load_student(StudentConfig(engine_folder, config))
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.15)
    return loaded


@pytest.fixture(scope="session")
def engine(engine_student, engine_settings):
    from vicur.vllm.local import LocalEngine

    made = LocalEngine(engine_student, engine_settings, max_model_len=1024)
    made.load()
    return made


@pytest.fixture(scope="session")
def report():
    """Prints a line of the table of differences, and returns the difference."""
    lines = []

    def add(name: str, value: float) -> float:
        lines.append(f"{name:50} {value:.1e}")
        return value

    yield add
    print("\n" + "\n".join(lines))
