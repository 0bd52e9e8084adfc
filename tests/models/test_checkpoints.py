"""Checkpoints in the real layout: from a base through training to a saved student, and broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from forward import logits_of, prompts_of
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen3Config,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from vicur.cuebench.generate import write_parquet
from vicur.encoding.layout import build_sequences
from vicur.models.adapters import LoRAConfig
from vicur.models.augment import save_augmented
from vicur.models.checkpoints import read_config, read_model, read_processor, saved_dtype
from vicur.models.load import RecoveryConfig, StudentConfig, load_model, load_student
from vicur.models.quantised import is_quantised
from vicur.progress import Progress
from vicur.run.build import build
from vicur.run.recipe import load_recipe, to_yaml
from vicur.training.records import Records

RECOVERY = RecoveryConfig(enabled=True, interval=2)


@pytest.fixture(scope="module")
def sharded(base_folder, tmp_path_factory):
    """The base in bfloat16 and several shards, as Qwen3-VL is published."""
    folder = tmp_path_factory.mktemp("sharded") / "base"
    model = read_model(base_folder, dtype="bfloat16")
    model.save_pretrained(folder, max_shard_size="200KB")
    read_processor(base_folder).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def initialised(sharded, tmp_path):
    """What `vicur init` writes."""
    torch.manual_seed(0)
    loaded = load_student(StudentConfig(str(sharded), RECOVERY, dtype="bfloat16"))
    save_augmented(loaded, str(sharded), RECOVERY, tmp_path / "student")
    return tmp_path / "student"


def test_from_a_base_to_a_trained_student(sharded, initialised, samples, tmp_path):
    base, student = (load_model(str(folder)) for folder in (sharded, initialised))
    assert torch.equal(logits_of(student, samples), logits_of(base, samples))
    write_parquet("segments", "train", 8, tmp_path / "train.parquet")
    recipe = load_recipe(
        "cuebench/opsd_cue_recovery",
        [
            f"student.model={initialised}",
            "student.dtype=bfloat16",
            f"data.train={tmp_path / 'train.parquet'}",
            f"training.output={tmp_path / 'run'}",
            "training.prompts_per_step=4",
            "training.steps=3",
            "rollout.sampling.max_new_tokens=6",
        ],
    )
    assembled = build(recipe)
    trainer, loaded = assembled.trainer, assembled.student
    with Records(tmp_path / "run", to_yaml(recipe)) as records:
        trainer.train(records, Progress("", Console(quiet=True)))
    trained = logits_of(loaded, samples)
    loaded.save(tmp_path / "final")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "final", dtype="auto")
    assert type(again) is type(loaded.model) and again.dtype == torch.bfloat16
    inputs = build_sequences(prompts_of(loaded, samples), [()] * len(samples), pad_id=0)
    with torch.no_grad():
        logits = again(**inputs.model_inputs(torch.bfloat16)).logits[inputs.attention_mask]
    assert torch.equal(logits, trained)
    assert not torch.equal(logits.float(), logits_of(base, samples))
    moved = [p for name, p in again.named_parameters() if "recovery" in name and "output" in name]
    assert moved and all(p.any() for p in moved)
    generated = again.generate(
        **{
            k: v[:, :1] if k == "position_ids" else v
            for k, v in inputs.model_inputs().items()
            if k != "position_ids"
        },
        max_new_tokens=3,
        do_sample=False,
    )
    assert generated.shape[1] > inputs.input_ids.shape[1]


def test_the_card_tells_what_was_added(initialised):
    card = (initialised / "README.md").read_text()
    recovery = sum(p.numel() for p in load_model(str(initialised)).recovery.parameters())
    assert f"{recovery:,} parameters" in card and "layers 0, 2" in card and "import vicur" in card


def test_a_used_folder_is_left_alone(sharded, initialised):
    before = sorted(p.name for p in initialised.iterdir())
    loaded = load_student(StudentConfig(str(sharded), RECOVERY))
    with pytest.raises(OSError, match="already exists"):
        save_augmented(loaded, str(sharded), RECOVERY, initialised)
    assert sorted(p.name for p in initialised.iterdir()) == before


def test_our_checkpoint_through_the_stock_class_is_refused(initialised):
    """With the stock model type in config.json: the module would be dropped."""
    config = json.loads((initialised / "config.json").read_text())
    (initialised / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_vl"}))
    with pytest.raises(ValueError, match=r"has unexpected weights: recovery\."):
        load_model(str(initialised))


def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def test_a_damaged_shard_is_named(sharded, tmp_path):
    folder = copied(sharded, tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"its file {shard.name} is damaged"):
        load_model(str(folder))


def test_a_missing_shard_is_named(sharded, tmp_path):
    folder = copied(sharded, tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"its file {shard.name} is missing"):
        load_model(str(folder))


def test_weights_of_another_size_are_refused(sharded, tmp_path):
    folder = copied(sharded, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be loaded: .+"):
        load_model(str(folder))


def test_a_broken_configuration_and_a_missing_processor(sharded, tmp_path):
    folder = copied(sharded, tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"processor of .* cannot be loaded|no image processor"):
        load_model(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"configuration of .* cannot be read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "config, message",
    [
        (Qwen3Config, "is a qwen3 model: it reads only text"),
        (Qwen2_5_VLConfig, r"Qwen2\.5-VL passes no mask of the visual tokens"),
    ],
)
def test_other_models_are_refused(config, message, tmp_path):
    config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_config(str(tmp_path))


@pytest.fixture(scope="module")
def experts(base_folder, tmp_path_factory):
    """A tiny mixture-of-experts Qwen3-VL."""
    folder = tmp_path_factory.mktemp("experts")
    own = read_config(base_folder).to_dict()
    text = own["text_config"] | {
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 40,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    vision = own["vision_config"] | {"model_type": "qwen3_vl_moe_vision"}
    ids = {key: own[key] for key in own if key.endswith("token_id")}
    torch.manual_seed(0)
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids)
    model = Qwen3VLMoeForConditionalGeneration(config)
    model.generation_config.eos_token_id = read_processor(base_folder).tokenizer.eos_token_id
    model.save_pretrained(folder)
    read_processor(base_folder).save_pretrained(folder)
    return str(folder)


def test_published_experts_are_turned_with_recovery_too(experts, samples, tmp_path):
    # Qwen3-VL-30B-A3B is published with the experts' matrices transposed; transformers saves them as it
    # keeps them.
    folder = tmp_path / "published"
    shutil.copytree(experts, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    turned = {
        name: tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor
        for name, tensor in weights.items()
    }
    save_file(turned, file, metadata={"format": "pt"})
    expected = logits_of(load_model(experts), samples)
    assert torch.equal(logits_of(load_model(str(folder)), samples), expected)
    assert torch.equal(logits_of(load_student(StudentConfig(str(folder), RECOVERY)), samples), expected)


def test_experts_get_recovery_the_same_way(experts, samples, tmp_path):
    base = load_model(experts)
    student = load_student(StudentConfig(experts, RECOVERY))
    expected = logits_of(base, samples)
    assert torch.equal(logits_of(student, samples), expected)
    for layer in student.recovery.layers.values():
        torch.nn.init.normal_(layer.output.weight, std=0.2)
    changed = logits_of(student, samples)
    assert (changed - expected).abs().max() > 1e-4
    student.save(tmp_path / "experts")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "experts", dtype=torch.float32)
    inputs = build_sequences(prompts_of(student, samples), [()] * len(samples), pad_id=0)
    with torch.no_grad():
        logits = again(**inputs.model_inputs()).logits[inputs.attention_mask]
        with again.without_recovery():
            off = again(**inputs.model_inputs()).logits[inputs.attention_mask]
    assert torch.equal(logits, changed)
    torch.testing.assert_close(off, expected, rtol=0, atol=1e-6)  # experts add up in any order


def test_experts_are_not_quantised(experts, samples):
    pytest.importorskip("bitsandbytes")
    lora = LoRAConfig(rank=4, quantize="nf4")
    student = load_student(StudentConfig(experts, lora=lora))
    names = [name for name, weight in student.model.named_parameters() if is_quantised(weight)]
    assert len(names) == 4 * 4 and all(".self_attn." in name for name in names)
    assert logits_of(student, samples).isfinite().all()


def test_chosen_layers_take_the_place_of_the_interval(base_folder, samples, tmp_path):
    chosen = RecoveryConfig(enabled=True, layers=[1, 3])
    student = load_student(StudentConfig(base_folder, chosen))
    assert sorted(student.recovery.layers) == ["1", "3"]
    student.save(tmp_path / "s")
    assert sorted(load_model(str(tmp_path / "s")).recovery.layers) == ["1", "3"]
    with pytest.raises(ValueError, match=r"after layers \[1, 3\]"):
        load_student(StudentConfig(str(tmp_path / "s"), RECOVERY))
    with pytest.raises(ValueError, match="decoder layers between 0 and 3"):
        load_student(StudentConfig(base_folder, RecoveryConfig(enabled=True, layers=[4])))


def test_stock_class_is_untouched_by_importing_us(base_folder):
    model = AutoModelForImageTextToText.from_pretrained(base_folder)
    assert type(model) is Qwen3VLForConditionalGeneration


def test_recovery_settings_for_a_base_without_it(base_folder):
    for settings in ({"layers": [0]}, {"interval": 2}, {"learning_rate": 1e-3}):
        with pytest.raises(ValueError, match=r"Set student\.recovery\.enabled=true"):
            load_student(StudentConfig(base_folder, RecoveryConfig(**settings)))
        assert load_student(StudentConfig(base_folder, RecoveryConfig(False, **settings))).recovery is None


def test_a_folder_that_holds_something_is_never_replaced(base_folder, tmp_path):
    left = tmp_path / "final.partial"  # a name that an earlier version used for itself
    left.mkdir()
    load_model(base_folder).save(tmp_path / "final")
    assert left.is_dir() and not (tmp_path / "final" / "adapter").exists()
    with pytest.raises(OSError, match="already exists"):
        load_model(base_folder).save(tmp_path / "final")
    assert {path.name for path in tmp_path.iterdir()} == {"final", "final.partial"}


@pytest.mark.parametrize("place", ["dtype", "text_config"])
def test_the_precision_is_read_wherever_a_configuration_names_it(sharded, tmp_path, place):
    folder = copied(sharded, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    config["text_config"].pop("dtype", None)
    if place == "dtype":
        config["dtype"] = "bfloat16"
    else:
        config["text_config"]["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    assert saved_dtype(read_config(str(folder))) == "bfloat16"
    assert saved_dtype(read_config("vicur:tiny-student")) == "float32"


def test_another_file_is_not_taken_for_a_configuration(base_folder):
    with pytest.raises(ValueError, match="does not exist or has no config"):
        read_config(f"{base_folder}/generation_config.json")
