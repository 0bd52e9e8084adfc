"""Measures of held-out responses: against plain log-probs, in a run, and over several processes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from launching import job, launch, write_problems

from vicur.data.views import Blind, Degraded, Hinted, Plain
from vicur.diagnostics.measures import Observer, summarise_measures
from vicur.models.load import StudentConfig, load_student
from vicur.run.build import build
from vicur.run.recipe import load_recipe
from vicur.scoring.scorer import Scorer
from vicur.settings.section import SettingsError

ALL = ("visual_advantage", "vds", "language_kl", "visual_kl", "gap_split")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 16, validation=5)


@pytest.fixture(scope="module")
def teacher(base_folder):
    """A copy of the student's base with other weights."""
    loaded = load_student(StudentConfig(base_folder))
    generator = torch.Generator().manual_seed(5)
    for parameter in loaded.model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return loaded


def log_probs(scorer, sample, ids, view):
    """Log-probs over the vocabulary at every token of one response, in float64, without chunks or terms."""
    scores = scorer.scores([sample], [[ids]], view)
    kept = scorer.vocabulary.scored_ids("shared")
    return (scores.hidden_ND @ scores.head_WD.T).double()[:, kept].log_softmax(-1)


def kl(first, second):
    """KL(first || second) at every token."""
    return (first.exp() * (first - second)).sum(-1)


def test_measures_are_those_of_the_papers(shared_student, teacher, samples, responses):
    """Each measure from full float64 distributions, for each response by itself."""
    student, judge = Scorer(shared_student), Scorer(teacher)
    view = Hinted("cue")
    measured = Observer(student, judge, view).measure(samples[:3], [[ids] for ids in responses[:3]], ALL)
    expected = {name: [] for name in measured}
    for sample, ids in zip(samples[:3], responses[:3], strict=True):
        p, p0 = (log_probs(student, sample, ids, each) for each in (Plain(), Blind()))
        q, qz, low, q0 = (
            log_probs(judge, sample, ids, each) for each in (Plain(), view, Degraded(0.1), Blind())
        )
        at_p, at_q, at_qz, at_low = (log.gather(-1, ids[:, None])[:, 0] for log in (p, q, qz, low))
        target = (p0 + q - q0).log_softmax(-1)
        expected["visual_advantage"].append((at_q - at_low).clamp(min=0))
        expected["vds"].append(kl(q, q0))
        expected["language_kl"].append(kl(p0, q0))
        expected["visual_kl"].append(kl(p, target))
        expected["gap"].append(at_qz - at_p)
        expected["privilege_gap"].append(at_qz - at_q)
        expected["capability_gap"].append(at_q - at_p)
    assert set(measured) == set(expected)
    for name, values in measured.items():
        torch.testing.assert_close(values.double(), torch.cat(expected[name]), atol=2e-5, rtol=1e-4)
    split = measured["privilege_gap"] + measured["capability_gap"]
    torch.testing.assert_close(split, measured["gap"], atol=1e-5, rtol=0)


def test_a_model_that_judges_itself_has_no_capability_gap(shared_student, samples, responses):
    scorer = Scorer(shared_student)
    measured = Observer(scorer, scorer, Hinted("cue")).measure(samples[:2], [[r] for r in responses[:2]], ALL)
    assert measured["capability_gap"].abs().max() == 0 and measured["privilege_gap"].abs().max() > 0
    torch.testing.assert_close(measured["language_kl"], torch.zeros_like(measured["language_kl"]))


def test_summaries_worked():
    """Ten tokens: VDS 0 ... 9, so those above the 0.7 quantile, 6.3, are the last three."""
    values = torch.arange(10.0)
    summary = summarise_measures({"vds": values, "language_kl": values * 2, "gap": values - 5})
    assert summary["vds"] == 4.5 and summary["language_kl_visual"] == 2 * 8.0
    assert summary["gap"] == -0.5 and summary["gap_absolute"] == 2.5


