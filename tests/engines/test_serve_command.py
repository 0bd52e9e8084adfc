"""`vicur serve`, up to the command that it becomes."""

from __future__ import annotations

import json

import pytest

from vicur.cli.main import main
from vicur.vllm.serve import ServeSettings, server_command


def options_of(command):
    """The options of a command with their values, and its flags."""
    words = command[3:]
    valued = {
        word: words[i + 1]
        for i, word in enumerate(words)
        if word.startswith("--") and i + 1 < len(words) and not words[i + 1].startswith("--")
    }
    return valued, {word for word in words if word.startswith("--")} - set(valued)


def test_a_student_with_recovery_is_served_as_it_is(student, tmp_path):
    student.save(tmp_path / "student")
    command, environment = server_command(ServeSettings(model=str(tmp_path / "student"), port=8123))
    valued, flags = options_of(command)
    assert valued["--model"] == str(tmp_path / "student") and valued["--port"] == "8123"
    assert valued["--dtype"] == "float32", "not the bfloat16 of vLLM's auto"
    assert int(valued["--max-num-batched-tokens"]) >= int(valued["--max-model-len"])
    assert "--hf-overrides" not in valued
    assert {"--no-mm-device-do-normalize", "--enable-scale-out"} <= flags
    assert "VLLM_SERVER_DEV_MODE" not in environment, "nobody can replace the weights"


def test_a_base_samples_only_words_too():
    settings = ServeSettings(
        model="vicur:tiny-student",
        trainable=True,
        weight_transfer="nccl",
        vocabulary="shared",
        arguments=["--api-key=k"],
    )
    command, environment = server_command(settings)
    valued, _ = options_of(command)
    assert json.loads(valued["--hf-overrides"]) == {
        "architectures": ["ViCuRPlainQwen3VLForConditionalGeneration"]
    }
    assert json.loads(valued["--weight-transfer-config"]) == {"backend": "nccl"}
    assert json.loads(valued["--additional-config"]) == {"vicur_vocabulary": "shared"}
    assert valued["--served-model-name"] == "vicur:tiny-student"
    assert command[-1] == "--api-key=k" and environment["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "vicur:tiny-student"], r"needs vLLM: pip install 'vicur[vllm]'"),
        (
            ["eval", "--model", "vicur:tiny-student", "--data", "nowhere.parquet", "engine=vllm"],
            "nowhere.parquet",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(words, message, capsys, monkeypatch):
    monkeypatch.setattr("vicur.vllm.installed.installed_version", lambda: None)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_serve_asks_for_a_checkpoint(capsys):
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "CHECKPOINT" in capsys.readouterr().err
