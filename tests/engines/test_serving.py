"""`vicur serve`: an OpenAI client, a trainer and a student's teacher talk to it."""

from __future__ import annotations

import base64
import io
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from comparing import BOUND, trainer_log_probs
from openai import OpenAI
from serving import served, stop

from vicur.cuebench.generate import write_parquet
from vicur.data.sources import FileSource
from vicur.data.views import Hinted, Plain
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.models.load import RecoveryConfig, StudentConfig, load_model, load_student
from vicur.rollouts.engines import make_engine
from vicur.rollouts.generator import ModelGenerator
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.parity import ParityCheck
from vicur.scoring.scorer import ScoringConfig
from vicur.scoring.served import ServedTeacher
from vicur.scoring.teacher import TeacherConfig
from vicur.vllm.backend import EngineError
from vicur.vllm.settings import VLLMConfig

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "test.parquet"
    write_parquet("segments", "test", 100, path)
    return FileSource(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tiny student with recovery that does something."""
    torch.manual_seed(2)
    config = RecoveryConfig(enabled=True, interval=2, output_init="normal")
    loaded = load_student(StudentConfig("vicur:tiny-student", config))
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("served") / "student"
    loaded.save(folder)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with served(checkpoint, tmp_path_factory.mktemp("log") / "log", "trainable=true") as (url, _):
        yield url


@pytest.fixture(scope="module")
def student(checkpoint):
    return load_model(str(checkpoint))


def asked(client, sample):
    """The greedy answer of an OpenAI client to a problem, with its images as PNG."""
    images = iter(sample.images)

    def part(content):
        if content["type"] != "image":
            return content
        png = io.BytesIO()
        next(images).save(png, "PNG")
        data = base64.b64encode(png.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    messages = [
        {"role": message["role"], "content": [part(one) for one in message["content"]]}
        for message in sample.messages
    ]
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=48)
    return answer.choices[0].message.content


def test_an_openai_client_gets_the_answers_of_eval(server, student, problems):
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda sample: asked(client, sample), list(problems)))
    config = EvaluationConfig(SamplingConfig(temperature=0.0, max_new_tokens=48), 50)
    evaluation = evaluate(student, problems, config)
    assert answers == list(evaluation.responses)


def test_a_trainer_samples_there_and_sends_its_weights(server, problems, checkpoint, report):
    student = load_model(str(checkpoint))
    engine = make_engine(student, "vllm", VLLMConfig(servers=[server]))
    generator = ModelGenerator(engine, SamplingConfig(max_new_tokens=24))
    check = ParityCheck(student, "vllm", ScoringConfig(), responses=8)
    samples = problems[:8]
    original = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    try:
        first = check.measure(generator.generate(samples, Plain(), group_size=2))
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.mul_(1.1)
        stale = check.measure(generator.generate(samples, Plain(), group_size=2))
        generator.sync()
        second = check.measure(generator.generate(samples, Plain(), group_size=2))
    finally:
        student.model.load_state_dict(original)
        generator.sync()
        with engine.awake():
            pass
        engine.close()
    assert report("server, first weights", first.largest) <= BOUND
    assert stale.largest > 1e-2
    assert report("server, new weights", second.largest) <= BOUND


def cached_tokens(server):
    """Number of prompt tokens that the server has taken from its prefix cache."""
    lines = httpx.get(f"{server}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_responses_to_a_prompt_share_its_prefill(server, student, kinds, report):
    engine = make_engine(student, "vllm", VLLMConfig(servers=[server], max_model_len=1024))
    generator = ModelGenerator(engine, SamplingConfig(max_new_tokens=8))
    before = cached_tokens(server)
    rollouts = generator.generate([kinds["long system prompt"]], Plain(), group_size=4)
    shared = cached_tokens(server) - before
    engine.close()
    assert shared >= 128, "at least a block of the prompt"
    parity = ParityCheck(student, "vllm", ScoringConfig(), responses=1).measure(rollouts)
    assert report("server, shared prefill", parity.largest) <= BOUND


def test_a_teacher_scores_given_tokens_with_images_and_hint(server, student, problems, kinds, report):
    samples = problems[:8]
    responses = [
        [torch.tensor(student.processor.tokenizer(f"I read red {i}.")["input_ids"]) for i in range(2)]
        for _ in samples
    ]
    config = TeacherConfig(model=student.model.config._name_or_path, servers=[server], privilege="cue")
    teacher = ServedTeacher(config, student, "sampleable", 1024)
    theirs = teacher.log_probs(samples, responses, Hinted("cue"))
    ours = trainer_log_probs(student, samples, responses, Hinted("cue"))
    assert report("server, teacher with a hint", float((theirs - ours).abs().max())) <= BOUND
    several = list(kinds.values())
    given = [responses[0]] * len(several)
    theirs_of_all = teacher.log_probs(several, given, Plain())
    ours_of_all = trainer_log_probs(student, several, given, Plain())
    largest = float((theirs_of_all - ours_of_all).abs().max())
    assert report("server, teacher, every kind of prompt", largest) <= BOUND
    with student.model.without_recovery():
        without = trainer_log_probs(student, samples, responses, Hinted("cue"))
    assert float((theirs - without).abs().max()) > 1e-3, "recovery is on there"
    with pytest.raises(EngineError, match=r"over the sampleable tokens, and scoring\.vocabulary=shared"):
        ServedTeacher(config, student, "shared", 512)
    with pytest.raises(EngineError, match=r"Start it with max_model_len=999999"):
        ServedTeacher(config, student, "sampleable", 999_999)


def test_a_server_that_goes_away_ends_in_a_sentence(student, problems, checkpoint, tmp_path):
    with served(checkpoint, tmp_path / "log") as (url, process):
        engine = make_engine(student, "vllm", VLLMConfig(servers=[url]))
        with pytest.raises(
            EngineError, match=r"does not accept new weights. Start it with .* trainable=true"
        ):
            ModelGenerator(engine, SamplingConfig(max_new_tokens=4)).generate(problems[:1], Plain())
        teacher = ServedTeacher(
            TeacherConfig(model=str(checkpoint), servers=[url]), student, "sampleable", 512
        )
        stop(process, signal.SIGKILL)
        with pytest.raises(EngineError, match=f"The vLLM server {url} cannot be reached"):
            teacher.log_probs(problems[:1], [[torch.tensor([5, 6])]], Plain())
