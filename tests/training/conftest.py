"""Models for the tests of training."""

from __future__ import annotations

import pytest
import torch

from vicur.models.load import load_model


@pytest.fixture(scope="module")
def other_weights(base_folder):
    """The base with weights of its own."""
    loaded = load_model(base_folder)
    torch.manual_seed(7)
    for parameter in loaded.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return loaded
