"""The summary of a run, from the files of its folder alone."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from vicur.cuebench.generate import write_parquet
from vicur.files import write_json, write_rows
from vicur.progress import Progress
from vicur.reporting.run_summary import (
    as_markdown,
    print_run_summary,
    summarise_run,
    write_run_summary,
)
from vicur.run.build import build
from vicur.run.recipe import load_recipe
from vicur.settings.section import SettingsError


def answers(correct):
    return [
        {
            "sample": f"p{i}",
            "question": f"What is {i} | {i}?",
            "answer": str(i),
            "response": "long " * 200 if i == 1 else f"It is {i}.",
            "correct": value,
        }
        for i, value in enumerate(correct)
    ]


@pytest.fixture
def folder(tmp_path):
    """A run of 20 steps whose loss falls by 1 a step, with 8 held-out problems, written by hand."""
    lines = [
        {"step": s, "loss": 21.0 - s, "gap_whole": -1.0, "response_tokens": 10.0, "seconds": 3.0}
        | {"seconds_rollout": 1.0, "seconds_update": 2.0}
        | ({"rollout_accuracy": 5.0 * s} if s % 2 else {})
        for s in range(1, 21)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    write_json(
        tmp_path / "status.json",
        {"status": "finished", "step": 20, "seconds": {"total": 100.0, "evaluation": 30.0}},
    )
    memory = {"device": "cuda:0", "estimate": 3 * 2**30, "available": None, "peak": 2 * 2**30}
    write_json(tmp_path / "memory.json", memory)
    validation = tmp_path / "evaluation"
    write_rows(validation / "step-000000.parquet", answers([True] * 2 + [False] * 6 + [None]))
    write_rows(validation / "step-000010.parquet", answers([True] * 4 + [False] * 4 + [None]))
    write_rows(validation / "step-000020.parquet", answers([True] * 6 + [False] * 2 + [None]))
    rows = [{"step": s, **row} for s in (19, 20) for row in answers([False, True])]
    write_rows(tmp_path / "rollouts" / "until-step-000020.parquet", rows)
    return tmp_path


def test_numbers(folder):
    found = summarise_run(folder)
    assert (found["status"], found["steps"]) == ("finished", 20)
    held_out = found["evaluation"]
    # The ninth problem cannot be graded: 2 and 6 of 8.
    assert held_out["problems"] == 8
    assert (held_out["before"]["value"], held_out["after"]["value"]) == (25.0, 75.0)
    assert held_out["difference"]["value"] == 50.0
    for estimate in (held_out["before"], held_out["after"], held_out["difference"]):
        assert estimate["low"] < estimate["value"] < estimate["high"]
    # A tenth of 20 steps is 2: means of 20 and 19, and of 2 and 1.
    assert found["curves"]["loss"] == {"first": 19.5, "last": 1.5, "steps": 2}
    assert found["curves"]["rollout_accuracy"] == {"first": 10.0, "last": 90.0, "steps": 2}
    assert found["seconds"] == {"total": 100.0, "rollout": 20.0, "update": 40.0, "evaluation": 30.0}
    assert found["memory"]["relative_error"] == 0.5
    assert [e["sample"] for e in found["examples"]] == ["p0", "p1", "p2", "p3", "p4"]
    assert found["examples"][0]["source"] == "held-out problems after step 20"


def test_without_held_out_problems_examples_are_of_the_last_step(folder):
    for path in (folder / "evaluation").iterdir():
        path.unlink()
    found = summarise_run(folder)
    assert found["evaluation"] is None
    assert [(e["sample"], e["correct"]) for e in found["examples"]] == [("p0", False), ("p1", True)]
    assert found["examples"][0]["source"] == "training problems of step 20"


def test_an_interrupted_run_has_no_after(folder):
    for step in (10, 20):
        (folder / "evaluation" / f"step-{step:06d}.parquet").unlink()
    (folder / "memory.json").unlink()
    found = summarise_run(folder)
    assert set(found["evaluation"]) == {"problems", "before"} and found["memory"] is None
    assert "25.0 [" in as_markdown(found)


def test_the_page_and_the_terminal(folder):
    write_run_summary(folder)
    page = (folder / "summary.md").read_text()
    assert json.loads((folder / "summary.json").read_text()) == summarise_run(folder)
    assert "| loss | 19.500 | 1.500 |" in page and "+50.0 [" in page
    assert "What is 0 \\| 0?" in page and len(max(page.splitlines(), key=len)) < 500
    assert "Time: 1 min 40 s (rollout 20.0 s, update 40.0 s, evaluation 30.0 s)." in page
    assert "Peak memory (cuda:0): 2.00 GiB; estimate 3.00 GiB (+50 %)." in page
    console = Console(record=True, width=80, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_run_summary(summarise_run(folder), console)
    text = console.export_text()
    assert "19.500" in text and "It is 0." in text and "gold 0, right" in text and "gold 6" not in text
    console.file.close()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no status\.json"):
        summarise_run(tmp_path)


def test_a_run_without_a_step_has_no_summary(folder):
    (folder / "metrics.jsonl").write_text("")
    write_run_summary(folder)
    assert not (folder / "summary.json").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    write_parquet("segments", "train", 8, data / "train.parquet")
    write_parquet("segments", "test", 5, data / "test.parquet")
    return data


def settings(files, out, *more):
    return [
        f"data.train={files / 'train.parquet'}",
        f"training.output={out}",
        "training.prompts_per_step=4",
        "training.steps=2",
        "training.save_model=false",
        "rollout.sampling.max_new_tokens=4",
        *more,
    ]


def test_a_run_with_held_out_problems(files, tmp_path):
    more = (f"training.evaluate.data={files / 'test.parquet'}", "training.evaluate.problems=3")
    recipe = load_recipe("cuebench/opsd_cue", settings(files, tmp_path / "run", *more))
    run = build(recipe)
    run.execute(tmp_path / "run", run.plan(), Progress("", Console(quiet=True)))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["evaluation"]["problems"] == 3 and len(found["examples"]) == 3
    assert {
        "total",
        "rollout",
        "grading",
        "teacher",
        "student",
        "update",
        "evaluation",
        "checkpoints",
    } == set(found["seconds"])
    parts = found["seconds"]
    assert sum(value for name, value in parts.items() if name != "total") <= parts["total"]
    assert found["memory"]["estimate"] > 0 and found["memory"]["peak"] > 0
    alone = build(load_recipe("cuebench/opsd_cue", settings(files, tmp_path / "alone")))
    alone.execute(tmp_path / "alone", alone.plan(), Progress("", Console(quiet=True)))
    lines = [
        re.sub(r'"seconds\w*": [\d.e-]+', "", (tmp_path / name / "metrics.jsonl").read_text())
        for name in ("run", "alone")
    ]
    assert lines[0] == lines[1]  # held-out problems change nothing in training


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.evaluate.problems=0", "training.evaluate.problems must be at least 1, not 0"),
        ("training.evaluate.max_new_tokens=0", "training.evaluate.max_new_tokens must be at least 1, not 0"),
        ("training.evaluate.temperature=-1", "training.evaluate.temperature must be 0 or more"),
    ],
)
def test_mistakes_in_validation(override, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe("cuebench/opsd_cue", [override])


def test_evaluations_that_show_other_prompts_are_announced(files, tmp_path):
    def notices(*more):
        held_out = f"training.evaluate.data={files / 'test.parquet'}"
        recipe = load_recipe("cuebench/opsd_cue", settings(files, tmp_path / "run", held_out, *more))
        return [text for text in build(recipe).notices if text.startswith("In evaluations")]

    changed = notices("training.evaluate.preset=vicur", "data.max_pixels=9000")
    assert "In evaluations data.max_pixels is 401408, but 9000 in training." in changed
    assert any("data.system_prompt is 'You are a helpful assistant.'" in text for text in changed)
    assert notices("training.evaluate.preset=greedy") == []


@pytest.mark.parametrize("use", ["evaluate", "observe"])
def test_held_out_images_that_nothing_reads_are_refused(files, tmp_path, use):
    table = pq.read_table(files / "test.parquet")
    names = ["picture" if name == "images" else name for name in table.column_names]
    problem = [text.replace("<image>", "") for text in table["problem"].to_pylist()]
    table = table.rename_columns(names).set_column(names.index("problem"), "problem", [problem])
    path = tmp_path / "renamed.parquet"
    pq.write_table(table, path)
    more = (f"training.{use}.data={path}", "training.observe.of=[vds]")
    with pytest.raises(ValueError, match=rf"training\.{use}\.data: .*column picture holds images"):
        build(load_recipe("cuebench/opsd_cue", settings(files, tmp_path / "run", *more)))


def test_held_out_problems_without_answers_are_refused(files, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text(json.dumps({"problem": "What?", "images": []}) + "\n")
    more = (f"training.evaluate.data={path}",)
    with pytest.raises(ValueError, match="no problem has an answer to grade against"):
        build(load_recipe("cuebench/opsd_cue", settings(files, tmp_path / "run", *more)))