def lines(folder, name="observations.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def recipe(data, folder, *overrides):
    return load_recipe(
        "cuebench/opsd_cue",
        [
            *(f"data.train={data}", f"training.output={folder}", "training.device=cpu"),
            *("training.steps=3", "training.prompts_per_step=4", "training.save_model=false"),
            *("rollout.sampling.max_new_tokens=6", "training.checkpoints.every=null"),
            f"training.observe.data={data.with_name('validation.parquet')}",
            *overrides,
        ],
    )


def test_a_run_observes_before_during_and_after_training(data, tmp_path):
    settings = (
        "training.observe.of=[vds,gap_split]",
        "training.observe.every=2",
        "training.observe.problems=3",
    )
    run = build(recipe(data, tmp_path / "run", *settings))
    run.execute(tmp_path / "run")
    observed = lines(tmp_path / "run")
    assert [line["step"] for line in observed] == [0, 2, 3]
    assert all(line["responses"] == 3 and line["vds"] >= 0 for line in observed)
    assert observed[0]["gap"] == pytest.approx(
        observed[0]["privilege_gap"], abs=1e-6
    )  # the teacher is the start
    rows = pq.read_table(tmp_path / "run" / "observations" / "step-000002.parquet").to_pylist()
    assert {len(row["vds"]) for row in rows} == {len(row["ids"]) for row in rows}
    assert [row["sample"] for row in rows] == [sample.id for sample in run.held_out.observed.outlines()]
    means = [value for row in rows for value in row["vds"]]
    assert sum(means) / len(means) == pytest.approx(observed[1]["vds"], rel=1e-5)


def test_observing_changes_nothing_in_the_run(data, tmp_path):
    def losses(name, *settings):
        build(recipe(data, tmp_path / name, *settings)).execute(tmp_path / name)
        return [line["loss"] for line in lines(tmp_path / name, "metrics.jsonl")]

    observed = losses(
        "with", "training.observe.of=[visual_advantage,language_kl]", "training.observe.every=1"
    )
    assert observed == losses("without", "training.observe.of=[]")


def test_the_teacher_is_loaded_for_observing_alone(data, tmp_path):
    """CoT-SFT needs no teacher; with observations it has one, unless the student judges itself."""
    supervised = ("objective.sampled_token=null", "objective.supervised={}", "rollout.source=dataset")
    without = recipe(data, tmp_path / "a", *supervised)
    assert not without.has_teacher
    watched = recipe(data, tmp_path / "a", *supervised, "training.observe.of=[vds]")
    assert watched.has_teacher
    itself = recipe(
        data, tmp_path / "a", *supervised, "training.observe.of=[vds]", "training.observe.scorer=student"
    )
    assert not itself.has_teacher
    for name, settings in (("b", watched), ("c", itself)):
        build(settings).execute(tmp_path / name)
        assert lines(tmp_path / name)[-1]["vds"] > 0


def test_mistakes_are_explained(data, tmp_path):
    with pytest.raises(ValueError, match=r"set training\.observe\.data or training\.evaluate\.data"):
        build(recipe(data, tmp_path / "x", "training.observe.of=[vds]", "training.observe.data=null"))
    with pytest.raises(SettingsError, match=r"training\.observe\.of must be one of visual_advantage, vds"):
        recipe(data, tmp_path / "x", "training.observe.of=[vdss]")


def test_observed_problems_without_the_privilege(data, tmp_path):
    table = pq.read_table(data.with_name("validation.parquet")).to_pylist()
    for count, row in enumerate(table):
        row["cue"] = None if count < 2 else row["cue"]
    mixed, bare = tmp_path / "mixed.parquet", tmp_path / "bare.parquet"
    pq.write_table(pa.Table.from_pylist(table), mixed)
    pq.write_table(pa.Table.from_pylist([{**row, "cue": None} for row in table]), bare)

    def built(file, missing, of="gap_split"):
        settings = (f"training.observe.data={file}", f"teacher.missing_privilege={missing}")
        return build(recipe(data, tmp_path / "run", *settings, f"training.observe.of=[{of}]")).held_out

    size = len(table)
    plain, skip = built(mixed, "plain"), built(mixed, "skip")
    assert f"2 of {size} observed problems" in " ".join(plain.notes()) and len(plain.observed) == size
    assert "Skipped 2 observed problems" in " ".join(skip.notes()) and len(skip.observed) == size - 2
    with pytest.raises(ValueError, match=f"2 of {size} problems .* lack the privilege cue"):
        built(mixed, "error")
    with pytest.raises(ValueError, match=f"{size} of {size} problems .* lack the privilege cue"):
        built(bare, "plain")
    for missing in ("plain", "skip", "error"):  # nothing but the split needs it
        other = built(bare, missing, of="vds")
        assert len(other.observed) == size and other.notes() == []


def test_two_processes_observe_what_one_does(data, tmp_path):
    """One problem for two ranks: one of them has nothing to measure."""
    for processes in (1, 2):
        settings = (
            f"training.observe.data={data.with_name('validation.parquet')}",
            f"training.observe.of=[{','.join(ALL)}]",
            *("training.observe.prompts_per_batch=1", "training.observe.every=1"),
        )
        jobs = [
            job(
                "vgs",
                tmp_path / f"{count}-{processes}",
                data,
                *settings,
                f"training.observe.problems={count}",
                steps=1,
            )
            for count in (1, 3)
        ]
        launch(processes, jobs, tmp_path / f"jobs-{processes}")
    for count in (1, 3):
        single, double = (lines(tmp_path / f"{count}-{processes}") for processes in (1, 2))
        assert [line["step"] for line in single] == [0, 1]
        for ours, theirs in zip(single, double, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours.keys() - {"seconds"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
