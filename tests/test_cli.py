"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vicur.cli import main


def sentence(capsys):
    """What stands on standard error, without colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.parquet"
    assert main(["cuebench", "make", "--n", "8", "--out", str(path)]) == 0
    return path


SMALL = ("training.steps=2", "training.prompts_per_step=4", "rollout.sampling.max_new_tokens=8")


def test_make_train_eval(tmp_path, train_file, capsys):
    out = tmp_path / "run"
    arguments = [f"data.train={train_file}", "--training.output", str(out), *SMALL]
    assert main(["train", "cuebench/opsd_cue_recovery", *arguments]) == 0
    model, answers = out / "checkpoints" / "final", tmp_path / "answers.parquet"
    capsys.readouterr()
    evaluate = ["eval", "--model", str(model), "--data", str(train_file), "--output", str(answers)]
    assert main([*evaluate, "--max-new-tokens", "8"]) == 0
    assert "on 8 problems" in capsys.readouterr().out
    assert answers.exists()


def test_print_config(capsys):
    assert main(["train", "cuebench/opd_cue", "--print-config", "training.seed=5"]) == 0
    text = capsys.readouterr().out
    assert "model: vicur:tiny-teacher" in text and "seed: 5" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "nowhere.yaml"], "There is no recipe nowhere.yaml"),
        (["train", "cuebench/opsd_cue", "optimizer.lr=1"], "did you mean 'optimizer."),
        (
            ["train", "cuebench/opsd_cue", "data.train=gone.parquet"],
            "Data file gone.parquet does not exist",
        ),
        (["eval", "--model", "./gone", "--data", "x"], "Data file x does not exist"),
        (["cuebench", "make", "--n", "0", "--out", "x"], "--n must be at least 1"),
        (["quickstart", "--seeds", "0"], "seeds must be at least 1"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    assert main(arguments) == 1
    text = sentence(capsys)
    assert text.startswith("vicur: ") and message in text and "Traceback" not in text


def test_missing_model_and_broken_data(tmp_path, train_file, capsys):
    assert main(["eval", "--model", str(tmp_path / "gone"), "--data", str(train_file)]) == 1
    assert "does not exist" in sentence(capsys)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet")
    assert main(["eval", "--model", "vicur:tiny-student", "--data", str(broken)]) == 1
    assert "cannot be read" in sentence(capsys)


def test_another_vocabulary_is_refused(tmp_path, train_file, processor, capsys):
    import torch

    from vicur.cuebench.tiny import STUDENT, build_model, build_processor, build_tokenizer

    other = build_processor()
    other.tokenizer = build_tokenizer(size=300)
    torch.manual_seed(0)
    build_model(STUDENT, other).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    arguments = [f"data.train={train_file}", f"teacher.model={tmp_path / 'other'}", *SMALL]
    assert main(["train", "cuebench/opsd_cue", *arguments, f"training.output={tmp_path / 'run'}"]) == 1
    assert "different vocabularies (484 and" in sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_unknown_options_are_refused(capsys):
    for arguments in (["eval", "--modle", "x"], ["train", "cuebench/opsd_cue", "--steps"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_interrupt_leaves_a_readable_run(tmp_path, train_file):
    """Ctrl-C at the first line of metrics."""
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "vicur.cli",
        "train",
        "cuebench/opsd_cue",
        f"data.train={train_file}",
    ]
    options = [f"training.output={out}", "training.steps=100000", "training.prompts_per_step=2"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        pass
    process.send_signal(2)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Interrupted" in error and "Traceback" not in error
    status = json.loads((out / "status.json").read_text())
    assert status["status"] == "interrupted" and status["step"] >= 1
    assert len(metrics.read_text().splitlines()) == status["step"]
    assert list(Path(out / "rollouts").glob("*.parquet"))
