"""`vicur diagnose advantage`: shares of the mass, and the path of a run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from vicur.cli.main import main
from vicur.diagnose.advantage import (
    AdvantageSettings,
    MeasuredModel,
    accuracy_of,
    describe,
    draw_advantage,
    recorded_path,
    visual_advantage_of,
)
from vicur.diagnose.models import saved_models
from vicur.evaluation.statistics import Estimate, accuracy_interval, mean_interval
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.models.load import load_model
from vicur.progress import silent
from vicur.reporting.runs import RecordedRun
from vicur.rollouts.processors import SamplingConfig
from vicur.scoring.scorer import Scorer
from vicur.worth.responses import StudentResponses

SMALL = ("training.prompts_per_step=2", "rollout.sampling.max_new_tokens=6", "training.checkpoints.keep=null")


def settings_for(problems, **changes):
    settings = AdvantageSettings(sampling=SamplingConfig(max_new_tokens=6), group_size=2, **changes)
    object.__setattr__(settings.data, "train", problems)
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps of the shipped student, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("advantage")
    data, out = folder / "train.parquet", folder / "run"
    assert main(["cuebench", "make", "--n", "4", "--output", str(data)]) == 0
    own = [f"data.train={data}", f"training.output={out}", "training.steps=2"]
    rate = ("optimizer.learning_rate=1e-3", "training.checkpoints.every=1")
    assert main(["train", "cuebench/opsd_cue_recovery", *own, *rate, *SMALL]) == 0
    return out


def test_shares_of_planted_mass():
    """One response of 10 tokens with 0.9 in one of them, and one of 10 with equal values of 0.1."""
    values = torch.tensor([0.0] * 9 + [0.9] + [0.1] * 10)
    index = torch.tensor([0] * 10 + [1] * 10)
    start = MeasuredModel(0, torch.zeros(4), torch.tensor([0, 0, 1, 1]), Estimate(10.0, 5.0, 20.0))
    model = describe([start, MeasuredModel(5, values, index, None)])
    assert (model["step"], model["tokens"], model["responses"]) == (5, 20, 2)
    assert model["mean"] == pytest.approx(1.9 / 20) and model["zero_share"] == 9 / 20
    pooled, within = model["shares"], model["shares_within_responses"]
    assert pooled["top_5_percent"] == pytest.approx(0.9 / 1.9)  # one of 20 tokens
    assert pooled["top_10_percent"] == pytest.approx(1.0 / 1.9)
    assert within["top_10_percent"] == pytest.approx((1.0 + 0.1) / 2)  # one token of each
    assert within["top_20_percent"] == pytest.approx((1.0 + 0.2) / 2)
    first = {"step": 0, "visual_advantage": 0.0, "accuracy": 10.0, "low": 5.0, "high": 20.0}
    assert model["path"][0] == first and model["path"][1]["accuracy"] is None


def test_the_models_of_a_run_are_those_of_its_steps(run):
    """Before the first step, after each, and the last one equals the model that the run saved."""
    settings = AdvantageSettings(student=[str(run)], observer="student")
    models = saved_models(str(run), settings, silent)
    assert [model.step for model in models] == [0, 1, 2]
    weights = []
    for model in models:
        state = model.load().model.state_dict()
        weights.append({name: tensor.clone() for name, tensor in state.items()})
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[0][name], load_model("vicur:tiny-student").model.state_dict()[name])
    final = load_file(run / "checkpoints" / "final" / "model.safetensors")
    assert torch.equal(weights[2][name], final[name])
    assert not torch.equal(weights[1][name], weights[2][name])
    assert [model.step for model in saved_models("vicur:tiny-student", settings, silent)] == [None]


def test_only_the_final_model_of_a_run(run, tmp_path):
    """Where the checkpoints are gone, the path has its two ends."""
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    for name in ("status.json", "recipe.yaml"):
        (bare / name).write_bytes((run / name).read_bytes())
    (bare / "checkpoints" / "final").symlink_to(run / "checkpoints" / "final")
    settings = AdvantageSettings(student=[str(bare)], observer="student")
    models = saved_models(str(bare), settings, silent)
    assert [model.step for model in models] == [0, 2]
    assert models[1].load().recovery is not None


@pytest.mark.parametrize("observer", ["teacher", "student"])
def test_students_and_a_run(run, problems, tmp_path, observer):
    student, teacher = "vicur:tiny-student", "vicur:tiny-teacher"
    settings = settings_for(
        problems,
        student=[student, str(run)],
        names=["base", "run"],
        teacher=teacher if observer == "teacher" else None,
        observer=observer,
        prompts_per_batch=4,
    )
    finding = visual_advantage_of(settings)
    base, trained = (finding.values["models"][name] for name in ("base", "run"))
    assert [point["step"] for point in trained["path"]] == [0, 1, 2] and trained["step"] == 2
    assert base["responses"] == 12 and base["mean"] > 0 and len(base["path"]) == 1
    # Batches of 4 of 6 problems make no difference.
    loaded = load_model(student)
    samples = settings.open()
    ids = settings.answer(loaded, samples, silent, group_size=2).ids
    judge = load_model(teacher) if observer == "teacher" else loaded
    values = measure_visual_advantage(Scorer(judge), list(samples), ids)
    assert base["tokens"] == len(values) and base["mean"] == pytest.approx(float(values.mean()), rel=1e-3)
    finding.write(tmp_path / observer)
    assert json.loads((tmp_path / observer / "advantage.json").read_text())["observer"] == observer


def test_accuracies_have_intervals_over_problems():
    def answered(*correct):
        ids = tuple(tuple(torch.tensor([1]) for _ in group) for group in correct)
        texts = tuple(("",) * len(group) for group in correct)
        return StudentResponses(tuple(range(len(correct))), ids, texts, correct)

    several = accuracy_of(answered((True, True), (True, False), (False, None), (None, None)))
    assert several == mean_interval([100.0, 50.0, 0.0]) and several.value == 50.0
    assert accuracy_of(answered((True,), (False,), (True,))) == accuracy_interval([True, False, True])
    assert accuracy_of(answered((None, None))) is None


def recorded_run(folder, observations, evaluations):
    folder.mkdir(parents=True)
    (folder / "status.json").write_text("{}")
    for name, lines in (("observations", observations), ("evaluation", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RecordedRun(folder, folder.name)


def test_a_path_from_records(tmp_path):
    observations = [{"step": s, "visual_advantage": 0.07 + s / 1000, "vds": 1.0} for s in (0, 10, 20)]
    evaluations = [{"step": s, "accuracy": 40.0 + s, "low": 30.0, "high": 70.0} for s in (0, 5, 20)]
    run = recorded_run(tmp_path / "a", observations, evaluations)
    path = recorded_path(run)
    assert [point["visual_advantage"] for point in path] == pytest.approx([0.07, 0.08, 0.09])
    assert [point["accuracy"] for point in path] == [40.0, None, 60.0]
    finding = visual_advantage_of(AdvantageSettings(runs=[str(run.folder)]))
    assert finding.values["models"]["a"]["path"] == path
    assert finding.notes == (
        "a recorded visual advantage but no accuracy at 1 step (first: 10); these are not drawn.",
    )
    figure = draw_advantage(finding.values["models"])
    (panel,) = figure.axes
    drawn = panel.get_lines()[0].get_xydata().flatten().tolist()
    assert drawn == pytest.approx([0.07, 40.0, 0.09, 60.0])
    assert [line.get_marker() for line in panel.get_lines()[1:]] == ["o", "s"]


def test_a_run_without_records_is_named(tmp_path):
    run = recorded_run(tmp_path / "b", [{"step": 1, "vds": 0.3}], [])
    with pytest.raises(ValueError, match="b has recorded no visual advantage"):
        recorded_path(run)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "at least one --student or --run"),
        ({"student": ["x"]}, "set --teacher, or observer=student"),
        ({"runs": ["x"], "observer": "student"}, "needs --student"),
        ({"student": ["x"], "teacher": "y", "degraded_ratio": 2.0}, "degraded_ratio must be at most 1"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        AdvantageSettings(**settings)


def test_the_command(base_folder, teacher_folder, problems, tmp_path, capsys):
    recorded = recorded_run(
        tmp_path / "r", [{"step": 1, "visual_advantage": 0.1}], [{"step": 1, "accuracy": 50.0}]
    )
    models = ["--student", base_folder, "--run", str(recorded.folder), "--names", "model", "record"]
    options = ["--teacher", teacher_folder, "--data", problems, "--max-new-tokens", "4", "--group-size", "1"]
    arguments = ["diagnose", "advantage", *models, *options, "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "top 10 %" in text and "record" in text and "Written:" in text
    values = json.loads((tmp_path / "out" / "advantage.json").read_text())
    assert list(values["models"]) == ["model", "record"]
    assert main(arguments) != 0  # the files exist
    assert "advantage.json" in capsys.readouterr().err
