"""A study that is run again: nothing is done twice, and nothing is mixed with other settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal

import pytest

from vicur.cli.main import main
from vicur.run.execute import Run
from vicur.studies import runner
from vicur.training.records import Records

STUDY = """
problems: 16
base:
  student: {model: "vicur:tiny-student"}
  teacher: {model: "vicur:tiny-teacher", privilege: cue}
  objective: {divergence: {}}
  rollout: {group_size: 1, sampling: {max_new_tokens: 8}}
  training: {steps: 3, prompts_per_step: 4}
untrained: {base: {title: base, model: "vicur:tiny-student"}}
trained:
  first: {title: first, settings: {}}
  second: {title: second, settings: {data: {order: question_first}}}
compare: [[second, first]]
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a study that has run to its end."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    assert study(folder) == 0
    return folder


@pytest.fixture
def done(complete, tmp_path):
    """A copy of it."""
    return shutil.copytree(complete, tmp_path / "study")


@pytest.fixture
def new(tmp_path):
    """A folder with the same study, of which nothing has been run."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").write_text(STUDY)
    return tmp_path / "study"


def study(folder, *arguments):
    """Run it in its folder: the paths that runs record do not change if it is copied."""
    with contextlib.chdir(folder):
        return main(["study", "study.yaml", "--test-problems", "6", "--output", "out", *arguments])


def summary(folder):
    """All numbers but the seconds."""
    numbers = json.loads((folder / "out" / "summary.json").read_text())
    for method in numbers["methods"].values():
        del method["seconds"]
    return numbers


def runs(monkeypatch):
    """The folders of the runs that are trained from now on."""
    trained, original = [], Run.execute

    def execute(self, folder, *arguments, **options):
        trained.append(folder.name)
        return original(self, folder, *arguments, **options)

    monkeypatch.setattr(Run, "execute", execute)
    return trained


def test_a_study_that_is_done_is_read(done, complete, monkeypatch):
    def load_model(path):
        raise AssertionError(f"{path} was loaded")

    trained = runs(monkeypatch)
    monkeypatch.setattr(runner, "load_model", load_model)
    seconds = json.loads((done / "out" / "summary.json").read_text())
    assert study(done) == 0 and not trained
    assert json.loads((done / "out" / "summary.json").read_text()) == seconds
    assert not list((done / "out").rglob("*.responses.jsonl"))


def test_more_seeds_and_methods_extend_it(done, monkeypatch):
    shutil.rmtree(done / "out" / "seed-0" / "second")
    trained = runs(monkeypatch)
    assert study(done, "--only", "first") == 0 and not trained
    assert set(summary(done)["methods"]) == {"base", "first"}
    assert study(done, "--seeds", "2") == 0
    assert trained == ["second", "first", "second"] and summary(done)["seeds"] == 2


def test_training_that_was_interrupted_is_continued(new, complete, monkeypatch, capsys):
    original, steps = Records.write, []

    def write(self, step, *arguments, **options):
        steps.append((self.folder.name, step))
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step, *arguments, **options)

    monkeypatch.setattr(Records, "write", write)
    assert study(new) != 0
    assert "after step 2. Rerun the same command to continue." in " ".join(capsys.readouterr().out.split())
    assert study(new) == 0
    assert steps == [(name, step) for name in ("first", "second") for step in (1, 2, 3)]
    assert summary(new) == summary(complete)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_row_that_was_stopped_in_its_evaluation_is_evaluated_again(
    done, complete, monkeypatch, has_checkpoint
):
    """With a checkpoint nothing is trained for that."""
    evaluation = done / "out" / "seed-0" / "evaluation"
    for left in ("first.json", "base.json", "base-out_of_domain.parquet"):
        (evaluation / left).unlink()
    if not has_checkpoint:
        shutil.rmtree(done / "out" / "seed-0" / "first" / "checkpoints")
    steps, original = [], Records.write
    monkeypatch.setattr(
        Records, "write", lambda self, step, *rest: (steps.append(step), original(self, step, *rest))
    )
    assert study(done) == 0
    assert steps == ([] if has_checkpoint else [1, 2, 3]) and summary(done) == summary(complete)


def test_a_longer_run_is_never_read_with_the_answers_of_the_shorter(done, complete, monkeypatch):
    """Also if it is stopped between its training and its evaluation."""
    longer = ("--only", "first", "training.steps=4")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_answering", stopped)
        assert study(done, *longer) != 0
    assert study(done, *longer) == 0
    rows = [json.loads(line) for line in (done / "out/seed-0/first/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    stored = [json.loads((f / "out/seed-0/evaluation/first.json").read_text()) for f in (done, complete)]
    assert stored[0]["visual_advantage"] != stored[1]["visual_advantage"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--test-problems", "7"], "test.parquet holds 6 problems, and with these settings there are 7."),
        (["--steps", "2"], "train.parquet holds 16 problems, and with these settings there are 8."),
        (["optimizer.learning_rate=1e-3"], "optimizer.learning_rate: 1e-06 in the run, 0.001 now"),
    ],
)
def test_other_settings_are_refused(done, capsys, arguments, message):
    before = {path: path.read_bytes() for path in (done / "out").rglob("*.parquet")}
    assert study(done, *arguments) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "A study with other settings needs another --output." in error
    assert {path: path.read_bytes() for path in before} == before


def test_an_untrained_row_of_another_model_is_refused(done, capsys):
    other = STUDY.replace('base, model: "vicur:tiny-student"', 'base, model: "vicur:tiny-teacher"')
    (done / "study.yaml").write_text(other)
    assert study(done) == 1
    assert "The row base of" in (error := " ".join(capsys.readouterr().err.split()))
    assert "'model': 'vicur:tiny-teacher'" in error


@pytest.mark.parametrize("text", ["{}", '{"row": {}}', '{"row": {}, "visual_advantage": 1}'])
def test_a_damaged_outcome_is_named(done, capsys, text):
    (done / "out" / "seed-0" / "evaluation" / "first.json").write_text(text)
    assert study(done) == 1
    assert "first" in capsys.readouterr().err
