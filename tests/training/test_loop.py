"""The loop: reproducible, indifferent to its micro-batches, readable however it ends."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from launching import write_problems
from rich.console import Console

from vicur.bad_rows import BadRow, BadRowError
from vicur.data.views import Plain
from vicur.models.load import load_model
from vicur.progress import Progress
from vicur.rollouts.source import GeneratedSource
from vicur.rollouts.torch_engine import TorchEngine
from vicur.run.build import build
from vicur.run.recipe import load_recipe, to_yaml
from vicur.training.records import Records
from vicur.training.update import Updater


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("data"), 24)


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, [values])


def run(folder, base_folder, data, *overrides, name="opsd_cue_recovery"):
    recipe = load_recipe(
        f"cuebench/{name}",
        [
            f"student.model={base_folder}",
            f"data.train={data}",
            f"training.output={folder}",
            "training.prompts_per_step=4",
            "training.steps=3",
            "rollout.sampling.max_new_tokens=6",
            *overrides,
        ],
    )
    assembled = build(recipe)
    trainer, loaded = assembled.trainer, assembled.student
    with Records(Path(recipe.training.output), to_yaml(recipe)) as records:
        trainer.train(records, Progress("", Console(quiet=True)))
    metrics = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return metrics, loaded


def without_time(metrics):
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in metrics]


def test_same_seed_same_run_and_other_seed_another(tmp_path, base_folder, data):
    first, one = run(tmp_path / "a", base_folder, data)
    again, two = run(tmp_path / "b", base_folder, data)
    other, _ = run(tmp_path / "c", base_folder, data, "training.seed=1")
    assert without_time(first) == without_time(again)
    assert without_time(first) != without_time(other)
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_micro_batches_change_nothing(tmp_path, base_folder, data, aggregation):
    common = (f"objective.sampled_token.aggregation={aggregation}", "rollout.group_size=2")
    runs = [
        run(tmp_path / str(n), base_folder, data, f"optimizer.prompts_per_micro_batch={n}", *common)[0]
        for n in (4, 1, 3)
    ]
    for line, *others in zip(*runs, strict=True):
        for other in others:
            for key in ("loss", "grad_norm", "gap_whole", "recovery_change_0"):
                assert other[key] == pytest.approx(line[key], rel=2e-3, abs=1e-6)


def test_twenty_step_golden_trajectory(tmp_path, base_folder, data):
    """Recorded once on a CPU. A change that should not change results must not change these."""
    metrics, _ = run(
        tmp_path / "golden", base_folder, data, "training.steps=20", "optimizer.learning_rate=1e-3"
    )
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    found = [[line["step"], line["loss"], line["gap_whole"]] for line in metrics]
    assert len(found) == len(golden) == 20
    for ours, theirs in zip(found, golden, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=2e-3)


def test_only_the_student_changes_and_the_module_learns(tmp_path, base_folder, data):
    metrics, loaded = run(tmp_path / "run", base_folder, data)
    base = dict(load_model(base_folder).model.named_parameters())
    named = dict(loaded.model.named_parameters())
    assert any(not torch.equal(named[name], base[name]) for name in base)
    assert named["recovery.layers.0.output.weight"].any()  # it started at zero
    assert metrics[0]["recovery_change_0"] == 0.0 and metrics[2]["recovery_change_0"] > 0


def test_recovery_has_its_own_learning_rate(base_folder, data):
    overrides = [f"student.model={base_folder}", f"data.train={data}", "training.prompts_per_step=4"]
    recipe = load_recipe("cuebench/opsd_cue_recovery", overrides)
    assembled = build(recipe)
    trainer, loaded = assembled.trainer, assembled.student
    peaks = {id(p): g["peak"] for g in trainer.updater.optimizer.torch.param_groups for p in g["params"]}
    for name, parameter in loaded.model.named_parameters():
        expected = 1e-3 if name.startswith("recovery.") else 1e-4
        assert peaks[id(parameter)] == expected
    decays = {
        id(p): g["weight_decay"] for g in trainer.updater.optimizer.torch.param_groups for p in g["params"]
    }
    assert decays[id(loaded.model.recovery.query_norm.weight)] == 0
    assert len(peaks) == len(list(loaded.model.parameters()))


def test_sampled_old_log_probs_equal_scored_ones(tmp_path, base_folder, data):
    sampled, _ = run(tmp_path / "sampled", base_folder, data)
    scored, _ = run(tmp_path / "scored", base_folder, data, "training.old_log_probs=scored")
    for a, b in zip(sampled, scored, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-6)


def test_a_run_folder_tells_everything(tmp_path, base_folder, data):
    run(tmp_path, base_folder, data)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 3) and status["seconds"]["total"] > 0
    assert json.loads((tmp_path / "memory.json").read_text())["peak"] > 2**20
    assert "torch" in json.loads((tmp_path / "environment.json").read_text())["packages"]
    rows = pq.read_table(tmp_path / "rollouts").to_pylist()
    assert len(rows) == 12 and {row["step"] for row in rows} == {1, 2, 3}
    for row in rows:
        assert len(row["ids"]) == len(row["teacher_log_prob"]) == len(row["student_log_prob"])
        assert row["question"].startswith("What is the") and row["answer"].isdigit()
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again.training.output == str(tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path, base_folder, data)


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, "interrupted"), (OSError, "failed")])
def test_an_interrupted_run_stays_readable(tmp_path, base_folder, data, monkeypatch, error, status):
    from vicur.rollouts.source import GeneratedSource

    rollouts = GeneratedSource.rollouts

    def stop_at_the_third_step(self, samples, step):
        if step == 3:
            raise error
        return rollouts(self, samples, step)

    monkeypatch.setattr(GeneratedSource, "rollouts", stop_at_the_third_step)
    with pytest.raises(error):
        run(tmp_path, base_folder, data)
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["status"], found["step"]) == (status, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert len(pq.read_table(tmp_path / "rollouts")) == 8
    assert not list(tmp_path.rglob("*.partial"))


def test_schedule(base):
    from vicur.training.optimizer import Optimizer, OptimizerConfig

    optimizer = Optimizer(base.model, OptimizerConfig(schedule="cosine", warmup=0.1), total_steps=100)
    scales = [optimizer.scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(1 / 11) and scales[10] == 1.0
    assert scales[55] == pytest.approx(0.5) and scales[99] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(scales[10:]))


def test_the_last_step_of_a_cosine_still_learns(tmp_path, base_folder, data):
    metrics, _ = run(tmp_path, base_folder, data, "optimizer.schedule=cosine", name="opsd_cue_recovery")
    rates = [line["learning_rate"] for line in metrics]
    assert rates == pytest.approx([1e-4, 0.75e-4, 0.25e-4])
    assert [line["recovery_learning_rate"] for line in metrics] == pytest.approx([10 * r for r in rates])


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.prompts_per_step=25", "has 24 problems, fewer than one step takes"),
        ("teacher.privilege=rationale", "No problem of .* has the privilege rationale"),
    ],
)
def test_runs_that_cannot_mean_what_they_say(base_folder, data, tmp_path, override, message):
    table = pq.read_table(data).drop_columns(["rationale"])
    pq.write_table(table, tmp_path / "train.parquet")
    overrides = [f"student.model={base_folder}", f"data.train={tmp_path / 'train.parquet'}"]
    with pytest.raises(ValueError, match=message):
        build(load_recipe("cuebench/opsd_cue", [*overrides, "training.prompts_per_step=4", override]))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            ["objective={grpo: {weight: 0.7}, divergence: {weight: 0.3}}", "rollout.group_size=2"],
            "2 of 24 problems of .* have no answer, which the objective divergence \\+ grpo needs",
        ),
        (
            ["objective.supervised={}", "rollout.source=dataset"],
            "24 of 24 problems of .* have no target_response, which rollout.source=dataset needs",
        ),
    ],
)
def test_objectives_that_the_data_cannot_serve(base_folder, data, tmp_path, settings, message):
    table = pq.read_table(data).drop_columns(["target_response"])
    answers = [None, None, *table["answer"].to_pylist()[2:]]
    pq.write_table(with_column(table, "answer", answers), tmp_path / "train.parquet")
    overrides = [f"student.model={base_folder}", f"data.train={tmp_path / 'train.parquet'}"]
    with pytest.raises(ValueError, match=message):
        build(load_recipe("cuebench/opsd_cue", [*overrides, "training.prompts_per_step=4", *settings]))


def test_several_updates_of_one_rollout_batch(tmp_path, base_folder, data):
    """Four problems, two a time: the second update's ratio has moved, and the schedule counts updates."""
    settings = ("training.prompts_per_update=2", "optimizer.learning_rate=1e-2", "optimizer.schedule=cosine")
    metrics, loaded = run(tmp_path / "two", base_folder, data, *settings)
    # Six updates: the mean learning rate of a step is that of its two.
    scales = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    expected = [1e-2 * (scales[i] + scales[i + 1]) / 2 for i in (0, 2, 4)]
    assert [line["learning_rate"] for line in metrics] == pytest.approx(expected)
    _, other = run(tmp_path / "one", base_folder, data, *settings[1:])
    pairs = zip(loaded.model.parameters(), other.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    rows = pq.read_table(tmp_path / "two" / "rollouts").to_pylist()
    assert [len(row["student_log_prob"]) for row in rows] == [len(row["ids"]) for row in rows]


RECORDED = {
    "divergence": {"reverse_kl_whole", "reverse_kl_half_1", "reverse_kl_quarter_4", "gap_whole"},
    "visual_advantage": {
        *("visual_advantage", "visual_advantage_top10_mass", "rollout_weight_min", "rollout_weight_max"),
        *("reverse_kl_half_2", "gap_half_1"),
    },
    "visual_steering": {
        *("vds", "vds_q10", "vds_q70", "vds_q90", "share_visual_kl", "share_language_kl", "loss_standard_kl"),
        *("gradient_scale", "preserved_share", "standard_kl_half_1"),
    },
    "grpo": {"reward", "informative_share", "clip_fraction", "advantage"},
    "papo": {"share_perception_kl", "perception_kl", "masked_surprise", "entropy_penalty", "reward"},
}


@pytest.mark.parametrize("objective", RECORDED)
def test_each_objective_records_what_its_paper_plots(tmp_path, base_folder, data, objective):
    settings = ("rollout.group_size=2", "training.steps=1", "objective.sampled_token=null")
    metrics, _ = run(tmp_path, base_folder, data, f"objective.{objective}={{}}", *settings)
    always = {
        "entropy",
        "response_tokens",
        "truncated",
        "hint_samples",
        "hint_occurrences",
        "loss",
        "grad_norm",
    }
    assert always | RECORDED[objective] <= set(metrics[0])
    assert all(math.isfinite(value) for value in metrics[0].values())


def test_updates_without_an_image_have_no_recovery_to_tell_of(tmp_path, base_folder, data):
    """Text and images in one run, one problem an update."""
    table = pq.read_table(data)
    rows = table.to_pylist()
    for row in rows[::2]:
        row["images"], row["problem"] = [], row["problem"].removeprefix("<image>")
    path = tmp_path / "mixed.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    metrics, _ = run(tmp_path / "run", base_folder, path, "training.prompts_per_update=1")
    assert all("recovery_change_0" in line for line in metrics)


def test_a_measured_scale_is_in_the_recorded_loss(tmp_path, base_folder, data):
    settings = ("training.steps=1", "objective.visual_steering.scale=measured")
    (line,), _ = run(tmp_path, base_folder, data, *settings)
    parts = [line[f"loss_{name}"] for name in ("standard_kl", "visual_kl", "language_kl")]
    assert line["loss"] == pytest.approx(sum(parts)) and 0 < line["gradient_scale"] < 1
    # One response each: the standard part is s times the mean over responses of their mean KL.
    rows = pq.read_table(tmp_path / "rollouts").to_pylist()
    means = [sum(row["standard_kl"]) / len(row["standard_kl"]) for row in rows]
    assert parts[0] == pytest.approx(line["gradient_scale"] * sum(means) / len(means), rel=1e-4)


class Flaky(Sequence):
    """Problems of which some turn out unreadable, once it is `armed`: before, type checks look in."""

    def __init__(self, samples, bad):
        self.samples, self.bad, self.armed = samples, bad, False

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if self.armed and index in self.bad:
            raise BadRowError("train.parquet", BadRow(index, None, "unreadable_media", "is truncated"))
        return self.samples[index]


def train_on_flaky(folder, base_folder, data, bad, *, skip):
    overrides = (f"student.model={base_folder}", f"data.train={data}", "training.prompts_per_step=4")
    more = (f"training.output={folder}", "training.steps=10", "rollout.sampling.max_new_tokens=4")
    recipe = load_recipe("cuebench/opsd_cue", [*overrides, *more])
    trainer = build(recipe).trainer
    flaky = Flaky(trainer.samples[:], bad)
    trainer = replace(trainer, samples=flaky, skip_bad_rows=skip)
    flaky.armed = True
    with Records(folder, to_yaml(recipe)) as records:
        trainer.train(records, Progress("", Console(quiet=True)))
    return [sample.id for sample in flaky.samples]


def test_a_problem_that_turns_out_unreadable_is_left_out_and_counted(tmp_path, base_folder, data):
    with pytest.raises(BadRowError, match=r"train\.parquet, row [34]: is truncated"):
        train_on_flaky(tmp_path / "stops", base_folder, data, {3, 4}, skip=False)
    ids = train_on_flaky(tmp_path / "goes", base_folder, data, {3, 4}, skip=True)
    lines = [json.loads(line) for line in (tmp_path / "goes" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and lines[-1]["bad_rows"] == 2
    seen = set()
    for file in (tmp_path / "goes" / "rollouts").glob("*.parquet"):
        seen |= set(pq.read_table(file)["sample"].to_pylist())
    assert seen == set(ids) - {ids[3], ids[4]}


def test_too_few_readable_problems_end_the_run(tmp_path, base_folder, data):
    with pytest.raises(ValueError, match=r"Only 3 problems can be read, fewer than one step takes \(4\)"):
        train_on_flaky(tmp_path / "run", base_folder, data, set(range(21)), skip=True)


def test_prompts_that_are_too_long_are_skipped_and_reported(tmp_path, base_folder, data):
    table = pq.read_table(data)
    texts = [text + " Look closely." * (row < 12) for row, text in enumerate(table["problem"].to_pylist())]
    pq.write_table(with_column(table, "problem", texts), tmp_path / "train.parquet")
    settings = [
        f"student.model={base_folder}",
        f"data.train={tmp_path / 'train.parquet'}",
        "training.prompts_per_step=4",
    ]
    whole = build(load_recipe("cuebench/opsd_cue", settings))
    assert whole.data.notes() == []
    lengths = [len(p) for p in whole.trainer.scoring.student.encode(whole.data.problems[:], Plain())]
    limit = min(lengths)
    fitting = sum(length <= limit for length in lengths)
    cut = build(load_recipe("cuebench/opsd_cue", [*settings, f"data.max_prompt_tokens={limit}"]))
    assert len(cut.data.problems) == fitting < 24
    (told,) = cut.data.notes()
    assert told.startswith(f"Skipped {24 - fitting} problems of ") and "too long, the first: " in told
    # The teacher's prompts are longer by their hint, and are not cut off by the student's limit.
    teacher = cut.trainer.scoring.teacher
    longest = max(len(p) for p in teacher.scorer.encode(cut.data.problems[:], teacher.view))
    assert longest > limit
    with pytest.raises(ValueError, match=r"data\.overlong=drop"):
        build(
            load_recipe(
                "cuebench/opsd_cue",
                [*settings, f"data.max_prompt_tokens={limit}", "data.overlong=error"],
            )
        )


def test_answers_that_cannot_be_graded_are_left_out_where_rewards_are_needed(tmp_path, base_folder, data):
    table = pq.read_table(data)
    answers = ["\\frac{", *table["answer"].to_pylist()[1:]]
    pq.write_table(with_column(table, "answer", answers), tmp_path / "train.parquet")
    settings = [
        f"student.model={base_folder}",
        f"data.train={tmp_path / 'train.parquet'}",
        "training.prompts_per_step=4",
        "rollout.group_size=2",
    ]
    assert len(build(load_recipe("cuebench/opsd_cue", settings)).data.problems) == 24
    graded = build(load_recipe("cuebench/opsd_cue", [*settings, "objective.grpo={}"]))
    (key,) = graded.data.ungradable
    assert key == table["id"][0].as_py() and len(graded.data.problems) == 23
    assert (
        f"answers that cannot be graded: 1 gold answer with unbalanced braces; the first: {key}."
        in (graded.data.notes()[0])
    )


def test_a_function_of_the_users_own_gives_the_rewards(tmp_path, base_folder, data):
    (tmp_path / "mine.py").write_text("def length(response, gold, meta):\n    return len(response) / 100\n")
    metrics, _ = run(
        tmp_path / "run",
        base_folder,
        data,
        "objective.grpo={}",
        "rollout.group_size=2",
        f"rewards.function={tmp_path / 'mine.py'}:length",
        "rewards.correct_from=0.05",
    )
    (file,) = (tmp_path / "run" / "rollouts").glob("*.parquet")
    table = pq.read_table(file).to_pylist()
    assert all(row["reward"] == pytest.approx(len(row["response"]) / 100) for row in table)
    assert all(row["correct"] == (row["reward"] >= 0.05) for row in table)
    own = [row["reward"] for row in table if row["step"] == 1]
    assert metrics[0]["reward"] == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_epochs_take_the_place_of_steps(tmp_path, base_folder, data):
    metrics, _ = run(
        tmp_path / "run",
        base_folder,
        data,
        "training.steps=null",
        "training.epochs=2",
        "training.prompts_per_step=10",
    )
    assert len(metrics) == 2 * 2  # 24 problems: two batches of ten an epoch, four problems left out


@pytest.mark.parametrize("settings", [(), ("teacher.update=ema",), ("teacher.update=live",)])
def test_a_student_in_half_precision_and_its_teachers(tmp_path, base_folder, data, settings):
    metrics, loaded = run(
        tmp_path / "run", base_folder, data, "student.dtype=bfloat16", "teacher.dtype=bfloat16", *settings
    )
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in metrics)
    assert loaded.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())  # the masters


def test_a_lora_student_learns_beside_recovery_and_its_base_stays(tmp_path, base_folder, data):
    metrics, loaded = run(
        tmp_path / "run", base_folder, data, "student.lora={rank: 4}", "optimizer.learning_rate=1e-3"
    )
    assert all(math.isfinite(line["loss"]) for line in metrics)
    base = load_model(base_folder).model.state_dict()
    own = {name.replace(".base_layer", ""): p for name, p in loaded.model.state_dict().items()}
    assert all(torch.equal(own[name], tensor) for name, tensor in base.items())
    moved = [name for name, p in own.items() if "lora_B" in name or ("recovery" in name and "output" in name)]
    assert moved and all(own[name].any() for name in moved)


def test_a_frozen_vision_tower_stays(tmp_path, base_folder, data):
    _, loaded = run(
        tmp_path / "run", base_folder, data, "student.freeze_vision=true", "optimizer.learning_rate=1e-3"
    )
    base = load_model(base_folder).model.state_dict()
    own = loaded.model.state_dict()
    same = {name for name, tensor in base.items() if torch.equal(own[name], tensor)}
    assert {name for name in base if "visual" in name} <= same and len(same) < len(base)


def test_a_teacher_follows_the_student_after_every_update(tmp_path, base_folder, data):
    """With a decay of 0 it arrives at once: after the run it is the student without its module."""
    settings = [
        f"student.model={base_folder}",
        f"data.train={data}",
        f"training.output={tmp_path / 'run'}",
        "training.prompts_per_step=4",
        "training.steps=2",
        "rollout.sampling.max_new_tokens=6",
        "teacher.update=ema",
        "teacher.ema_decay=0",
        "optimizer.learning_rate=1e-3",
    ]
    recipe = load_recipe("cuebench/opsd_cue", settings)
    assembled = build(recipe)
    before = {k: v.clone() for k, v in assembled.student.model.state_dict().items()}
    with Records(Path(recipe.training.output), to_yaml(recipe)) as records:
        assembled.trainer.train(records, Progress("", Console(quiet=True)))
    own = assembled.student.model.state_dict()
    teacher = assembled.trainer.scoring.teacher.loaded.model.state_dict()
    assert any(not torch.equal(own[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(own[name], tensor) for name, tensor in teacher.items())


def test_problems_without_the_teachers_privilege_are_reported_or_refused(tmp_path, base_folder, data):
    table = pq.read_table(data)
    cues = [None] * 4 + table["cue"].to_pylist()[4:]
    pq.write_table(with_column(table, "cue", cues), tmp_path / "train.parquet")
    settings = [
        f"student.model={base_folder}",
        f"data.train={tmp_path / 'train.parquet'}",
        "training.prompts_per_step=4",
    ]
    plain = build(load_recipe("cuebench/opsd_cue", settings))
    assert plain.data.notes() == [
        "4 of 24 problems lack a teacher's privilege; for these the teacher sees the plain problem."
    ]
    skipped = build(load_recipe("cuebench/opsd_cue", [*settings, "teacher.missing_privilege=skip"]))
    assert len(skipped.data.problems) == 20
    assert skipped.data.notes()[0].startswith("Skipped 4 problems of ")
    with pytest.raises(ValueError, match=r"4 of 24 problems of .* lack the privilege cue"):
        build(load_recipe("cuebench/opsd_cue", [*settings, "teacher.missing_privilege=error"]))


def test_the_generator_follows_every_update(tmp_path, base_folder, data, monkeypatch):
    """An engine with weights of its own must take them over before it writes again."""
    events = []
    rollouts, update = GeneratedSource.rollouts, Updater.update

    def noting(name, method):
        def noted(*args, **kwargs):
            events.append(name)
            return method(*args, **kwargs)

        return noted

    monkeypatch.setattr(GeneratedSource, "rollouts", noting("generate", rollouts))
    monkeypatch.setattr(Updater, "update", noting("update", update))
    monkeypatch.setattr(TorchEngine, "sync", noting("sync", TorchEngine.sync))
    run(tmp_path / "run", base_folder, data, "training.steps=2")
    assert events == ["generate", "update", "sync"] * 2
