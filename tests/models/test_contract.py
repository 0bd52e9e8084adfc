"""A transformers version that runs Qwen3-VL differently is detected before any model is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen3_vl import modeling_qwen3_vl as dense
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as moe

from vicur.compat import cache_argument
from vicur.models import contract
from vicur.models.checkpoints import resolve_checkpoint
from vicur.models.contract import ContractError, check_contract
from vicur.models.student import (
    ViCuRQwen3VLForConditionalGeneration,
    ViCuRQwen3VLMoeForConditionalGeneration,
)

FAMILIES = [
    (dense.Qwen3VLTextModel, dense.Qwen3VLTextDecoderLayer, ViCuRQwen3VLForConditionalGeneration),
    (moe.Qwen3VLMoeTextModel, moe.Qwen3VLMoeTextDecoderLayer, ViCuRQwen3VLMoeForConditionalGeneration),
]
CACHE = next(iter(cache_argument(None)))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr(contract, "_checked", set())


@pytest.fixture(params=FAMILIES, ids=["dense", "experts"])
def family(request):
    return request.param


def rename(monkeypatch, text_model, old, new):
    """As if the text model's keyword had another name: hooks see the new one, forward gets the old one."""
    call, forward = nn.Module.__call__, text_model.forward

    def renamed_call(self, *args, **kwargs):
        return call(self, *args, **{new if key == old else key: value for key, value in kwargs.items()})

    def renamed_forward(self, *args, **kwargs):
        return forward(self, *args, **{old if key == new else key: value for key, value in kwargs.items()})

    monkeypatch.setattr(text_model, "__call__", renamed_call)
    monkeypatch.setattr(text_model, "forward", renamed_forward)


def test_the_installed_transformers_passes(family):
    check_contract(family[2])


@pytest.mark.parametrize("keyword", [CACHE, "visual_pos_masks", "attention_mask", "position_ids"])
def test_a_renamed_keyword_is_noticed(family, keyword, monkeypatch):
    rename(monkeypatch, family[0], keyword, "another_name")
    with pytest.raises(
        ContractError, match=r"transformers \S+ does not run Qwen3-VL as cue recovery requires"
    ):
        check_contract(family[2])


def test_a_reversed_deepstack_order_is_noticed(family, monkeypatch):
    forward = family[0].forward

    def reversed_forward(self, *args, deepstack_visual_embeds=None, **kwargs):
        features = None if deepstack_visual_embeds is None else deepstack_visual_embeds[::-1]
        return forward(self, *args, deepstack_visual_embeds=features, **kwargs)

    monkeypatch.setattr(family[0], "forward", reversed_forward)
    with pytest.raises(ContractError, match="DeepStack features are not added"):
        check_contract(family[2])


def test_deepstack_features_added_after_the_hook_are_noticed(family, monkeypatch):
    """Features of layer i added inside layer i + 1: the model's result is the same, the hook's is not."""
    layer_forward, process = family[1].forward, family[0]._deepstack_process
    waiting = []

    def later(self, hidden_states, visual_pos_masks, visual_embeds):
        waiting.append((self, visual_pos_masks, visual_embeds))
        return hidden_states

    def late_forward(self, hidden_states, *args, **kwargs):
        if waiting:
            model, masks, embeds = waiting.pop()
            hidden_states = process(model, hidden_states, masks, embeds)
        return layer_forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(family[0], "_deepstack_process", later)
    monkeypatch.setattr(family[1], "forward", late_forward)
    with pytest.raises(ContractError):
        check_contract(family[2])


def test_layers_called_by_keyword_are_noticed(family, monkeypatch):
    call = nn.Module.__call__

    def by_keyword(self, hidden_states, *args, **kwargs):
        return call(self, *args, hidden_states=hidden_states, **kwargs)

    monkeypatch.setattr(family[1], "__call__", by_keyword)
    with pytest.raises(ContractError, match="failed with IndexError"):
        check_contract(family[2])


def test_no_model_is_built_and_each_attempt_says_so(monkeypatch, tiny_student_config):
    rename(monkeypatch, dense.Qwen3VLTextModel, "visual_pos_masks", "visual_mask")
    for _ in range(2):
        with pytest.raises(ContractError, match="Install a tested version"):
            AutoModelForImageTextToText.from_config(tiny_student_config)


def test_building_in_another_context_leaves_it_as_it_was(tiny_student_config):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            check_contract(ViCuRQwen3VLForConditionalGeneration)
            assert torch.empty(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(2), expected)


@pytest.fixture
def tiny_student_config():
    config = AutoConfig.from_pretrained(resolve_checkpoint("vicur:tiny-student"))
    values = {
        key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")
    }
    return ViCuRQwen3VLForConditionalGeneration.config_class(**values)
