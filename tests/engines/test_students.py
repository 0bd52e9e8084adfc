"""Students of every kind in an engine: without recovery, with adapters, with a mixture of experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comparing import BOUND, difference, sharpened
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from vicur.models.adapters import LoRAConfig
from vicur.models.load import RecoveryConfig, StudentConfig, load_student

pytestmark = pytest.mark.vllm
RECOVERY = RecoveryConfig(enabled=True, interval=2, output_init="normal")


@pytest.fixture(scope="module")
def experts_folder(engine_folder, processor, tmp_path_factory):
    """A mixture of experts of the size of the dense student."""
    settings = load_student(StudentConfig(engine_folder)).model.config.to_dict()
    settings.pop("model_type"), settings.pop("architectures", None)
    settings["text_config"] |= {
        "model_type": "qwen3_vl_moe_text",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    }
    settings["vision_config"]["model_type"] = "qwen3_vl_moe_vision"
    torch.manual_seed(0)
    model = sharpened(Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**settings)))
    folder = tmp_path_factory.mktemp("experts")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def student_of(kind, folder, experts_folder):
    if kind == "plain":
        return load_student(StudentConfig(folder))
    if kind == "adapters":
        return load_student(StudentConfig(folder, RECOVERY, lora=LoRAConfig(rank=4, alpha=8.0, vision=True)))
    if kind == "question":
        return load_student(StudentConfig(folder, replace(RECOVERY, sink="question")))
    if kind == "experts":
        return load_student(StudentConfig(experts_folder, RECOVERY))
    return load_student(StudentConfig(experts_folder))


@pytest.mark.parametrize("kind", ["plain", "adapters", "question", "experts", "plain experts"])
def test_each_kind_of_student(kind, engine_folder, experts_folder, kinds, engine_settings, report):
    from vicur.vllm.local import LocalEngine

    torch.manual_seed(1)
    loaded = student_of(kind, engine_folder, experts_folder)
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers") or "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    # More tokens than a forward pass takes: without recovery, prompts could be split.
    settings = replace(engine_settings, max_num_batched_tokens=1024)
    times = 8 if kind == "plain" else 1
    engine = LocalEngine(loaded, settings, max_model_len=1024)
    try:
        engine.load()
        samples = [replace(x, id=f"{x.id} {i}") for i in range(times) for x in kinds.values()]
        largest = difference(engine, loaded, samples, siblings=4)
    finally:
        engine.close()
    assert report(f"{kind}, every kind of prompt, K=4", largest) <= BOUND
