"""A study that is run again: nothing is done twice, and nothing is mixed with other settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
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
        size = [] if "--test-problems" in arguments else ["--test-problems", "6"]
        output = [] if "--output" in arguments else ["--output", "out"]
        return main(["study", "study.yaml", *size, *output, *arguments])


def summary(folder):
    """All numbers but the seconds."""
    numbers = json.loads((folder / "out" / "summary.json").read_text())
    for method in numbers["methods"].values():
        del method["seconds"]
    return numbers


def files(folder):
    """The content of all files."""
    return {path: path.read_bytes() for path in sorted((folder / "out").rglob("*")) if path.is_file()}


def wrong_answers(folder, name):
    """Replace what is stored of a row's answers: all are the first one, and one more is half written."""
    for path in (folder / "out" / "seed-0" / "evaluation").glob(f"{name}-*.parquet"):
        table = pq.read_table(path)
        row = table.slice(0, 1).to_pylist()[0]
        answers = [
            {**entry, **{key: row[key] for key in ("response", "response_ids")}}
            for entry in table.to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(answers, schema=table.schema), path)
        path.with_name(f"{path.name}.responses.jsonl").write_text('{"settings": {}}\n{"id": ')


def runs(monkeypatch):
    """The folders of the runs that are trained from now on."""
    trained, original = [], Run.execute

    def execute(self, folder, *arguments, **options):
        trained.append(folder.name)
        return original(self, folder, *arguments, **options)

    monkeypatch.setattr(Run, "execute", execute)
    return trained


def test_a_study_that_is_done_is_read(done, monkeypatch):
    def load_model(path):
        raise AssertionError(f"{path} was loaded")

    trained, before = runs(monkeypatch), files(done)
    monkeypatch.setattr(runner, "load_model", load_model)
    assert study(done) == 0 and not trained
    assert files(done) == before


def test_the_folder_may_be_given_by_another_path(done, monkeypatch):
    trained = runs(monkeypatch)
    assert study(done, "--output", str(done / "out")) == 0 and not trained


def test_more_seeds_and_methods_extend_it(done, complete, monkeypatch):
    shutil.rmtree(done / "out" / "seed-0" / "second")
    wrong_answers(done, "second")
    trained = runs(monkeypatch)
    assert study(done, "--only", "first") == 0 and not trained
    assert set(summary(done)["methods"]) == {"base", "first"}
    assert study(done) == 0
    assert trained == ["second"] and summary(done) == summary(complete)
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
    """None of its answers is used. With a checkpoint nothing is trained for that."""
    for name in ("first", "base"):
        wrong_answers(done, name)
        (done / "out" / "seed-0" / "evaluation" / f"{name}.json").unlink()
    if not has_checkpoint:
        shutil.rmtree(done / "out" / "seed-0" / "first" / "checkpoints")
    steps, original = [], Records.write
    monkeypatch.setattr(
        Records, "write", lambda self, step, *rest: (steps.append(step), original(self, step, *rest))
    )
    assert study(done) == 0
    assert steps == ([] if has_checkpoint else [1, 2, 3]) and summary(done) == summary(complete)


def test_no_answers_are_left_of_a_row_whose_training_is_not_followed_by_its_evaluation(done, monkeypatch):
    status = done / "out" / "seed-0" / "first" / "status.json"
    status.write_text(status.read_text().replace("finished", "running"))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "carry_on", stopped)
    assert study(done) != 0
    assert not list((done / "out" / "seed-0" / "evaluation").glob("first*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--test-problems", "7"], "test.parquet holds 6 problems, and this study takes 7."),
        (["--steps", "2"], "train.parquet holds 16 problems, and this study takes 8."),
        (["--steps", "8"], "training.steps: 3 in the run, 8 now"),
        (["training.steps=2"], "training.steps: 3 in the run, 2 now"),
        (["optimizer.learning_rate=1e-3"], "optimizer.learning_rate: 1e-06 in the run, 0.001 now"),
        (["rewards.tolerance=0.1", "--seeds", "2"], "rewards.tolerance: 1e-06 in the run, 0.1 now"),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(done, capsys, arguments, message):
    before = files(done)
    assert study(done, *arguments) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "A study with other settings needs another --output." in error
    assert files(done) == before


def test_a_study_with_other_rows_is_refused(done, capsys):
    (done / "study.yaml").write_text(
        STUDY.replace("  second:", "  third:").replace("second, first", "third, first")
    )
    before = files(done)
    assert study(done) == 1
    assert "holds the row second, which this study does not have" in " ".join(capsys.readouterr().err.split())
    assert files(done) == before


def test_an_untrained_row_of_another_model_is_evaluated_again(done, complete):
    other = STUDY.replace('base, model: "vicur:tiny-student"', 'base, model: "vicur:tiny-teacher"')
    (done / "study.yaml").write_text(other)
    assert study(done) == 0
    ours, theirs = summary(done)["methods"], summary(complete)["methods"]
    assert ours["first"] == theirs["first"]
    assert ours["base"]["visual_advantage"] != theirs["base"]["visual_advantage"]


@pytest.mark.parametrize(
    "file, content",
    [
        *(("first.json", text) for text in ("", "{}", '{"row": {}}', '{"row": {}, "hint_leakage": 1}')),
        ("first-in_domain.parquet", "PAR1"),
    ],
)
def test_a_damaged_outcome_is_named(done, capsys, file, content):
    (done / "out" / "seed-0" / "evaluation" / file).write_text(content)
    assert study(done) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "The stored result of the row first in out/seed-0/evaluation is damaged" in error
    assert "Delete first.json there" in error
