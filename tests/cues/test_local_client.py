"""Cues of a model in this process: sampled as every response is, and the same again with the same seed."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace

import pytest
from PIL import Image

from vicur.cues.clients.local import LocalClient
from vicur.cues.parsing import Unusable, cue_of
from vicur.cues.prompts import load_prompt
from vicur.cues.requests import Asking, requests_for
from vicur.data.sample import Sample
from vicur.data.views import Plain
from vicur.encoding.prompts import PromptEncoder
from vicur.endpoints.request import Hopeless, RequestFailed
from vicur.media.video import Video
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig

WRITTEN = [
    (0.0, 0, "I read red 8 8 8 8 8 8 8 = 1"),
    (0.7, 3, "I read orange 3 = 3 = 2 = = 6 ="),
    (0.7, 4, "I read red 9 = 5, red 5 = 4 and"),
    (None, 0, "I read orange 4. 6 = pink 7 = 9 pink"),
]
"""Temperature, seed and the twelve tokens that `vicur:tiny-student` writes about the first problem on a CPU,
recorded while cues still had a sampler of their own."""


@pytest.fixture
def client(base):
    local = LocalClient("base", lambda name: base)
    yield local
    asyncio.run(local.close())


def request(sample, prompt="general", **asking):
    (only,) = requests_for(sample, 0, load_prompt(prompt), Asking(**{"max_tokens": 12} | asking))
    return only


def ask(client, *requests):
    async def all_of_them():
        return [await client.ask(one) for one in requests]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(("temperature", "seed", "text"), WRITTEN)
def test_recorded_cues_are_written_again(temperature, seed, text, samples):
    (reply,) = ask(LocalClient("vicur:tiny-student"), request(samples[0], temperature=temperature, seed=seed))
    assert reply.text == text
    assert (reply.completion_tokens, reply.cut_off, reply.thoughts) == (12, True, "")


def test_a_reply_depends_on_its_request_alone(client, samples):
    first, other = request(samples[0]), request(samples[1])
    replies = ask(client, first, other, first, first.again(1), replace(first, sample_id="another"))
    assert replies[0] == replies[2]
    assert replies[0].text not in {replies[3].text, replies[4].text}


def video_problem():
    frames = tuple(Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(4))
    content = [{"type": "video"}, {"type": "text", "text": "What does <|im_end|> mean?"}]
    return Sample("video", ({"role": "user", "content": content},), videos=(Video(frames, 2.0),))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_cue_is_what_the_generator_responds_to_the_same_chat(client, base, samples, temperature):
    for sample, prompt in ((samples[0], "general"), (samples[1], "rationale"), (video_problem(), "video")):
        asked = request(sample, prompt, temperature=temperature, seed=5)
        chat = asked.question
        problem = Sample(sample.id, chat.messages, images=chat.images, videos=chat.videos)
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=12)
        generator = ModelGenerator(make_engine(base), sampling)
        rollouts = generator.generate([problem], Plain(), seed=5)
        (reply,), (response,) = ask(client, asked), rollouts.flat_responses
        assert [reply.text] == rollouts.flat_texts
        assert (reply.completion_tokens, reply.cut_off) == (
            len(response.ids),
            response.finish_reason == "length",
        )


def test_the_tokens_of_a_prompt_include_its_image(client, samples):
    asked = request(samples[0])
    larger = replace(asked.question, images=(asked.question.images[0].resize((256, 256)),))
    small, large = ask(client, asked, replace(asked, question=larger))
    assert small.prompt_tokens < large.prompt_tokens


@pytest.mark.parametrize("tag", ["<think>\n", "◁seed:reasoning▷\n\n"])
def test_a_thought_that_the_prompt_opens_belongs_to_the_reply(base, samples, tag):
    """Cut off inside of it, the reply has no cue, however whole its sentences look."""
    processor = copy.copy(base.processor)
    opened = "{% if add_generation_prompt %}" + tag.replace("\n", "{{ '\\n' }}") + "{% endif %}"
    processor.chat_template = base.processor.chat_template + opened
    (reply,) = ask(
        LocalClient("thinking", lambda name: replace(base, processor=processor)), request(samples[0])
    )
    assert reply.text.startswith(tag)
    with pytest.raises(Unusable, match="still thinking"):
        cue_of(reply)


def test_a_chat_that_the_processor_refuses_fails_alone(client, samples, monkeypatch):
    encode = PromptEncoder.encode

    def refusing(self, contents):
        if any(not content.images for content in contents):  # not every version of the library checks this
            raise ValueError("one placeholder, no image")
        return encode(self, contents)

    monkeypatch.setattr(PromptEncoder, "encode", refusing)
    asked = request(samples[0])
    without = replace(asked, question=replace(asked.question, images=()))
    with pytest.raises(RequestFailed, match="the model's processor refuses it: one placeholder") as failed:
        ask(client, without)
    assert not failed.value.again
    assert ask(client, asked)


def test_a_fault_of_the_model_is_not_taken_for_one_of_the_request(client, samples, monkeypatch):
    def broken(*args, **settings):
        raise ValueError("shapes do not match")

    monkeypatch.setattr("vicur.rollouts.torch_engine.TorchEngine.sample", broken)
    with pytest.raises(ValueError, match="shapes do not match"):
        ask(client, request(samples[0]))


def test_a_model_that_cannot_be_loaded_ends_the_build(samples):
    def load(name):
        raise ValueError(f"{name} is no checkpoint")

    with pytest.raises(Hopeless, match="nowhere is no checkpoint"):
        ask(LocalClient("nowhere", load), request(samples[0]))
