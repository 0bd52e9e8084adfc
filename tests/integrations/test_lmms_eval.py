"""lmms-eval itself, offline, on CueBench: its accuracy and its responses are those of `vicur eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.integrations.suites import benchmarks, suites
from vicur.models.load import RecoveryConfig, StudentConfig, load_student

pytestmark = pytest.mark.lmms_eval

PROBLEMS = 60
TASKS = str(Path(__file__).parents[2] / "src/vicur/integrations/lmms_eval/tasks")
REFUSED = "has unexpected weights: recovery.layers.9.extra"


@dataclass
class Run:
    """The output of lmms-eval, its accuracy if there is one, and its responses by id."""

    text: str
    accuracy: float | None
    responses: dict[str, str]


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cuebench") / "test.parquet"
    write_parquet("segments", "test", PROBLEMS, path)
    return path


@pytest.fixture(scope="session")
def recovering(tmp_path_factory) -> str:
    """The tiny student with a recovery module that changes a few of its answers."""
    torch.manual_seed(13)
    config = RecoveryConfig(enabled=True, interval=1, output_init="normal")
    loaded = load_student(StudentConfig("vicur:tiny-student", config))
    for name, parameter in loaded.model.named_parameters():
        if name.startswith("recovery.layers"):
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("recovering")
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def run_harness(problems, tmp_path_factory):
    """Runs the command lmms-eval in a process of its own, without a network."""

    def run(model_args: str, *options: str) -> Run:
        output = tmp_path_factory.mktemp("lmms-eval")
        environment = {
            **os.environ,
            **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output / "hf")},
            "VICUR_CUEBENCH": str(problems),
        }
        command = [sys.executable, "-m", "lmms_eval", "--model", "vicur", "--model_args", model_args]
        command += ["--tasks", "cuebench", "--include_path", TASKS, "--batch_size", "16"]
        command += ["--output_path", str(output / "out"), "--log_samples", *options]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
        )
        results = list(output.glob("out/*/*_results.json"))
        if not results:
            return Run(done.stdout, None, {})
        (samples,) = output.glob("out/*/*_samples_cuebench.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        ids = pq.read_table(problems, columns=["id"])["id"].to_pylist()
        accuracy = json.loads(results[0].read_text())["results"]["cuebench"]["accuracy,none"]
        return Run(done.stdout, accuracy, {ids[row["doc_id"]]: row["filtered_resps"] for row in rows})

    return run


@pytest.fixture(scope="session")
def run_ours(problems, tmp_path_factory):
    """Runs `vicur eval` on the same file."""

    def run(*options: str) -> Run:
        output = tmp_path_factory.mktemp("eval") / "out"
        assert main(["eval", "--data", str(problems), "--output", str(output), *options]) == 0
        (arm,) = json.loads((output / "summary.json").read_text())["arms"]
        (file,) = output.glob("*.parquet")
        responses = {row["id"]: row["response"] for row in pq.read_table(file).to_pylist()}
        return Run("", arm["accuracy"]["value"] / 100, responses)

    return run


def assert_equal(theirs: Run, ours: Run) -> None:
    assert theirs.accuracy is not None, theirs.text
    assert len(ours.responses) == PROBLEMS and theirs.responses == ours.responses
    assert theirs.accuracy == pytest.approx(ours.accuracy, abs=1e-9)


@pytest.fixture(scope="session")
def tiny(run_ours) -> Run:
    return run_ours("--model", "vicur:tiny-student")


@pytest.fixture(scope="session")
def recovered(run_ours, recovering) -> Run:
    return run_ours("--model", recovering)


def test_a_packaged_student(run_harness, tiny):
    assert_equal(run_harness("pretrained=vicur:tiny-student"), tiny)
    assert 0.2 < tiny.accuracy < 1, "an accuracy at a bound would show little"


def test_a_checkpoint_with_recovery(run_harness, recovering, tiny, recovered):
    assert_equal(run_harness(f"pretrained={recovering}"), recovered)
    assert recovered.accuracy != tiny.accuracy, "a recovery module that is dropped would not show"


def test_sampling_as_the_paper_does(run_harness, run_ours, recovering, recovered):
    """The preset's sampling and system prompt replace those of the task; the same seed draws the same."""
    theirs = run_harness(f"pretrained={recovering},preset=vicur,seed=5")
    ours = run_ours("--model", recovering, "--preset", "vicur", "--seed", "5")
    assert_equal(theirs, ours)
    assert ours.responses != recovered.responses


