"""The shipped tiny models, and how they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from vicur.cuebench.generate import scenes, to_sample
from vicur.cuebench.pretrain import (
    SHIPPED,
    PretrainConfig,
    Pretraining,
    answering_problems,
    pretrain_checkpoint,
)
from vicur.cuebench.scenes import COLOURS
from vicur.cuebench.tiny import SIZES, TinySize, build_model, build_tokenizer
from vicur.data.views import Blind, Hinted, Plain
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.models.load import LoadedModel, load_model
from vicur.packaged import resolve_packaged
from vicur.progress import Progress
from vicur.rollouts.processors import SamplingConfig

QUIET = Progress("", Console(quiet=True))


def test_shipped_models_are_small():
    folder = resolve_packaged("checkpoints")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 10e6
    for size, millions in (("student", 1.5), ("teacher", 3.0)):
        weights = load_file(folder / f"tiny-{size}" / "model.safetensors")
        parameters = sum(weight.numel() for weight in weights.values())
        assert parameters / 1e6 == pytest.approx(millions, abs=0.1)
        card = (folder / f"tiny-{size}" / "README.md").read_text()
        assert f"vicur cuebench pretrain --size {size}" in card and "seed" in card


@pytest.mark.parametrize("size", ["student", "teacher"])
def test_shipped_models_read_what_they_should(size):
    loaded = load_model(f"vicur:tiny-{size}")
    stream = scenes("segments", "validation", seed=77)
    samples = [to_sample(next(stream)) for _ in range(200)]
    config = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=64))
    plain, cue, blind = (
        evaluate(loaded, samples, config, QUIET, view).accuracy.value
        for view in (Plain(), Hinted("cue"), Blind())
    )
    assert (40 < plain < 62) if size == "student" else (plain > 70)
    assert cue > 85
    assert blind < 20  # without the image there is nothing to know


def test_every_digit_and_colour_is_one_token():
    tokenizer = build_tokenizer()
    for word in (*COLOURS, *"0123456789"):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1
    text = "I read red 7 and blue 9. 7 + 9 = 16. The answer is 16."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_is_made_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_pretraining_mixture():
    stream = answering_problems(PretrainConfig(), np.random.default_rng(0))
    problems = [next(stream) for _ in range(1500)]
    share = {
        "listing": sum("List all" in str(p.sample.messages) for p in problems),
        "blind": sum(isinstance(p.view, Blind) for p in problems),
        "cue": sum(p.view == Hinted("cue") for p in problems),
        "answer": sum(p.view == Hinted("answer") for p in problems),
    }
    expected = {"listing": 0.2, "blind": 0.1, "cue": 0.7 * 0.4, "answer": 0.7 * 0.2}
    for name, count in share.items():
        assert count / 1500 == pytest.approx(expected[name], abs=0.04)
    hinted = [p for p in problems if isinstance(p.view, Hinted)]
    quoted = [p for p in hinted if p.target.startswith("The hint says: ")]
    assert len(quoted) / len(hinted) == pytest.approx(0.15, abs=0.05)
    assert {p.view.kind for p in quoted} == {"cue", "answer"}
    assert sum(not p.sample.images for p in hinted) / len(hinted) == pytest.approx(0.5, abs=0.06)
    assert not any("hint" in p.target for p in problems if p not in hinted)


def test_a_stuck_base_fails_loudly(processor):
    torch.manual_seed(0)
    loaded = LoadedModel.of(build_model(TinySize(32, 2, 2, 16, 1), processor), processor)
    config = PretrainConfig(grounding_steps=1, steps=2, batch_size=2, check_every=1)
    training = Pretraining(loaded, config, report=lambda text: None)
    with pytest.raises(ValueError, match="reads hints but not images"):
        training.run()


def test_pretraining_is_reproducible(processor, monkeypatch, tmp_path):
    monkeypatch.setitem(SIZES, "student", TinySize(32, 2, 2, 16, 2))
    config = PretrainConfig(grounding_steps=2, steps=2, batch_size=4, check_every=5)
    monkeypatch.setitem(SHIPPED, "student", config)
    monkeypatch.setattr(Pretraining, "accuracies", lambda *_: {"plain": 50.0, "cue": 90.0, "answer": 80.0})
    weights = []
    for name in ("a", "b"):
        pretrain_checkpoint("student", tmp_path / name, None, lambda text: None)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert load_model(str(tmp_path / name)).model.dtype == torch.float32
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with pytest.raises(ValueError, match="is not empty"):
        pretrain_checkpoint("student", tmp_path / "a", None, lambda text: None)
