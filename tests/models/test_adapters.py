"""LoRA students: new ones equal their base, the base does not change, and switches are undone."""

from __future__ import annotations

import pytest
import torch
from forward import logits_of
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from vicur.models.adapters import LoRAConfig, adapter_active, adapter_parameters, adapters_off, add_adapter
from vicur.models.load import RecoveryConfig, StudentConfig, as_base, load_student
from vicur.scoring.scorer import Scorer

LORA = LoRAConfig(rank=4, alpha=8.0)


def load(base_folder, recovery=False, **kwargs):
    config = RecoveryConfig(enabled=recovery, interval=2)
    return load_student(StudentConfig(base_folder, config, lora=LoRAConfig(rank=4, alpha=8.0, **kwargs)))


def shake(loaded):
    """Give every adapter and the recovery module random weights."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name or name.startswith("recovery.layers"):
                parameter.normal_(std=0.2)
    return loaded


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_fresh_adapter_changes_nothing(base, base_folder, samples):
    assert torch.equal(logits_of(load(base_folder), samples), logits_of(base, samples))


def test_adapters_and_recovery_are_trained_and_nothing_else(base_folder):
    names = trainable(load(base_folder, recovery=True).model)
    assert names and all("lora_" in name or name.startswith("recovery.") for name in names)
    assert any(name.startswith("recovery.") for name in names)
    assert not any("model.visual" in name for name in names)
    # 7 matrices in each of 4 layers, two factors each; 2 layers with 4 matrices, 2 norms
    assert len(names) == 4 * 7 * 2 + 2 * 4 + 2


def test_the_vision_tower_has_adapters_if_configured(base_folder):
    names = trainable(load(base_folder, vision=True).model)
    assert sum("model.visual" in name for name in names) == 2 * 4 * 2  # 2 blocks, 4 matrices, two factors


def test_switches_leave_the_model_as_it_was(base, base_folder, samples):
    loaded = shake(load(base_folder, recovery=True))
    before, trained = logits_of(loaded, samples), trainable(loaded.model)
    add_adapter(loaded.model, LORA, "second", trained=False)
    assert trainable(loaded.model) == trained
    assert torch.equal(logits_of(loaded, samples), before)
    with adapters_off(loaded.model), loaded.model.without_recovery():
        assert torch.equal(logits_of(loaded, samples), logits_of(base, samples))
    with adapter_active(loaded.model, "second"), loaded.model.without_recovery():
        assert torch.equal(logits_of(loaded, samples), logits_of(base, samples))
    assert torch.equal(logits_of(loaded, samples), before)
    assert trainable(loaded.model) == trained
    with pytest.raises(RuntimeError, match="inside"), as_base(loaded).mode():
        raise RuntimeError("inside")
    assert torch.equal(logits_of(loaded, samples), before)
    assert trainable(loaded.model) == trained


def test_gradients_reach_the_adapters_and_not_the_base(base_folder, samples, responses):
    from vicur.data.views import Plain

    loaded = shake(load(base_folder, recovery=True))
    scorer = Scorer(loaded)
    sequences = scorer.sequences(scorer.encode(samples, Plain()), [[r] for r in responses])
    scorer.run(sequences, lambda hidden, head: (hidden @ head.T).square().sum()).backward()
    for name, parameter in loaded.model.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == parameter.requires_grad, name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks by a name given up
def test_a_saved_student_is_a_plain_checkpoint_with_the_adapter_beside(base_folder, samples, tmp_path):
    loaded = shake(load(base_folder))
    before = logits_of(loaded, samples)
    loaded.save(tmp_path / "final")
    again = load_student(StudentConfig(str(tmp_path / "final")))
    torch.testing.assert_close(logits_of(again, samples), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(loaded, samples), before, rtol=1e-4, atol=1e-4)
    stock = AutoModelForImageTextToText.from_pretrained(base_folder, dtype=torch.float32)
    try:
        wrapped = PeftModel.from_pretrained(stock, tmp_path / "final" / "adapter")
    except ImportError as error:  # peft 0.19 and later, with transformers 5.17
        pytest.skip(f"peft cannot load an adapter with this transformers: {error}")
    loaded.model.eval()
    theirs = {k.replace("base_model.model.", ""): v for k, v in wrapped.state_dict().items() if "lora_" in k}
    assert len(theirs) == len(adapter_parameters(loaded.model))
    for name, tensor in loaded.model.state_dict().items():
        if "lora_" in name:
            assert torch.equal(theirs[name], tensor), name


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match=r"rank must be at least 1"):
        LoRAConfig(rank=0)


def test_a_scaling_that_is_no_number_above_zero_is_refused():
    for alpha in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"alpha must be above 0"):
            LoRAConfig(alpha=alpha)


def test_saving_leaves_the_model_as_it_was_in_half_precision(base_folder, tmp_path):
    """Merging in place and undoing it would not restore bfloat16 weights."""
    loaded = shake(load_student(StudentConfig(base_folder, dtype="bfloat16", lora=LORA)))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    loaded.save(tmp_path / "final")
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def test_adapters_of_a_frozen_tower_are_refused():
    with pytest.raises(ValueError, match="nothing to do"):
        StudentConfig(lora=LoRAConfig(vision=True), freeze_vision=True)
