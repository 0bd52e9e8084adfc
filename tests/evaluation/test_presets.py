"""Presets: the papers' settings, over those of the model's recipe and under those of the user."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from vicur.data.sample import Sample
from vicur.data.sources import DataConfig
from vicur.data.views import Plain
from vicur.encoding.layout import build_sequences
from vicur.encoding.prompts import PromptEncoder
from vicur.evaluation.during import EvaluateConfig
from vicur.evaluation.presets import differences, preset_settings, recipe_of_model, shown_settings
from vicur.evaluation.settings import EvaluationSettings, notes_on, settings_of_models
from vicur.packaged import resolve_packaged
from vicur.rollouts.engines import make_engine
from vicur.rollouts.processors import SamplingConfig
from vicur.settings.schema import schema_of
from vicur.settings.section import SettingsError

SCHEMA = schema_of(EvaluationSettings, "eval")
DRAWS = 1500


def settings_for(*overrides):
    return settings_of_models(SCHEMA, SCHEMA.overrides(["data.train=x.parquet", *overrides]))


def sampling_of(name):
    (settings,) = settings_for(f"preset={name}")
    return settings.sampling


def test_every_packaged_preset_loads():
    names = {path.stem for path in resolve_packaged("presets").glob("*.yaml")}
    assert names == {"greedy", "recipe", "vicur", "va-opd", "vgs-greedy", "vgs-sampled"}
    for name in names - {"recipe"}:
        settings_for(f"preset={name}")


@pytest.mark.parametrize(
    ("name", "samples", "sampling"),
    [
        ("greedy", 1, SamplingConfig(0.0, max_new_tokens=2048)),
        ("vicur", 1, SamplingConfig(0.7, 0.8, 20, 1.5, 4096)),
        ("va-opd", 8, SamplingConfig(1.0, max_new_tokens=4096)),
        ("vgs-greedy", 1, SamplingConfig(0.0, max_new_tokens=2048)),
        ("vgs-sampled", 16, SamplingConfig(1.0, max_new_tokens=2048)),
    ],
)
def test_presets_are_the_papers_settings(name, samples, sampling):
    (settings,) = settings_for(f"preset={name}")
    assert (settings.samples, settings.sampling) == (samples, sampling)


def test_the_vicur_preset_shows_what_table_4_says():
    (settings,) = settings_for("preset=vicur")
    data = settings.data
    assert data.system_prompt == "You are a helpful assistant."
    assert (data.min_pixels, data.max_pixels) == (3584, 401_408)
    assert (data.video.min_frames, data.video.max_frames) == (4, 512)


def reference_distribution(logits, temperature, top_k, top_p, penalty, present):
    """The distribution that is sampled from, written independently: penalty, temperature, top-k, top-p."""
    scores = (
        np.asarray(logits, dtype=float) - penalty * np.isin(np.arange(len(logits)), present)
    ) / temperature
    order = np.argsort(-scores)
    kept = order[: top_k or len(order)]
    shares = np.exp(scores[kept] - scores[kept].max())
    shares /= shares.sum()
    count = int(np.searchsorted(np.cumsum(shares), top_p)) + 1
    probabilities = np.zeros(len(scores))
    probabilities[kept[:count]] = shares[:count] / shares[:count].sum()
    return probabilities


def next_logits(loaded, sample, ids):
    """Logits of the tokens that can be sampled after some response tokens, and their ids."""
    prompt = PromptEncoder.of(loaded).encode([Plain().show(sample)])[0]
    inputs = build_sequences([prompt], [(torch.tensor([*ids, 0]),)], pad_id=loaded.vocabulary.pad_id)
    with torch.no_grad():
        logits = loaded.policy(
            inputs.model_inputs(loaded.dtype), lambda hidden, head: inputs.predicting(hidden) @ head.T
        )
    kept = loaded.vocabulary.kept_ids
    return logits[len(ids), kept].double().numpy(), kept.tolist()


def pooled(observed, expected, least=8):
    """Counts of groups of tokens, each with an expected count that the chi-square test can use."""
    order = np.argsort(expected)[expected.size - np.count_nonzero(expected) :]
    group = (np.cumsum(expected[order]) // least).astype(int)
    group = np.unique(group, return_inverse=True)[1]  # a likely token leaves numbers out
    group = np.minimum(group, max(0, group[-1] - 1))  # the last one may be small
    return np.bincount(group, observed[order]), np.bincount(group, expected[order])


@pytest.mark.parametrize("name", ["vicur", "va-opd", "vgs-sampled"])
def test_counts_follow_the_presets_distribution(shared_student, samples, name):
    """First tokens, and second tokens after the most frequent first one, which the penalty tells apart."""
    sampling = replace(sampling_of(name), max_new_tokens=2)
    prompt = PromptEncoder.of(shared_student).encode([Plain().show(samples[0])])
    (responses,) = make_engine(shared_student).sample(
        prompt, ["a"], sampling, group_size=DRAWS, seed=0, step=0
    )
    first = Counter(int(response.ids[0]) for response in responses)
    common = first.most_common(1)[0][0]
    second = Counter(int(r.ids[1]) for r in responses if int(r.ids[0]) == common and len(r.ids) > 1)
    for counts, ids in ((first, []), (second, [common])):
        logits, kept = next_logits(shared_student, samples[0], ids)
        present = [kept.index(token) for token in ids]
        settings = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.presence_penalty)
        expected = reference_distribution(logits, *settings, present) * sum(counts.values())
        observed = np.array([counts.get(token, 0) for token in kept])
        assert observed[expected == 0].sum() == 0  # nothing that top-k or top-p cuts off
        ours, theirs = pooled(observed, expected)
        assert len(ours) >= 2 and stats.chisquare(ours, theirs).pvalue > 1e-4


def test_the_limits_of_a_preset_decide_the_visual_tokens(shared_student):
    """A large image is shrunk to at most 401,408 pixels, a small one enlarged to at least 3,584."""
    (settings,) = settings_for("preset=vicur")
    encoder = PromptEncoder.of(shared_student, settings.data.pixel_limits())
    pixels = 8 * 8  # of a patch
    for size, low, high in (((4000, 3000), 300_000, 401_408), ((8, 8), 3584, 3584 * 3)):
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        shown = replace(Plain().show(blank(size)), messages=({"role": "user", "content": content},))
        _, rows, columns = encoder.encode([shown])[0].media["image_grid_thw"][0].tolist()
        assert low <= rows * columns * pixels <= high


def blank(size):
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    return Sample("a", ({"role": "user", "content": content},), (Image.new("RGB", size),))


RECIPE = """
data: {system_prompt: Think first., min_pixels: 1000, max_pixels: 50000, video: {max_frames: 8}}
rollout: {sampling: {temperature: 0.9, top_p: 0.95, max_new_tokens: 77}}
"""


def with_recipe(base_folder, folder):
    """A copy of a model that has the recipe with it."""
    shutil.copytree(base_folder, folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_a_model_is_shown_what_it_was_trained_with(tmp_path, base_folder):
    model = with_recipe(base_folder, tmp_path / "model")
    (settings,) = settings_for(f"model={model}")
    assert settings.data.system_prompt == "Think first." and settings.data.max_pixels == 50_000
    assert settings.data.video.max_frames == 8 and settings.sampling.temperature == 0.0
    assert notes_on(settings) == []
    (settings,) = settings_for(f"model={model}", "preset=recipe")
    assert settings.sampling == SamplingConfig(0.9, 0.95, max_new_tokens=77)
    (settings,) = settings_for(f"model={model}", "preset=vicur", "data.max_pixels=9000")
    assert settings.data.system_prompt == "You are a helpful assistant." and settings.data.max_pixels == 9000
    notes = notes_on(settings)
    assert any(
        "data.system_prompt is 'You are a helpful assistant.', but 'Think first.' in training" in n
        for n in notes
    )
    assert any("data.max_pixels is 9000, but 50000 in training" in note for note in notes)


def test_the_recipe_is_looked_for_with_the_model_and_in_its_run(tmp_path, base_folder):
    final = tmp_path / "run" / "checkpoints" / "step-9"
    shutil.copytree(base_folder, final)
    assert recipe_of_model(str(final)) is None
    (tmp_path / "run" / "recipe.yaml").write_text(RECIPE)
    assert recipe_of_model(str(final))["data"]["max_pixels"] == 50_000
    (final / "recipe.yaml").write_text("data: {max_pixels: 7}")
    assert recipe_of_model(str(final))["data"]["max_pixels"] == 7
    with pytest.raises(SettingsError, match=r"preset=recipe: there is no recipe\.yaml"):
        settings_for("model=vicur:tiny-student", "preset=recipe")


def test_each_model_has_its_own_recipe(tmp_path, base_folder):
    model = with_recipe(base_folder, tmp_path / "model")
    ours, theirs = settings_for(f"model=[{model}, vicur:tiny-student]", "names=[ours, theirs]")
    assert (ours.data.max_pixels, theirs.data.max_pixels) == (50_000, None)
    assert (ours.model_names, theirs.model_names) == (["ours"], ["theirs"])
    assert ours.baseline_name == theirs.baseline_name == "ours"


def test_shown_settings_leave_out_what_is_null():
    recipe = {"data": {"system_prompt": None, "max_pixels": 5}, "rollout": {"sampling": {"top_k": 3}}}
    assert shown_settings(recipe, sampling=False) == {"data.max_pixels": 5}
    assert shown_settings(recipe, sampling=True) == {"data.max_pixels": 5, "sampling.top_k": 3}
    ordered = {"data": {"order": "question_first"}}
    assert shown_settings(ordered, sampling=False) == {"data.order": "question_first"}
    (settings,) = settings_for()
    now = {"data": {"system_prompt": "x", "video": {}}}
    assert differences({"data": {}}, now) == []
    (note,) = differences({"data": {"system_prompt": None}}, now)
    assert note.startswith("data.system_prompt is 'x'")
    assert settings.data.max_pixels is None


def test_evaluations_during_training_take_presets_too():
    rollout = SamplingConfig(0.8, max_new_tokens=99)
    assert EvaluateConfig().config(rollout, 3).sampling == SamplingConfig(0.0, max_new_tokens=99)
    assert EvaluateConfig(preset="recipe").config(rollout, 3).sampling == rollout
    config = EvaluateConfig(preset="va-opd", max_new_tokens=12, samples=2).config(rollout, 3)
    assert (config.samples, config.sampling, config.seed) == (2, SamplingConfig(1.0, max_new_tokens=12), 3)
    data = EvaluateConfig(preset="vicur").data_config(DataConfig(max_pixels=7))
    assert (data.max_pixels, data.system_prompt) == (401_408, "You are a helpful assistant.")
    with pytest.raises(SettingsError, match=r"There is no preset vicurr; did you mean vicur"):
        EvaluateConfig(preset="vicurr").config(rollout, 3)


def test_a_preset_of_your_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("sampling: {temperature: 0.3}\nsamples: 2\n")
    (settings,) = settings_for(f"preset={tmp_path / 'mine.yaml'}")
    assert (settings.samples, settings.sampling.temperature) == (2, 0.3)
    (tmp_path / "bad.yaml").write_text("sampling: {temprature: 0.3}\n")
    for use in (
        lambda: settings_for(f"preset={tmp_path / 'bad.yaml'}"),
        lambda: EvaluateConfig(preset=str(tmp_path / "bad.yaml")).data_config(DataConfig()),
    ):
        with pytest.raises(
            SettingsError, match=r"bad\.yaml.*temprature.*did you mean .sampling\.temperature"
        ):
            use()
    assert preset_settings("va-opd")["samples"] == 8


def test_a_preset_of_your_own_during_training(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: {max_pixels: 9000, video: {max_frames: 5}}\nsampling: {temperature: 1, top_k: '7'}"
    )
    assert preset_settings(str(file))["sampling.top_k"] == 7
    config = EvaluateConfig(preset=str(file))
    data = config.data_config(DataConfig(min_pixels=100))
    assert (data.min_pixels, data.max_pixels, data.video.max_frames) == (100, 9000, 5)
    sampling = config.config(SamplingConfig(0.8, 0.9, max_new_tokens=99), 0).sampling
    assert sampling == SamplingConfig(1.0, top_k=7, max_new_tokens=99)


def test_a_preset_holds_nothing_else(tmp_path):
    (tmp_path / "mine.yaml").write_text("rewards: {tolerance: 0.1}\n")
    for use in (
        lambda: settings_for(f"preset={tmp_path / 'mine.yaml'}"),
        lambda: EvaluateConfig(preset=str(tmp_path / "mine.yaml")).config(SamplingConfig(), 0),
    ):
        with pytest.raises(SettingsError, match=r"rewards\.tolerance"):
            use()


def test_an_empty_preset_is_a_mistake(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(SettingsError, match=r"must hold settings by name, not nothing"):
        settings_for(f"preset={tmp_path / 'mine.yaml'}")
