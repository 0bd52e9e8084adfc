"""Killed runs are resumed exactly; what cannot be resumed is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from launching import assert_same_run, job, kill, launch, metrics, rollouts, start, write_problems

from vicur.cli.main import main
from vicur.reporting.run_summary import summarise_run
from vicur.training.checkpoint import (
    FORMAT,
    CheckpointError,
    DamagedError,
    newest_whole,
    read_checkpoint,
    step_folders,
)
from vicur.training.nonfinite import Dump

STEPS = 6
NO_VALIDATION = ("training.evaluate.data=null", "training.evaluate.every=null")
SETTINGS = ("training.save_model=true", "training.checkpoints.every=2", "training.evaluate.every=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 20, validation=7)


def run_of(folder, data, *overrides, **special):
    held_out = f"training.evaluate.data={data.with_name('validation.parquet')}"
    settings = (*SETTINGS, held_out, "teacher.update=ema", "student.lora=null", *overrides)
    return job("vicur", folder, data, *settings, steps=STEPS, **special)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder, data):
    """A run that nothing interrupts."""
    launch(1, [run_of(folder / "whole", data)], folder)
    return folder / "whole"


@pytest.fixture(scope="module")
def whole_of_two(folder, data):
    launch(2, [run_of(folder / "whole-2", data)], folder)
    return folder / "whole-2"


def killed(processes, folder, data, when):
    launch(processes, [run_of(folder, data, kill=when)], folder.parent, succeeds=False)
    return folder


@pytest.mark.parametrize("when", ["write 1", "write 5", "save 4"])
def test_a_killed_run_continues_bit_by_bit(folder, data, whole, when):
    """Before its first checkpoint, between two, and in the middle of a save."""
    run = killed(1, folder / when.replace(" ", "-"), data, when)
    assert len(metrics(run)) < STEPS
    launch(1, [run_of(run, data, resume=True)], folder)
    assert_same_run(run, whole)
    assert not list((run / "checkpoints").glob("*.partial"))


def test_two_processes_continue_bit_by_bit_and_one_process_to_rounding(folder, data, whole_of_two):
    run = killed(2, folder / "two", data, "write 5")
    copy = folder / "two-to-one"
    shutil.copytree(run, copy)
    launch(2, [run_of(run, data, resume=True)], folder)
    assert_same_run(run, whole_of_two)
    launch(1, [run_of(copy, data, resume=True)], folder)
    assert_same_run(copy, whole_of_two, tolerance=1e-5)


def test_a_damaged_checkpoint_is_passed_over(folder, data, whole, capfd):
    run = folder / "damaged"
    keep = "training.checkpoints.keep=null"
    launch(1, [run_of(run, data, keep)], folder)
    shutil.rmtree(run / "checkpoints" / "final")
    newest, older, _ = step_folders(run / "checkpoints")
    shard = next(newest.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)
    (run / "status.json").write_text('{"status": "running"}')
    output = launch(1, [run_of(run, data, keep, resume=True)], folder)
    assert f"its file {shard.name} has" in output
    assert_same_run(run, whole)
    assert older.is_dir()


def test_a_damaged_checkpoint_does_not_displace_new_ones(folder, data, whole):
    """It has the highest step, but the run continues before it."""
    run = folder / "displaced"
    launch(1, [run_of(run, data, "training.steps=4", "training.checkpoints.keep=null")], folder)
    newest, _ = step_folders(run / "checkpoints")
    damaged = newest.rename(newest.with_name("step-000099"))
    (damaged / "state.json").write_text("{")
    launch(1, [run_of(run, data, "training.checkpoints.every=3", resume=True)], folder)
    assert [path.name for path in step_folders(run / "checkpoints")] == ["step-000006"]
    assert rollouts(run) == rollouts(whole)


def test_what_cannot_be_used_is_never_deleted(tmp_path, data):
    run = tmp_path / "run"
    launch(1, [run_of(run, data, "training.steps=2", *NO_VALIDATION)], tmp_path)
    (checkpoint,) = step_folders(run / "checkpoints")
    state = json.loads((checkpoint / "state.json").read_text())
    of_another_version = state | {"format": FORMAT + 1}
    without_position = state | {"run": {k: v for k, v in state["run"].items() if k != "position"}}
    for content, message in (
        (of_another_version, f"has format {FORMAT + 1}; this version reads {FORMAT}"),
        (without_position, "All checkpoints in .* are damaged"),
    ):
        (checkpoint / "state.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            newest_whole(run, print)
    assert main(command(run, data, "training.steps=4", *NO_VALIDATION, "--resume")) == 1
    assert checkpoint.is_dir() and len(metrics(run)) == 2


def test_the_problems_of_a_resumed_run_are_the_same(tmp_path, data, capsys):
    run, copy = tmp_path / "run", tmp_path / "train.parquet"
    shutil.copy(data, copy)
    settings = ("training.steps=2", *NO_VALIDATION, f"data.train={copy}")
    launch(1, [run_of(run, data, *settings)], tmp_path)
    write_problems(tmp_path, 21)
    longer = (*settings, "training.steps=4", "--resume")
    assert main(command(run, data, *longer)) == 1
    assert "was started with 20 problems, and data.train now has 21" in capsys.readouterr().err
    assert len(metrics(run)) == 2


def test_a_run_without_checkpoints_cannot_be_made_longer(tmp_path, data, capsys):
    settings = ("training.checkpoints.every=null", *NO_VALIDATION)
    launch(1, [run_of(tmp_path / "run", data, *settings, "training.steps=2")], tmp_path)
    assert main(command(tmp_path / "run", data, *settings, "--resume")) == 1
    assert "has finished and has no checkpoint" in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 2


def test_a_run_is_not_made_shorter(tmp_path, data, capsys):
    run = tmp_path / "run"
    launch(1, [run_of(run, data, "training.steps=2", *NO_VALIDATION)], tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    assert main(command(run, data, "training.steps=1", *NO_VALIDATION, "--resume")) == 1
    assert "has already taken 2 steps, and its recipe now has 1" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_was_killed_while_it_made_its_folder_can_be_resumed(tmp_path, data):
    run = tmp_path / "run"
    launch(1, [run_of(run, data, "training.steps=1", *NO_VALIDATION)], tmp_path)
    recipe = (run / "recipe.yaml").read_text()
    shutil.rmtree(run)
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe)
    launch(1, [run_of(run, data, "training.steps=1", *NO_VALIDATION, resume=True)], tmp_path)
    assert len(metrics(run)) == 1 and (run / "rollouts").is_dir()


def test_a_stopped_run_says_how_to_resume(tmp_path, data, whole):
    process = start(1, [run_of(tmp_path / "run", data)], tmp_path)
    lines = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (lines.is_file() and lines.read_text()):
        pass
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0 and "Finishing this step, then saving a checkpoint" in output
    done = len(metrics(tmp_path / "run"))
    assert [path.name for path in step_folders(tmp_path / "run" / "checkpoints")] == [f"step-{done:06d}"]
    launch(1, [run_of(tmp_path / "run", data, resume=True)], tmp_path)
    assert_same_run(tmp_path / "run", whole)


def command(folder, data, *more):
    return ["train", "cuebench/opsd_cue_recovery", *run_of(folder, data)["overrides"], *more]


def test_what_is_refused(folder, data, whole, capsys):
    before = rollouts(whole)
    assert main(command(whole, data)) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main(command(whole, data, "--resume")) == 0
    assert "has finished; there is nothing to resume" in capsys.readouterr().out
    changed = ("optimizer.learning_rate=2e-6", "teacher.update=frozen", "optimizer.prompts_per_micro_batch=3")
    assert main(command(whole, data, "--resume", *changed)) == 1
    error = capsys.readouterr().err
    assert "optimizer.learning_rate: 1e-06 in the run, 2e-06 now" in error
    assert "teacher.update: ema in the run, frozen now" in error and "prompts_per_micro_batch" not in error
    assert rollouts(whole) == before


def test_a_finished_run_can_be_made_longer(folder, data, whole):
    """Its last step has a checkpoint, although 5 is no multiple of 2."""
    launch(1, [run_of(folder / "longer", data, "training.steps=5")], folder)
    launch(1, [run_of(folder / "longer", data, resume=True)], folder)
    assert rollouts(folder / "longer") == rollouts(whole)
    assert metrics(folder / "longer") == metrics(whole)


def test_only_a_new_run_is_stopped_by_the_start_of_its_recovery_module(tmp_path, data):
    """The bound may change at a resume, where the module is no longer as it began."""
    normal = ("student.recovery.output_init=normal", *NO_VALIDATION, "training.checkpoints.every=1")
    strict = "student.recovery.max_start_kl=0"
    assert main(command(tmp_path / "new", data, *normal, strict, "training.steps=1")) == 3
    assert not (tmp_path / "new").exists()
    launch(1, [run_of(tmp_path / "run", data, *normal, "training.steps=1")], tmp_path)
    assert main(command(tmp_path / "run", data, *normal, strict, "training.steps=2", "--resume")) == 0
    assert len(metrics(tmp_path / "run")) == 2


def test_a_rank_that_fails_ends_all(folder, data):
    output = launch(2, [run_of(folder / "failing", data, fail="1 2")], folder, succeeds=False)
    assert "rank 1 says: the disk of this rank is on fire." in output
    # Rank 0 says it too, unless the launcher ends it first; it never shows its own network error.
    assert "onnection" not in output and "rank 0 says: An" not in output


def test_a_second_run_into_the_same_folder_is_refused(tmp_path, data):
    process = start(1, [run_of(tmp_path / "run", data, "training.steps=1000")], tmp_path)
    status = tmp_path / "run" / "status.json"
    while process.poll() is None and not status.is_file():
        pass
    output = launch(1, [run_of(tmp_path / "run", data, "training.overwrite=true")], tmp_path, succeeds=False)
    kill(process)
    assert "is being written by process" in output and status.is_file()


def test_files_of_a_run_that_are_nested_too_deeply(tmp_path):
    for name in ("state.json", "update.json", "status.json"):
        (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(DamagedError, match=r"is damaged: its state\.json cannot be read\.$"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="is not the folder of a skipped update"):
        Dump.read(tmp_path)
    with pytest.raises(ValueError, match="nested too deeply"):
        summarise_run(tmp_path)
