"""`vicur train` as a user types it: what it prints, where it writes, what it says before it starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from vicur import distributed
from vicur.cli.main import main
from vicur.cli.train import _processes_line
from vicur.cuebench.generate import write_parquet
from vicur.run.build import check_processes
from vicur.run.execute import InterruptedRunError, Run
from vicur.training.loop import TrainingConfig


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet("segments", "train", 4, tmp_path / "train.parquet")
    Path("mine.yaml").write_text(
        "data: {train: train.parquet}\n"
        "optimizer: {learning_rate: 1.0e-4}\n"
        "rollout: {sampling: {max_new_tokens: 2}}\n"
        "training: {steps: 1, prompts_per_step: 2, save_model: false}\n"
    )
    return tmp_path


def said(capsys):
    """Both streams, without colours and line breaks."""
    out, err = capsys.readouterr()
    return tuple(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()) for text in (out, err))


def test_the_printed_recipe_shows_the_objective_that_acts(here, capsys):
    assert main(["train", "mine.yaml", "--print-config"]) == 0
    objective = yaml.safe_load(capsys.readouterr().out)["objective"]
    acting = {name: own for name, own in objective.items() if own}
    assert list(acting) == ["sampled_token"]
    assert acting["sampled_token"]["weight"] == 1.0 and "max_log_ratio" in acting["sampled_token"]["clip"]
    assert main(["train", "mine.yaml", "--print-config", "objective.divergence={}"]) == 0
    objective = yaml.safe_load(capsys.readouterr().out)["objective"]
    assert objective["sampled_token"] is None and objective["divergence"]["kind"] == "reverse_kl"


def test_runs_are_named_numbered_refused_and_overwritten(here, capsys):
    assert main(["train", "mine.yaml"]) == 0
    out, err = said(capsys)
    assert out.startswith("Output folder: runs/mine ") and "All results are in runs/mine." in out
    assert "loss" in out and "Time: " in out and "Peak memory (cpu): " in out
    assert "Running on the CPU: " in err
    assert {"recipe.yaml", "summary.json", "summary.md", "memory.json"} <= {
        entry.name for entry in Path("runs/mine").iterdir()
    }
    saved = yaml.safe_load(Path("runs/mine/recipe.yaml").read_text())
    assert saved["objective"]["sampled_token"]["weight"] == 1.0
    explicit = ["train", "mine.yaml", "training.output=runs/mine", "training.device=cpu"]
    assert main([*explicit, "--dry-run"]) == 0
    assert "runs/mine already holds a run" in said(capsys)[1]
    assert main(explicit) == 1
    assert "runs/mine already holds a run. Set training.overwrite=true" in said(capsys)[1]
    assert main([*explicit, "training.overwrite=true", "training.seed=5"]) == 0
    assert "Running on the CPU" not in said(capsys)[1]
    assert yaml.safe_load(Path("runs/mine/recipe.yaml").read_text())["training"]["seed"] == 5
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    assert "Output folder: runs/mine-2" in said(capsys)[0] and not Path("runs/mine-2").exists()


def test_a_prompt_that_does_not_fit_stops_the_run_before_a_model_is_run(here, capsys, monkeypatch):
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel

    def forbidden(*args, **kwargs):
        raise AssertionError("a model was run")

    for kind in (Qwen3VLForConditionalGeneration, Qwen3VLModel):
        monkeypatch.setattr(kind, "forward", forbidden)
    too_long = ["train", "mine.yaml", "rollout.sampling.max_new_tokens=4080"]
    assert main(too_long) == 3
    assert "Preflight failed, student's prompts fit: the prompt of problem" in said(capsys)[1]
    assert main([*too_long, "--dry-run"]) == 3
    assert not Path("runs").exists()


def test_too_little_memory_is_said_before_training(here, capsys, monkeypatch):
    little = int(0.9 * 2**30)  # enough for Python and the weights
    monkeypatch.setattr("vicur.run.execute.available_memory", lambda device: little)
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    sentence = "above the device's 0.9 GiB. Change first, in this order: optimizer.prompts_per_micro"
    assert sentence in said(capsys)[1]
    assert main(["train", "mine.yaml"]) == 0
    assert "above the device's 0.9 GiB" in said(capsys)[1]
    memory = json.loads(Path("runs/mine/memory.json").read_text())
    assert memory["available"] == little and memory["estimate"] == pytest.approx(
        sum(memory["parts"].values())
    )


@pytest.mark.parametrize(
    "launched, resume, sentence",
    [
        (False, [], "Resume with: vicur train mine.yaml training.seed=2 --resume"),
        (
            True,
            [],
            "Resume with the same torchrun command and --resume; its end is then: "
            "-m vicur train mine.yaml training.seed=2 --resume",
        ),
        (
            True,
            ["--resume"],
            "Resume with the same torchrun command; its end is then: "
            "-m vicur train mine.yaml training.seed=2 --resume",
        ),
    ],
)
def test_a_stopped_run_prints_what_resumes_it(here, capsys, monkeypatch, launched, resume, sentence):
    def stopped(*args, **kwargs):
        raise InterruptedRunError(3)

    monkeypatch.setattr(Run, "execute", stopped)
    distributed.background_group()  # so that the process joins no other
    if launched:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["train", "mine.yaml", "training.seed=2", *resume]) == 130
    assert f"Stopped after step 3. {sentence}" in said(capsys)[1]


def test_a_dry_run_says_what_each_process_has():
    config = TrainingConfig(prompts_per_step=8, sharding="replicated")
    expected = "2 processes, training.sharding=replicated, 4 problems per process and update; "
    assert _processes_line(config, 2).startswith(expected)
    assert ", up to 3 problems per process and update; " in _processes_line(config, 3)


def test_more_processes_than_problems():
    with pytest.raises(ValueError, match=r"An update has 1 problem, fewer than the 2 processes\."):
        check_processes(1, 2)
    check_processes(2, 2)


def test_a_dry_run_names_a_missing_device_before_it_prints_settings(here, capsys):
    assert main(["train", "mine.yaml", "--dry-run", "training.device=cuda:99"]) == 1
    out, err = said(capsys)
    assert out == "" and "training.device=cuda:99, but " in err


def test_validation_every_few_steps_needs_problems(here, capsys):
    assert main(["train", "mine.yaml", "training.evaluate.every=5"]) == 1
    assert "Validation during training needs held-out problems: set training.evaluate.data" in said(capsys)[1]
