"""The launcher and the model for VLMEvalKit, with a stand-in of the same interface."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from vicur.cuebench.generate import scenes, to_sample
from vicur.data.sample import Sample
from vicur.evaluation.runner import EvaluationConfig, evaluate
from vicur.integrations.chats import ChatReader
from vicur.integrations.settings import harness_settings
from vicur.integrations.suites import HARNESSES, benchmarks, suites
from vicur.integrations.vlmevalkit.launcher import main, prepare
from vicur.media.pixels import PixelLimits
from vicur.models.load import load_model
from vicur.packaged import resolve_packaged
from vicur.rollouts.processors import SamplingConfig

GREEDY = SamplingConfig(0.0, max_new_tokens=2048)
BASE = '''
class BaseModel:
    """What VLMEvalKit's class does with a message before a model sees it."""

    def generate(self, message, dataset=None):
        assert all(set(part) >= {"type", "value"} for part in message)
        return self.generate_inner(message, dataset)
'''
RUN = """
import json
import sys
from pathlib import Path

from vlmeval.config import supported_VLM

assert sys.argv[1] == "--model" and sys.argv[3] == "--data"
name, data = sys.argv[2], sys.argv[4:]
model = supported_VLM[name]()
questions = json.loads(Path(data[-1]).read_text())
answers = [model.generate(message=question, dataset="MathVista_MINI") for question in questions]
written = json.dumps({"name": name, "data": data, "answers": answers})
Path(data[-1] + ".out").write_text(written)
"""


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A checkout that holds the parts of VLMEvalKit's interface that are used."""
    for name, text in {
        "vlmeval/__init__.py": "",
        "vlmeval/config.py": "supported_VLM = {'Qwen3-VL-2B-Instruct': None}",
        "vlmeval/vlm/__init__.py": "",
        "vlmeval/vlm/base.py": BASE,
        "run.py": RUN,
    }.items():
        path = tmp_path / "kit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "kit"))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield tmp_path / "kit"
    for name in [name for name in sys.modules if name.partition(".")[0] == "vlmeval"]:
        del sys.modules[name]
    sys.modules.pop("vicur.integrations.vlmevalkit.model", None)


@pytest.fixture(scope="module")
def problems() -> list[Sample]:
    stream = scenes("segments", "test")
    return [to_sample(next(stream)) for _ in range(6)]


@pytest.fixture
def questions(problems, tmp_path) -> list[list[dict]]:
    """The problems as messages with paths of images, and one with two images between texts."""
    messages = []
    for number, problem in enumerate(problems):
        path = str(tmp_path / f"{number}.png")
        problem.images[0].save(path)
        image, text = {"type": "image", "value": path}, problem.messages[-1]["content"][-1]["text"]
        messages.append([image, {"type": "text", "value": text}])
    texts = [{"type": "text", "value": text} for text in ("First ", " and then ", ". Which is larger?")]
    messages.append([texts[0], messages[0][0], texts[1], messages[1][0], texts[2]])
    return messages


def as_samples(questions, reader) -> list[Sample]:
    from vicur.integrations.vlmevalkit.model import keyed

    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": part["type"], "text" if part["type"] == "text" else "entry": part["value"]}
                    for part in question
                ],
            }
        ]
        for question in questions
    ]
    return [keyed(reader.read("any", chat)) for chat in chats]


def test_the_launcher_answers_as_vicur_eval_does_with_the_papers_settings(kit, questions, problems, tmp_path):
    data = tmp_path / "questions.json"
    data.write_text(json.dumps(questions))
    assert main(["--model", "vicur:tiny-student", "--data", "MathVista_MINI", str(data)]) == 0
    output = json.loads((tmp_path / "questions.json.out").read_text())
    assert (output["name"], output["data"]) == ("vicur-tiny-student", ["MathVista_MINI", str(data)])
    # What table 4 of the paper states, written out here.
    sampling = SamplingConfig(0.7, top_p=0.8, top_k=20, presence_penalty=1.5, max_new_tokens=4096)
    settings = harness_settings({"model": "vicur:tiny-student", "preset": "vicur"}, "test")
    assert settings.sampling == sampling and settings.data.system_prompt == "You are a helpful assistant."
    assert (settings.data.min_pixels, settings.data.max_pixels) == (3584, 401408)
    assert (settings.data.video.min_frames, settings.data.video.max_frames) == (4, 512)
    samples = as_samples(questions, ChatReader(settings.data))
    for problem, sample in zip(problems, samples[:-1], strict=True):
        system, user = sample.messages
        assert system == {
            "role": "system",
            "content": [{"type": "text", "text": "You are a helpful assistant."}],
        }
        assert user == problem.messages[0] and sample.images[0].tobytes() == problem.images[0].tobytes()
    kinds = [part["type"] for part in samples[-1].messages[-1]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    limits = PixelLimits(3584, 401408)
    model = load_model("vicur:tiny-student", device=torch.device("cpu"))
    result = evaluate(model, samples, EvaluationConfig(sampling, seed=0), limits=limits)
    assert output["answers"] == [answer.stored.response for answer in result.answers]
    greedy = evaluate(model, samples, EvaluationConfig(), limits=limits)
    assert output["answers"] != [answer.stored.response for answer in greedy.answers]


def test_pixel_limits_reach_the_model(kit, questions, tmp_path):
    data = tmp_path / "questions.json"
    data.write_text(json.dumps(questions))
    answers = {}
    for most in (None, 1024):
        limit = [] if most is None else ["--set", f"data.max_pixels={most}", "data.min_pixels=512"]
        command = ["--model", "vicur:tiny-student", "--preset", "greedy", "--name", f"at {most}", *limit]
        assert main([*command, "--data", str(data)]) == 0
        answers[most] = json.loads((tmp_path / "questions.json.out").read_text())["answers"]
    samples = as_samples(questions, ChatReader(harness_settings({"model": "vicur:tiny-student"}, "").data))
    model = load_model("vicur:tiny-student", device=torch.device("cpu"))
    result = evaluate(model, samples, EvaluationConfig(GREEDY), limits=PixelLimits(512, 1024))
    assert answers[1024] == [answer.stored.response for answer in result.answers] != answers[None]


@pytest.fixture
def model(kit):
    settings = harness_settings(
        {"model": "vicur:tiny-student", "preset": "greedy", "sampling.max_new_tokens": 8}, "test"
    )
    prepare("mine", settings, [])
    return sys.modules["vlmeval.config"].supported_VLM["mine"]()


def shown(model, monkeypatch) -> list[Sample]:
    """Collects the problems that the model answers from now on."""
    collected = []
    answer = model._answering.answer

    def record(problems, sampling, count=1):
        collected.extend(problems)
        return answer(problems, sampling, count)

    monkeypatch.setattr(model._answering, "answer", record)
    return collected


def frames_for(model, nframe: int, fps: float) -> None:
    """What VLMEvalKit does with a model before a video of a data set with these settings."""
    if model.nframe is not None and model.nframe > 0:
        if nframe > 0:
            if model.nframe != nframe:
                model.nframe = nframe
        elif model.fps == 0:
            raise ValueError
        else:
            model.nframe = None
    if model.fps is not None and model.fps > 0:
        if fps > 0:
            if model.fps != fps:
                model.fps = fps
        elif model.nframe == 0:
            raise ValueError
        else:
            model.fps = None


def test_a_videos_frames_follow_the_data_set(model, monkeypatch, tmp_path):
    """A film of 12 frames in 6 seconds: frames by number, by rate, and by number again."""
    path = tmp_path / "film.gif"
    frames = [Image.new("RGB", (64, 64), (20 * i, 0, 0)) for i in range(12)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    message = [{"type": "video", "value": str(path)}, {"type": "text", "value": "What happens?"}]
    collected = shown(model, monkeypatch)
    for nframe, fps in ((6, -1), (0, 1.0), (8, -1)):
        frames_for(model, nframe, fps)
        model.generate(message, "Video-MME")
    assert [len(sample.videos[0].frames) for sample in collected] == [6, 6, 8]
    stated = [{**message[0], "nframes": 5}, message[1]]
    model.generate(stated, "Video-MME")
    assert len(collected[-1].videos[0].frames) == 5


def test_system_texts_and_chats(model, monkeypatch):
    collected = shown(model, monkeypatch)
    model.generate(
        [{"type": "text", "value": "Be brief.", "role": "system"}, {"type": "text", "value": "Two and two?"}]
    )
    turn = lambda role, text: {"role": role, "content": [{"type": "text", "value": text}]}  # noqa: E731
    model.chat_inner([turn("user", "Two and two?"), turn("assistant", "4"), turn("user", "And three?")])
    assert [[message["role"] for message in sample.messages] for sample in collected] == [
        ["system", "user"],
        ["user", "assistant", "user"],
    ]


def test_what_is_neither_text_image_nor_video_is_refused(model):
    with pytest.raises(ValueError, match=r"a message has a part of type audio"):
        model.generate([{"type": "audio", "value": "a.wav"}, {"type": "text", "value": "?"}])
    with pytest.raises(ValueError, match=r"there is no file nothing\.png"):
        model.generate([{"type": "image", "value": "nothing.png"}])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "vicur:tiny-student", "--base-url", "http://x"], "--base-url chooses another"),
        (["--model", "vicur:tiny-student", "--name", "Qwen3-VL-2B-Instruct"], "has a model Qwen3-VL-2B"),
        (["--model", "vicur:nothing"], "No checkpoint 'vicur:nothing'"),
        (["--model", "vicur:tiny-student", "--set", "tempreature=1"], "there is no setting 'tempreature'"),
        (["--model", "vicur:tiny-student", "--set", "output=a"], "output has no effect here"),
        (["--model", "vicur:tiny-student", "--preset", "none"], "There is no preset none"),
    ],
)
def test_mistakes_end_in_a_sentence(kit, capsys, arguments, sentence):
    assert main(arguments) == 1
    assert sentence in capsys.readouterr().err


def test_without_vlmevalkit(capsys):
    assert main(["--model", "vicur:tiny-student"]) == 1
    assert "VLMEvalKit is not installed: git clone" in capsys.readouterr().err


def test_without_its_run(kit, capsys):
    (kit / "run.py").unlink()
    assert main(["--model", "vicur:tiny-student"]) == 1
    assert "run.py is not in" in capsys.readouterr().err


def test_the_suites():
    """ViCuR's as the paper names them; every name in one harness at least."""
    assert suites() == ["vicur", "va-opd", "vgs"]
    assert benchmarks("vicur", "vlmevalkit") == [
        *("MathVista_MINI", "MathVerse_MINI", "WeMath", "DynaMath", "MMMU_DEV_VAL", "Video-MME_64frame")
    ]
    sizes = [len(benchmarks(suite, harness)) for suite in suites() for harness in HARNESSES]
    assert sizes == [6, 6, 8, 8, 5, 7]


def keeping_arguments(path):
    """A run.py that writes its arguments."""
    return f"import json, pathlib, sys\npathlib.Path({str(path)!r}).write_text(json.dumps(sys.argv))"


def test_a_suite_is_the_data(kit, tmp_path, monkeypatch):
    """The names of the benchmarks precede what the user passes on."""
    (kit / "run.py").write_text(keeping_arguments(tmp_path / "argv"))
    assert main(["--model", "vicur:tiny-student", "--suite", "vgs", "--mode", "infer"]) == 0
    argv = json.loads((tmp_path / "argv").read_text())
    data = benchmarks("vgs", HARNESSES[0])
    assert argv[1:] == ["--model", "vicur-tiny-student", "--data", *data, "--mode", "infer"]


@pytest.mark.parametrize(
    "model, name", [("runs/a/checkpoints/final", "runs-a-checkpoints-final"), ("./x y/", "x-y")]
)
def test_models_in_different_folders_have_different_names(kit, tmp_path, monkeypatch, model, name):
    """VLMEvalKit's --reuse would otherwise take the predictions of another run."""
    (kit / "run.py").write_text(keeping_arguments(tmp_path / "argv"))
    folder = tmp_path / model
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(resolve_packaged("checkpoints") / "tiny-student")
    monkeypatch.chdir(tmp_path)
    assert main(["--model", model, "--data", "WeMath"]) == 0
    assert json.loads((tmp_path / "argv").read_text())[1:3] == ["--model", name]


def test_keys_differ_with_what_is_shown(model):
    reader = ChatReader(model.settings.data)
    ids = [sample.id for sample in as_samples([[{"type": "text", "value": text}] for text in "ab"], reader)]
    assert len(set(ids)) == 2
