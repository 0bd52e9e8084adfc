"""QLoRA students: a 4-bit base that is never changed, sharded or cast; saving writes a plain checkpoint."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch
from forward import logits_of

from vicur import distributed
from vicur.data.views import Plain
from vicur.models.adapters import LoRAConfig
from vicur.models.load import LoadedModel, RecoveryConfig, StudentConfig, as_base, load_student
from vicur.models.quantised import check_quantisable, dequantised, is_quantised
from vicur.models.sharding import local, shard
from vicur.scoring.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
CPU = torch.device("cpu")
QLORA = LoRAConfig(rank=4, alpha=8.0, quantize="nf4")


def load(base_folder, dtype="float32", recovery=False) -> LoadedModel:
    pytest.importorskip("bitsandbytes")
    config = RecoveryConfig(enabled=recovery, interval=2)
    return load_student(StudentConfig(base_folder, config, dtype=dtype, lora=QLORA))


def shake(loaded):
    """Give every adapter and the recovery module random weights."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name or name.startswith("recovery.layers"):
                local(parameter).normal_(std=0.2)
    return loaded


def quantised_names(loaded):
    return {name for name, parameter in loaded.model.named_parameters() if is_quantised(parameter)}


def test_the_matrices_of_the_language_model_are_quantised_and_nothing_else(base, base_folder):
    loaded = load(base_folder)
    names = quantised_names(loaded)
    assert len(names) == 4 * 7  # layers, matrices in each
    assert all(".language_model.layers." in name and "_proj." in name for name in names)
    originals = dict(base.model.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        original = originals.get(name.replace(".base_layer", ""))
        if name in names:
            # NF4's widest gap is 0.304 of the largest magnitude in a block of 64 (Dettmers et al., 2023).
            error = (dequantised(parameter) - original).abs().view(-1, 64).amax(1)
            assert (error <= 0.16 * original.abs().reshape(-1, 64).amax(1)).all()
            assert parameter.numel() == original.numel() / 2
        elif original is not None:
            assert torch.equal(parameter, original)


def test_the_base_is_the_dequantised_model(base, base_folder, samples):
    """A fresh student, its self-teacher, and a plain model with the dequantised weights are the same."""
    loaded = load(base_folder, recovery=True)
    fresh = logits_of(loaded, samples)
    plain = copy.deepcopy(base)
    weights = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.model.named_parameters():
            quantised = weights.get(name.replace("_proj.", "_proj.base_layer."))
            if quantised is not None and is_quantised(quantised):
                parameter.copy_(dequantised(quantised))
    torch.testing.assert_close(fresh, logits_of(plain, samples), rtol=1e-5, atol=1e-5)
    shake(loaded)
    assert not torch.allclose(logits_of(loaded, samples), fresh, atol=1e-3)
    with as_base(loaded).mode():
        assert torch.equal(logits_of(loaded, samples), fresh)


@pytest.mark.parametrize("dtype, offload", [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_sharding_leaves_the_quantised_weights_alone(base_folder, samples, responses, dtype, offload):
    loaded = shake(load(base_folder, dtype, recovery=True))
    names = quantised_names(loaded)
    before = {name: p.data.clone() for name, p in loaded.model.named_parameters() if name in names}
    expected = logits_of(loaded, samples)
    shard(loaded.policy, "full", CPU, offload=offload)
    assert quantised_names(loaded) == names
    with loaded.policy.unsharded():
        torch.testing.assert_close(logits_of(loaded, samples), expected, rtol=1e-2, atol=1e-2)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())
    scorer = Scorer(loaded)
    sequences = scorer.sequences(scorer.encode(samples, Plain()), [[r] for r in responses])
    scorer.run(sequences, lambda hidden, head: (hidden @ head.T).square().sum()).backward()
    for name, parameter in loaded.model.named_parameters():
        moved = parameter.grad is not None and bool(local(parameter.grad).abs().max() > 0)
        assert moved == (name in trained), name
    now = dict(loaded.model.named_parameters())
    assert all(torch.equal(now[name].data, tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.3)])
def test_a_saved_student_is_a_plain_checkpoint(base_folder, samples, tmp_path, dtype, tolerance):
    loaded = shake(load(base_folder, dtype))
    shard(loaded.policy, "full", CPU)
    with loaded.policy.unsharded():
        before = logits_of(loaded, samples)
    loaded.save(tmp_path / "final")
    assert (tmp_path / "final" / "adapter" / "adapter_model.safetensors").is_file()
    again = load_student(StudentConfig(str(tmp_path / "final"), dtype=dtype))
    torch.testing.assert_close(logits_of(again, samples), before, rtol=tolerance, atol=tolerance)
    assert all(p.dtype == loaded.dtype for p in again.model.parameters())
    with loaded.policy.unsharded():
        assert torch.equal(logits_of(loaded, samples), before)


def test_quantising_is_refused_where_it_cannot_work(base_folder, monkeypatch):
    config = StudentConfig(base_folder, lora=QLORA)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install 'vicur\[qlora\]'"):
        load_student(config)
    load_student(replace(config, lora=LoRAConfig(rank=4)))
    monkeypatch.setitem(sys.modules, "bitsandbytes", object())
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ValueError, match=r"works in one process only.*quantize=none"):
        check_quantisable()