def test_the_harness_changes_sampling(run_harness, run_ours):
    theirs = run_harness("pretrained=vicur:tiny-student", "--gen_kwargs", "max_new_tokens=6")
    assert_equal(theirs, run_ours("--model", "vicur:tiny-student", "--max-new-tokens", "6"))


def test_unexpected_weights_are_refused(run_harness, recovering, tmp_path):
    for file in Path(recovering).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"recovery.layers.9.extra": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused = run_harness(f"pretrained={tmp_path}")
    assert refused.accuracy is None and REFUSED in refused.text


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("pretrained=vicur:tiny-student,tempreature=1", "there is no setting 'tempreature'"),
        ("pretrained=vicur:tiny-student,problems=5", "problems has no effect here"),
        ("dtype=float32", "Name the checkpoint"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, sentence):
    from lmms_eval.models import get_model

    with pytest.raises(ValueError, match=sentence):
        get_model("vicur").create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})


@pytest.fixture(scope="module")
def model():
    """The model, as the harness makes it, with a task of three rows of which two have an image."""
    from lmms_eval.models import get_model

    made = get_model("vicur").create_from_arg_string(
        "pretrained=vicur:tiny-student,system_prompt=Be brief.,sampling.temperature=1,"
        "sampling.max_new_tokens=8",
        {"batch_size": 2, "device": "cpu"},
    )
    made.task_dict = {"task": {"test": [Image.new("RGB", (96, 96), color) for color in ("red", "blue")]}}
    return made


def request(doc_id: int, **kwargs):
    from lmms_eval.api.instance import Instance

    def messages(image):
        parts = [{"type": "image", "url": image}, {"type": "text", "text": "What is the <image> colour?"}]
        return [{"role": "system", "content": []}, {"role": "user", "content": parts}]

    metadata = {"task": "task", "doc_id": doc_id, "repeats": 1}
    return Instance("generate_until", ("", messages, kwargs, doc_id, "task", "test"), 0, metadata)


def test_repeated_requests_get_different_responses_in_their_places(model):
    first, second = request(0), request(1)
    texts = [result.text for result in model.generate_until([first, second, first, second, first])]
    assert len({texts[0], texts[2], texts[4]}) > 1 and texts[0] != texts[1]
    again = [result.text for result in model.generate_until([second, first, first, first, second])]
    assert (again[1:4], [again[0], again[4]]) == ([texts[0], texts[2], texts[4]], [texts[1], texts[3]])


def test_the_system_prompt_of_the_settings_replaces_the_tasks(model):
    sample = model._problem(request(0), "id")
    texts = [[part.get("text", part["type"]) for part in message["content"]] for message in sample.messages]
    assert texts == [["Be brief."], ["image", "What is the <image> colour?"]]


def test_likelihoods_and_rounds_are_refused(model):
    with pytest.raises(NotImplementedError, match="gives no likelihoods"):
        model.loglikelihood([request(0)])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([request(0)])


def test_the_papers_benchmarks_are_tasks():
    from lmms_eval.tasks import TaskManager

    names = {name for suite in suites() for name in benchmarks(suite, "lmms_eval")}
    assert not names - set(TaskManager("ERROR").all_tasks)


def test_a_part_of_a_video(model, tmp_path):
    """The second second of a film of three seconds: four of its eight frames."""
    import av
    import numpy as np
    from lmms_eval.api.instance import Instance

    path = str(tmp_path / "film.mp4")
    with av.open(path, "w") as film:
        stream = film.add_stream("mpeg4", rate=8, width=64, height=64, pix_fmt="yuv420p")
        for number in range(24):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * number, np.uint8), format="rgb24")
            film.mux(stream.encode(picture))
        film.mux(stream.encode())

    def messages(image):
        video = {"type": "video", "url": path, "start_time": 1.0, "end_time": 2.0}
        return [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}]

    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    asked = Instance("generate_until", ("", messages, {}, 0, "task", "test"), 0, metadata)
    (video,) = model._problem(asked, "id").videos
    brightness = [np.asarray(frame).mean() for frame in video.frames]
    assert np.allclose(brightness, [80, 100, 130, 150], atol=12) and video.frames_per_second == 3.0
    assert len(model.generate_until([asked])) == 1
