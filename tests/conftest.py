"""Shared fixtures. Shapes of the library's public functions are checked while tests run."""

from __future__ import annotations

import copy
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not os.environ.get("VICUR_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU, also where there is a GPU

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "src" / "vicur"
"""Where the source is: to read it, not to import it, as the hook must be there before the import."""


def modules_with_shapes() -> list[str]:
    """Those that annotate shapes. The check costs every call of a module, so the others go without."""
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


install_import_hook(modules_with_shapes(), "beartype.beartype")

import pytest
import torch
from hypothesis import settings

from vicur.cuebench.generate import scenes, to_sample
from vicur.cuebench.tiny import TinySize, build_model, build_processor
from vicur.data.sample import Sample
from vicur.models.load import LoadedModel, RecoveryConfig, StudentConfig, load_student

settings.register_profile("vicur", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vicur"))

SMALL = TinySize(hidden=64, layers=4, heads=4, vision_hidden=32, vision_layers=2)
"""Untrained and smaller than the shipped ones: for tests of mechanics, not of learning."""


WITH_TARGETS = ("gpu", "soak")
"""Folders whose tests `make test` leaves out. Each test there has its folder's name as a marker."""


def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in WITH_TARGETS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def processor():
    return build_processor()


@pytest.fixture(scope="session")
def base_folder(processor, tmp_path_factory):
    """A checkpoint with random weights, in transformers' layout."""
    torch.manual_seed(0)
    model = build_model(SMALL, processor)
    for parameter in model.parameters():  # sharper than the default init, so that views differ
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(base_folder) -> LoadedModel:
    return load_student(StudentConfig(base_folder))


@pytest.fixture(scope="session")
def shared_student(base_folder) -> LoadedModel:
    """With recovery after every second layer, and W_o randomised so that it does something.

    For tests that leave its weights alone; `student` is a copy that a test may change.
    """
    torch.manual_seed(1)
    config = RecoveryConfig(enabled=True, interval=2, output_init="normal")
    loaded = load_student(StudentConfig(base_folder, config))
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.2)
    return loaded


@pytest.fixture
def student(shared_student) -> LoadedModel:
    return copy.deepcopy(shared_student)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    stream = scenes("segments", "train")
    return [to_sample(next(stream)) for _ in range(6)]


@pytest.fixture(scope="session")
def responses(processor, samples) -> list[torch.Tensor]:
    """A response of its own length for each sample."""
    tokenizer = processor.tokenizer
    return [
        torch.tensor([*tokenizer(s.target_response)["input_ids"][: 5 + 3 * i], tokenizer.eos_token_id])
        for i, s in enumerate(samples)
    ]


@pytest.fixture(autouse=True)
def no_reports(request, monkeypatch):
    """Runs of these tests write no report, which takes seconds, unless they ask for `reports`."""
    if "reports" not in request.fixturenames:
        monkeypatch.setattr("vicur.run.execute._Execution._report", lambda execution: None)


@pytest.fixture
def reports():
    """Runs write their reports."""
