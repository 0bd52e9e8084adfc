"""Settings, chats and sampling of harnesses, without any harness."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vicur.data.sources import DataConfig
from vicur.evaluation.settings import EvaluationSettings
from vicur.integrations.answering import Answering
from vicur.integrations.chats import ChatReader
from vicur.integrations.lmms_eval.generation import cut, sampling_of, stops_of
from vicur.integrations.settings import decides_sampling, harness_settings, notes
from vicur.rollouts.processors import SamplingConfig


@pytest.mark.parametrize(
    "kwargs, sampling",
    [
        ({}, SamplingConfig(0.0, max_new_tokens=2048)),
        ({"until": ["\n\n"], "do_sample": False}, SamplingConfig(0.0, max_new_tokens=2048)),
        ({"temperature": 0, "top_p": 0, "num_beams": 1, "max_tokens": 16}, SamplingConfig(0.0, 1, 0, 0, 16)),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.5}, SamplingConfig(0.0, max_new_tokens=2048)),
        ({"do_sample": True}, SamplingConfig(1.0, max_new_tokens=2048)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, SamplingConfig(0.7, 0.8, 20, 0, 2048)),
        ({"temperature": 0.7, "top_p": None, "top_k": -1}, SamplingConfig(0.7, max_new_tokens=2048)),
        ({"presence_penalty": 1.5, "max_gen_toks": 9}, SamplingConfig(0.0, 1, 0, 1.5, 9)),
        ({"repetition_penalty": 1.0, "image_aspect_ratio": "pad"}, SamplingConfig(0.0, max_new_tokens=2048)),
    ],
)
def test_sampling_of_a_task(kwargs, sampling):
    assert sampling_of(kwargs) == sampling


def test_problems_of_two_tasks_may_share_an_id(samples):
    """Data sets number their problems from 0, and a harness asks for several of them together."""
    answering = Answering(EvaluationSettings(model="vicur:tiny-student"))
    sampling = SamplingConfig(1.0, max_new_tokens=8)
    alone = [answering.answer([replace(sample, id="0")], sampling, 2)[0] for sample in samples[:2]]
    together = answering.answer([replace(sample, id="0") for sample in samples[:2]], sampling, 2)
    answering.close()
    assert [[r.response for r in group] for group in together] == [[r.response for r in g] for g in alone]
    assert together[0] != together[1] and [r.number for r in together[1]] == [0, 1]


@pytest.mark.parametrize("kwargs", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"min_p": 0.1}])
def test_sampling_that_would_be_ignored_is_refused(kwargs):
    with pytest.raises(ValueError, match=f"samples with {next(iter(kwargs))}="):
        sampling_of(kwargs)


def test_stops():
    stops = stops_of({"until": ["\n\n", "Q:", ""], "stop_sequences": "###"})
    assert stops == ("Q:", "###")
    assert cut("a\n\nb ### c Q: d", stops) == "a\n\nb " and cut("abc", stops) == "abc" and cut("a", ()) == "a"


@pytest.fixture
def trained(base_folder, tmp_path):
    """A checkpoint with the recipe that it was trained with."""
    for file in Path(base_folder).iterdir():
        (tmp_path / file.name).symlink_to(file)
    data = asdict(DataConfig(system_prompt="Think first.", max_pixels=4096))
    recipe = {"data": data, "rollout": {"sampling": {"top_k": 7}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(tmp_path)


def test_a_model_is_shown_what_its_recipe_showed_it(trained):
    settings = harness_settings({"pretrained": trained, "batch_size": 4}, "--model_args")
    assert (settings.data.system_prompt, settings.data.max_pixels) == ("Think first.", 4096)
    assert (settings.prompts_per_batch, settings.sampling.top_k, notes(settings)) == (4, 0, [])


def test_settings_override_the_preset_and_this_the_recipe(trained):
    arguments = {"pretrained": trained, "preset": "vicur", "max_pixels": 2048, "min_pixels": "1024"}
    settings = harness_settings({**arguments, "sampling.temperature": 0.5}, "--model_args")
    assert (settings.data.min_pixels, settings.data.max_pixels) == (1024, 2048)
    assert settings.data.system_prompt == "You are a helpful assistant."
    assert (settings.sampling.temperature, settings.sampling.top_p) == (0.5, 0.8)
    assert any("data.system_prompt is" in note for note in notes(settings))
    assert harness_settings({"pretrained": trained, "preset": "recipe"}, "x").sampling.top_k == 7


def test_which_settings_replace_the_tasks_sampling():
    assert decides_sampling({"preset": "vicur"}) and decides_sampling({"sampling.top_k": 5})
    assert not decides_sampling({"dtype": "float32", "seed": 1})


def test_several_responses_per_problem_are_the_harnesss_business():
    (note,) = notes(harness_settings({"model": "vicur:tiny-student", "preset": "va-opd"}, "x"))
    assert "8 responses per problem" in note


@pytest.mark.parametrize("key", ["data.train", "rewards.lenient", "output", "data.max_prompt_tokens", "by"])
def test_settings_without_effect_are_refused(key):
    with pytest.raises(ValueError, match=f"^--model_args: {key} has no effect here"):
        harness_settings({"model": "vicur:tiny-student", key: "1"}, "--model_args")


def test_texts_are_texts_and_media_may_lie_anywhere(tmp_path, monkeypatch):
    """`<image>` in a text is no placeholder, and a harness's cache is outside of the current folder."""
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "elsewhere/a.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in ("a.png", str(tmp_path / "elsewhere/a.png"), f"file://{tmp_path}/elsewhere/a.png"):
        sample = ChatReader(DataConfig()).read(
            "id",
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What does <image> mean? "},
                        {"type": "image", "entry": path},
                        {"type": "text", "text": ""},
                    ],
                }
            ],
        )
        assert [part["type"] for part in sample.messages[0]["content"]] == ["text", "image"]
        assert sample.images[0].size == (40, 30)
        monkeypatch.chdir(tmp_path)
        if path == "a.png":
            with pytest.raises(ValueError, match=r"Problem id: there is no file a\.png"):
                ChatReader(DataConfig()).read(
                    "id", [{"role": "user", "content": [{"type": "image", "entry": "a.png"}]}]
                )
