"""Faults in the middle of a run: what the user is told, and that nothing is lost."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from launching import metrics, rollouts, write_problems
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.fsdp import FSDPModule

from vicur.cli.main import main
from vicur.models.load import load_model
from vicur.models.out_of_memory import OutOfMemory
from vicur.progress import Progress
from vicur.run.build import build
from vicur.run.export import ExportConfig, export
from vicur.run.recipe import load_recipe
from vicur.run.replay import replay
from vicur.scoring.scorer import Scorer
from vicur.settings.schema import SettingsError
from vicur.training.checkpoint import Checkpoints, best, newest_whole, step_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 16, validation=6)


def a_run(folder, data, *overrides, steps=4):
    return build(
        load_recipe(
            "cuebench/opsd_cue_recovery",
            [
                f"data.train={data}",
                f"training.output={folder}",
                f"training.steps={steps}",
                "training.prompts_per_step=4",
                "training.device=cpu",
                "training.checkpoints.every=2",
                "rollout.sampling.max_new_tokens=6",
                "optimizer.learning_rate=1e-4",
                *overrides,
            ],
        )
    )


class Steps:
    """Wraps an objective: calls a function with the number of each update and the objective's terms."""

    def __init__(self, objective, change):
        self.objective, self.change, self.updates = objective, change, 0

    def needs(self, step):
        return self.objective.needs(step)

    def weigh(self, scored):
        self.updates += 1
        return self.change(self.updates, self.objective.weigh(scored))


def change_terms(run, change):
    object.__setattr__(run.trainer, "objective", Steps(run.trainer.objective, change))


def nan_at(*updates):
    def change(update, weighed):
        if update not in updates:
            return weighed
        terms = [t if t.weights is None else replace(t, weights=t.weights * torch.nan) for t in weighed.terms]
        return replace(weighed, terms=terms)

    return change


def test_an_update_that_is_not_finite_is_skipped(tmp_path, data, capsys):
    run = a_run(tmp_path / "run", data)
    change_terms(run, nan_at(2))
    before = {}

    def change(update, weighed, inner=run.trainer.objective.change):
        if update in (2, 3):
            before[update] = {n: p.detach().clone() for n, p in run.student.model.named_parameters()}
        return inner(update, weighed)

    run.trainer.objective.change = change
    run.execute(tmp_path / "run")
    assert all(torch.equal(before[2][name], before[3][name]) for name in before[2])
    lines = metrics(tmp_path / "run")
    assert [line.get("skipped_updates", 0) for line in lines] == [0, 1, 0, 0]
    assert lines[1]["loss"] is None  # JSON has no NaN
    assert len(rollouts(tmp_path / "run")) == 16
    assert all(
        p.isfinite().all() for p in load_model(str(tmp_path / "run/checkpoints/final")).model.parameters()
    )


def test_a_resumed_run_that_skips_the_same_updates_says_so_again(tmp_path, data, monkeypatch):
    folder, sentences = tmp_path / "run", []
    monkeypatch.setattr(Progress, "say", lambda self, sentence: sentences.append(sentence))
    for skipped in ((3, 4), (1, 2)):  # steps 3 and 4, after the checkpoint of step 2
        run = a_run(folder, data, "training.max_skipped_updates=2")
        change_terms(run, nan_at(*skipped))
        with pytest.raises(FloatingPointError, match="last 2 updates"):
            run.execute(folder, resume_from=newest_whole(folder, print))
    dumps = [folder / "nonfinite" / f"step-00000{step}-update-{step - 1}" for step in (3, 4)]
    hints = [sentence.partition("vicur replay ")[2] for sentence in sentences if "skipped" in sentence]
    assert hints == [*map(str, dumps)] * 2
    assert all(dump.is_dir() for dump in dumps)


def test_too_many_skipped_updates_stop_the_run_within_a_step(tmp_path, data):
    run = a_run(tmp_path / "run", data, "training.prompts_per_update=1", "training.max_skipped_updates=2")
    change_terms(run, nan_at(1, 2))  # the other updates of the step would be finite
    with pytest.raises(FloatingPointError, match="last 2 updates was not finite"):
        run.execute(tmp_path / "run")
    assert run.trainer.objective.updates == 2
    assert len(metrics(tmp_path / "run")) == 1 and len(rollouts(tmp_path / "run")) == 2


