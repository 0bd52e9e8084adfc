"""Runs whose responses come from an engine with weights of its own: parity, faults, settings."""

from __future__ import annotations

import json
from threading import Event

import pytest
import torch

from vicur.cuebench.generate import write_parquet
from vicur.objectives.objective import Weighed
from vicur.preflight.checks import PreflightError
from vicur.progress import silent
from vicur.run.build import build
from vicur.run.recipe import load_recipe
from vicur.run.resume import find_run
from vicur.scoring.term import Term
from vicur.settings.section import SettingsError
from vicur.training.checkpoint import Checkpoints
from vicur.vllm.backend import EngineError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    write_parquet("segments", "train", 24, path)
    return path


@pytest.fixture
def start(tmp_path, data, copies):
    def build_run(*overrides, name="opsd_cue_recovery"):
        recipe = load_recipe(
            f"cuebench/{name}",
            [
                "student.model=vicur:tiny-student",
                f"data.train={data}",
                f"training.output={tmp_path / 'run'}",
                *("training.prompts_per_step=4", "training.steps=3", "rollout.sampling.max_new_tokens=6"),
                *("rollout.engine=vllm", "optimizer.learning_rate=1e-3"),
                *overrides,
            ],
        )
        return build(recipe)

    return build_run


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_has_the_difference_between_engine_and_trainer(start, tmp_path, copies):
    run = start("training.checkpoints.every=1")
    run.execute(tmp_path / "run")
    metrics = metrics_of(tmp_path / "run")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert 0 <= line["engine_difference"] <= line["engine_difference_max"] < 1e-4
        assert line["seconds_parity"] >= 0
    # Preflight and first step share the first weights; each of the two later steps has those of an update.
    assert [copy.events.count("load") for copy in copies] == [3]


def test_the_estimate_says_that_it_leaves_the_engine_out(start):
    (notice,) = (line for line in start().notices if "vLLM" in line)
    assert "a copy of the weights and 1 GiB for the key-value cache; the memory estimate does not" in notice
    assert not any("vLLM" in line for line in start("rollout.engine=torch").notices)


def test_weights_that_do_not_arrive_stop_the_run(start, tmp_path, copies):
    run = start("training.checkpoints.every=1")
    run.trainer.source.generator.engine.awake().__enter__()
    copies[0].stale = True
    with pytest.raises(EngineError, match=r"At step 2 the engine vllm does not .* most on problem \w+"):
        run.execute(tmp_path / "run")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
    assert not (tmp_path / "run" / "checkpoints" / "step-000002").exists()


def test_an_engine_without_images_fails_the_preflight(start, tmp_path, copies):
    run = start()
    with run.engine.awake():
        copies[0].blind = True
    with pytest.raises(PreflightError, match="the engine vllm agrees with the trainer: it does not compute"):
        run.execute(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engine_that_dies_leaves_the_checkpoint_of_the_step_before(start, tmp_path, copies, monkeypatch):
    complete, written = Checkpoints._complete, {1: Event(), 2: Event()}

    def completing(self, pending, future):
        complete(self, pending, future)
        written[int(pending.path.name.removeprefix("step-"))].set()

    monkeypatch.setattr(Checkpoints, "_complete", completing)
    run = start("training.checkpoints.every=1")
    with run.engine.awake():
        copies[0].dies_after = 3  # the preflight's call, and two steps
    with pytest.raises(EngineError, match="the process is gone"):
        run.execute(tmp_path / "run")
    assert written[2].wait(60), "it is written in the background, also after the error"
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-000002"], "the newest is kept, and nothing half-written"
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]


def test_a_resumed_run_hands_over_the_weights_of_its_checkpoint(start, tmp_path, copies):
    run = start("training.checkpoints.every=1", "training.save_model=false")
    with run.engine.awake():
        copies[0].dies_after = 2
    with pytest.raises(EngineError):
        run.execute(tmp_path / "run")
    again = start("training.checkpoints.every=1", "training.save_model=false")
    found = find_run(again.recipe, lambda sentence: None)
    again.execute(found.folder, progress=silent(), resume_from=found.saved, again=True)
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3]


def test_validation_uses_the_same_engine(start, tmp_path, data, copies):
    run = start(f"training.evaluate.data={data}", "training.evaluate.problems=5", "training.steps=1")
    run.execute(tmp_path / "run")
    assert len(copies) == 1
    # Preflight, validation before, the step, validation after.
    assert copies[0].events.count("generate") == 4
    assert copies[0].events.count("load") == 2


def test_the_importance_ratio_multiplies_the_weights(start, tmp_path, copies):
    plain = start("training.steps=1")
    plain.execute(tmp_path / "plain")
    capped = start("training.steps=1", "rollout.importance_cap=0.5")
    capped.execute(tmp_path / "capped")
    (one,), (half,) = metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "capped")
    assert half["importance"] == 0.5, "all ratios are 1, above the cap"
    assert half["loss"] == pytest.approx(one["loss"] / 2, rel=1e-5)


def test_observed_terms_have_no_weights_to_multiply():
    terms = [Term("a", lambda block: block, torch.ones(2)), Term("b", lambda block: block)]
    weighed = Weighed(terms).times(torch.tensor([0.5, 2.0]), "importance")
    assert weighed.terms[0].weights.tolist() == [0.5, 2.0] and weighed.terms[1].weights is None
    assert weighed.tokens["importance"].tolist() == [0.5, 2.0]
    assert Weighed(terms).times(None, "importance").terms == terms


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.source=teacher", "teacher.model=vicur:tiny-teacher"], "samples the student's responses"),
        (
            ["student.dtype=bfloat16"],
            "rollout.engine=vllm is exact only in float32",
        ),
        (["rollout.engine=torch", "rollout.importance_cap=2"], "the trainer itself samples"),
        (["rollout.sampling.temperature=2.5", "training.old_log_probs=scored"], "temperatures of at most 2"),
        (["rollout.vllm.servers=[node7:8000]"], "is a URL such as http://localhost:8000, not 'node7:8000'"),
        (["teacher.servers=[http://a:1]"], "set teacher.model to the checkpoint"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe("cuebench/opsd_cue", ["rollout.engine=vllm", *overrides])


def test_an_evaluation_that_the_engine_cannot_sample_is_refused(tmp_path):
    data = tmp_path / "train.parquet"
    write_parquet("segments", "train", 4, data)
    settings = ["rollout.engine=vllm", "training.evaluate.temperature=3", f"data.train={data}"]
    with pytest.raises(ValueError, match="temperatures of at most 2"):
        build(load_recipe("cuebench/opsd_cue", settings))


def test_a_served_teacher_is_asked_only_for_sampled_tokens():
    served = ["teacher.servers=[http://a:1]", "teacher.model=vicur:tiny-teacher"]
    load_recipe("cuebench/opd_cue", served)
    with pytest.raises(SettingsError, match="needs the teacher's whole distributions"):
        load_recipe("cuebench/vgs", served)
