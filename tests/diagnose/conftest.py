"""A teacher, problems in a file, and responses for the analyses that run models."""

from __future__ import annotations

import pytest
import torch

from vicur.cuebench.generate import write_parquet
from vicur.models.load import LoadedModel, load_model
from vicur.rollouts.rollout import Response, Rollouts


@pytest.fixture(scope="session")
def teacher_folder(base_folder, processor, tmp_path_factory) -> str:
    """A checkpoint that differs from the base by noise."""
    loaded = load_model(base_folder)
    torch.manual_seed(7)
    for parameter in loaded.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("teacher")
    loaded.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher(teacher_folder) -> LoadedModel:
    return load_model(teacher_folder)


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("problems") / "problems.parquet"
    write_parquet("segments", "test", 6, path)
    return str(path)


@pytest.fixture(scope="session")
def rollouts(samples, responses) -> Rollouts:
    """Three problems with two responses each."""
    pairs = tuple(
        (Response(a, None, "stop"), Response(b, None, "stop"))
        for a, b in zip(responses[:3], responses[3:], strict=True)
    )
    return Rollouts(tuple(samples[:3]), pairs, (("", ""),) * 3)