def test_replay_finds_where_numbers_stop_being_finite(tmp_path, data, monkeypatch, capsys):
    run = a_run(tmp_path / "run", data, "training.max_skipped_updates=2")
    norm = run.trainer.scoring.teacher.loaded.model.model.language_model.norm.weight

    def change(update, weighed):
        if update == 2:
            norm.data.fill_(torch.nan)
        return weighed

    change_terms(run, change)
    with pytest.raises(FloatingPointError, match=r"last 2 updates was not finite .*vicur replay"):
        run.execute(tmp_path / "run")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "failed" and len(metrics(tmp_path / "run")) == status["step"] == 4
    folder = next((tmp_path / "run/nonfinite").iterdir())
    findings = replay(folder)  # the teacher of this process is whole
    assert not any(finding.bad for finding in findings)
    assert {"weights", "log-probs: teacher", "gradients"} <= {finding.what for finding in findings}

    whole = Scorer.scores

    def broken(self, samples, responses, view, attempts=None):
        scores = whole(self, samples, responses, view, attempts)
        if self.loaded.recovery is None:  # the teacher
            scores.hidden_ND[5] = torch.nan
        return scores

    monkeypatch.setattr(Scorer, "scores", broken)
    assert main(["replay", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "in the order of computation: log-probs: teacher" in " ".join(printed.split())
    assert "response 0" in printed
    assert main(["replay", str(tmp_path)]) == 1
    assert "is not the folder of a skipped update" in capsys.readouterr().err


def test_pixels_that_are_not_finite(tmp_path, data):
    run = a_run(tmp_path / "run", data)
    scorer = run.trainer.scoring.student
    encode, calls = scorer.encode, []

    def spoilt(samples, view):
        prompts = encode(samples, view)
        calls.append(view)
        if run.trainer.updater.optimizer.torch.state and len(metrics(tmp_path / "run")) == 2:
            for prompt in prompts:
                prompt.media["pixel_values"].fill_(torch.nan)
        return prompts

    scorer.encode = spoilt
    run.execute(tmp_path / "run")
    assert [line.get("skipped_updates", 0) for line in metrics(tmp_path / "run")] == [0, 0, 1, 0]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, data):
    run = a_run(tmp_path / "run", data)
    weight = run.student.model.model.language_model.norm.weight

    def change(update, weighed):
        if update == 4:  # after this the optimizer's step keeps it
            run.trainer.updater.optimizer.torch.state[weight]["exp_avg_sq"].fill_(torch.inf)
        return weighed

    change_terms(run, change)
    with pytest.raises(FloatingPointError, match=r"exp_avg_sq.model.language_model.norm.weight has numbers"):
        run.execute(tmp_path / "run")
    assert [path.name for path in step_folders(tmp_path / "run/checkpoints")] == ["step-000002"]
    assert not (tmp_path / "run/checkpoints/final").exists()


def test_when_memory_runs_out_the_micro_batches_are_halved(tmp_path, data, capsys):
    reference = a_run(tmp_path / "whole", data)
    reference.execute(tmp_path / "whole")
    run = a_run(tmp_path / "run", data, "optimizer.prompts_per_micro_batch=4")
    updater, gradient = run.trainer.updater, run.trainer.updater.gradient

    def short(*arguments):
        result = gradient(*arguments)  # the gradient of this attempt must not stay
        if updater.micro_batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    updater.gradient = short
    run.execute(tmp_path / "run")
    assert updater.micro_batch.size == 2
    message = "Out of memory with optimizer.prompts_per_micro_batch=4; the run continues with 2."
    assert capsys.readouterr().err.count(message) == 1
    for one, other in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)

    def always(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    updater.gradient = always
    updater.micro_batch.size = 1
    with pytest.raises(OutOfMemory, match=r"prompts_per_micro_batch=1\. See docs/checkpoints.md"):
        run.execute(tmp_path / "again")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_when_memory_runs_out_in_a_pass_all_batches_are_halved(tmp_path, data, capsys, dtype):
    """bfloat16 weights are managed by FSDP2, also in one process."""
    if dtype == "bfloat16" and not hasattr(FSDPModule, "reset_iter_state"):
        pytest.skip("FSDP2 cannot recover from an error in a pass before torch 2.14")

    def execute(name, *overrides, most=(math.inf, math.inf)):
        """Run it with a student and a teacher whose layers run out of memory with more tokens than that."""
        run = a_run(tmp_path / name, data, f"student.dtype={dtype}", "rollout.group_size=2", *overrides)
        largest = [0, 0]
        for index, loaded in enumerate((run.student, run.trainer.scoring.teacher.loaded)):

            def layer(module, inputs, index=index):
                tokens = inputs[0].shape[:2].numel()
                if tokens > most[index]:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                largest[index] = max(largest[index], tokens)

            loaded.model.model.language_model.layers[1].register_forward_pre_hook(layer)
        run.execute(tmp_path / name)
        return run, largest

    sizes = ("rollout.prompts_per_batch", "scoring.prompts_per_batch", "optimizer.prompts_per_micro_batch")
    _, largest = execute("whole", *(f"{size}=2" for size in sizes))
    run, _ = execute("run", *(f"{size}=4" for size in sizes), most=largest)
    assert run.trainer.scoring.teacher.scorer.batch_size.size == run.trainer.updater.micro_batch.size == 2
    errors = capsys.readouterr().err
    for size in sizes:
        assert errors.count(f"Out of memory with {size}=4; the run continues with 2.") >= 1
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert rollouts(tmp_path / "run") == rollouts(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, data, monkeypatch):
    run = a_run(tmp_path / "run", data, steps=6)
    write = HuggingFaceStorageWriter.write_data

    def full(self, *arguments):
        if len(step_folders(tmp_path / "run/checkpoints")) == 1:
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(
        OSError, match=r"step-000004 cannot be written: \[Errno 28\] No space left on device$"
    ):
        run.execute(tmp_path / "run")
    saved = newest_whole(tmp_path / "run", print)
    assert saved.state.step == 2
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"


def test_a_checkpoint_is_complete_although_the_next_step_fails(tmp_path, data):
    run = a_run(tmp_path / "run", data)

    def change(update, weighed):
        if update == 3:
            wait_for_checkpoint(run)
            raise ValueError("the objective fails")
        return weighed

    def wait_for_checkpoint(run):
        while not step_folders(tmp_path / "run/checkpoints"):
            pass

    change_terms(run, change)
    with pytest.raises(ValueError, match="the objective fails"):
        run.execute(tmp_path / "run")
    assert newest_whole(tmp_path / "run", print).state.step == 2


def test_a_folder_deleted_during_the_run(tmp_path, data):
    run = a_run(tmp_path / "run", data, "training.checkpoints.every=null")

    def change(update, weighed):
        if update == 2:
            shutil.rmtree(tmp_path / "run")
        return weighed

    change_terms(run, change)
    with pytest.raises(OSError, match=r"metrics.jsonl was deleted during the run"):
        run.execute(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keeping_the_best_needs_the_accuracy_of_every_checkpoint(tmp_path, data):
    keep = (
        "training.checkpoints.by=accuracy",
        f"training.evaluate.data={data.with_name('validation.parquet')}",
    )
    with pytest.raises(
        SettingsError, match=r"set training.evaluate.every to training.checkpoints.every \(2\)"
    ):
        a_run(tmp_path / "run", data, *keep, "training.evaluate.every=4")
    a_run(tmp_path / "run", data, *keep, "training.evaluate.every=1")


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, data, monkeypatch):
    held_out = f"training.evaluate.data={data.with_name('validation.parquet')}"
    keep = ("training.checkpoints.by=accuracy", "training.checkpoints.every=1", "training.evaluate.every=1")
    run = a_run(tmp_path / "run", data, held_out, *keep, steps=4)
    save, weights = Checkpoints.save, {}

    def scored(self, state):
        state.scores[state.step] = [0.0, 10.0, 50.0, 30.0, 20.0][state.step]
        weights[state.step] = {n: p.detach().clone() for n, p in run.student.model.named_parameters()}
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", scored)
    run.execute(tmp_path / "run")
    names = [path.name for path in step_folders(tmp_path / "run/checkpoints")]
    assert names == ["step-000004", "step-000002"]  # the newest, to resume from, and the best
    assert best(tmp_path / "run").state.step == 2
    export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "model"), "best"), print)
    exported = load_model(str(tmp_path / "model")).model.named_parameters()
    assert all(torch.equal(parameter, weights[2][name]) for name, parameter in exported)
    with pytest.raises(ValueError, match="has no checkpoint of step 3"):
        export(ExportConfig(str(tmp_path / "run"), str(tmp_path / "other"), 3), print)
    lines = (tmp_path / "run/evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert (tmp_path / "run/evaluation/step-000003.parquet").is_file()


def test_exports_name_damaged_checkpoints_and_the_final_model(tmp_path, data, capsys):
    run = tmp_path / "run"
    a_run(run, data, "training.checkpoints.keep=null", steps=4).execute(run)
    newest, older = step_folders(run / "checkpoints")
    (newest / "state.json").write_text("{")
    assert main(["export", str(run), "--output", str(tmp_path / "model")]) == 0
    out, err = (" ".join(text.split()) for text in capsys.readouterr())
    assert f"Checkpoint {newest} is damaged" in err and "Wrote the model of step 2 to" in out
    shutil.rmtree(newest)
    shutil.rmtree(older)
    for which, what in (("last", "no checkpoint."), ("4", "no checkpoint of step 4.")):
        assert main(["export", str(run), "--output", str(tmp_path / "other"), "--checkpoint", which]) == 1
        error = " ".join(capsys.readouterr().err.split())
        final = f"The model after the last step is in {run}/checkpoints/final and needs no export."
        assert f"{run} has {what} {final}" in error
    assert not (tmp_path / "other").exists()
