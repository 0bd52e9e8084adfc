"""`vicur eval`: several models, controls, categories, endpoints."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cues"))

from cue_endpoints import FakeEndpoint, completion, failure, question_of

from vicur.cli.main import main
from vicur.cuebench.generate import write_parquet
from vicur.evaluation.responses import lines_path
from vicur.evaluation.statistics import accuracy_interval

COMMON = ("--max-new-tokens", "12")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight problems with a category, which is the number of digits of the answer."""
    path = tmp_path_factory.mktemp("data") / "test.parquet"
    write_parquet("segments", "test", 8, path)
    table = pq.read_table(path)
    digits = [[len(answer) for answer in table.column("answer").to_pylist()]]
    pq.write_table(table.append_column("digits", digits), path)
    return path


@pytest.fixture
def endpoint():
    with FakeEndpoint() as server:
        yield server


def evaluate(data, *more):
    return main(["eval", "--data", str(data), *COMMON, *more])


def test_several_models_and_controls_are_compared(data, tmp_path, capsys):
    out = tmp_path / "out"
    models = ["--model", "vicur:tiny-student", "vicur:tiny-teacher", "--names", "small", "large"]
    arguments = [*models, "--control", "blank", "other", "--by", "digits", "--output", str(out)]
    assert evaluate(data, *arguments) == 0
    printed = capsys.readouterr().out
    assert "large, blank: accuracy" in printed and "difference" in printed
    names = ["small", "small, blank", "small, other", "large", "large, blank", "large, other"]
    summary = json.loads((out / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == names
    arms = {arm["name"]: arm for arm in summary["arms"]}
    assert "difference" not in arms["small"]
    assert arms["large"]["difference"]["from"] == "small"
    assert arms["large, blank"]["difference"]["from"] == "large"
    rows = {name: pq.read_table(out / f"{name.replace(', ', '.')}.parquet").to_pylist() for name in names}
    for name, arm in arms.items():  # everything in the summary follows from the files
        correct = [row["correct"] for row in rows[name]]
        assert arm["problems"] == len(correct) == 8
        assert arm["accuracy"]["value"] == pytest.approx(accuracy_interval(correct).value)
        by = [category for category in arm["by"] if category["column"] == "digits"]
        assert sum(category["problems"] for category in by) == 8
        right = sum(c["problems"] * c["accuracy"]["value"] / 100 for c in by)
        assert right == pytest.approx(sum(correct))
    won = sum(a["correct"] > b["correct"] for a, b in zip(rows["large"], rows["small"], strict=True))
    assert arms["large"]["difference"]["won"] == won
    assert rows["small"][0]["digest"] != rows["small, blank"][0]["digest"]
    table = (out / "summary.md").read_text()
    assert table.count("\n| ") >= 8 and "exact sign test" in table
    assert evaluate(data, *arguments) == 0  # everything is there already
    assert "Reusing 8 responses" in capsys.readouterr().err


def test_json_is_the_only_output(data, capsys):
    assert evaluate(data, "--model", "vicur:tiny-student", "--problems", "3", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["arms"][0]["problems"] == 3 and summary["arms"][0]["settings"]["dtype"] == "float32"


def test_more_samples_extend_an_evaluation(data, tmp_path, capsys):
    out = tmp_path / "r.parquet"
    arguments = [
        "--model",
        "vicur:tiny-student",
        "--problems",
        "4",
        "--temperature",
        "1",
        "--output",
        str(out),
    ]
    assert evaluate(data, *arguments) == 0
    first = pq.read_table(out).to_pylist()
    assert evaluate(data, *arguments, "--samples", "3") == 0
    printed = capsys.readouterr().out
    assert "avg@3" in printed and "Problems by number of right responses: 0 of 3:" in printed
    rows = pq.read_table(out).to_pylist()
    assert [(row["id"], row["number"]) for row in rows[:4]] == [(first[0]["id"], n) for n in range(3)] + [
        (first[1]["id"], 0)
    ]
    assert [row["response"] for row in rows[::3]] == [row["response"] for row in first]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "colour"], "has no column colour; it has id"),
        (["--samples", "2"], "all the same at temperature 0"),
        (["baseline=x", "--names", "a"], "baseline=x is none of the models a"),
        (["--control", "dark"], "control must be one of blank, degraded, blind, other"),
        (["--preset", "vicurr"], "did you mean vicur"),
        (["--names", "a", "b"], "There are 2 names for 1 paths"),
    ],
)
def test_mistakes_are_explained(data, capsys, arguments, message):
    code = evaluate(data, "--model", "vicur:tiny-student", "--problems", "2", *arguments)
    error = capsys.readouterr().err
    assert code == 1 and message in error and error.count("\n") <= 2


def test_several_models_need_a_folder(data, tmp_path, capsys):
    models = ["--model", "vicur:tiny-student", "vicur:tiny-teacher"]
    assert evaluate(data, *models, "--output", str(tmp_path / "r.parquet")) == 1
    assert "must be a folder" in capsys.readouterr().err


def answers_of(data):
    table = pq.read_table(data)
    questions = [text.removeprefix("<image>") for text in table.column("problem").to_pylist()]
    return dict(zip(questions, table.column("answer").to_pylist(), strict=True)), questions


def test_an_endpoint_is_evaluated_like_a_model(data, endpoint, tmp_path, capsys, monkeypatch):
    """Sampling settings, images and seeds are in the requests; replies are graded and stored."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    gold, _ = answers_of(data)
    endpoint.answer = lambda body, number: completion(
        f"The answer is {gold[question_of(body)]}.", reasoning_content="Let me see."
    )
    out = tmp_path / "r.parquet"
    arguments = [
        *("--model", "m", "--base-url", endpoint.url, "--output", str(out), "--preset", "vicur"),
        *("--samples", "2", "data.max_pixels=4000", "--system-prompt", "Answer."),
    ]
    assert main(["eval", "--data", str(data), *arguments]) == 0
    assert "avg@2 100.0" in capsys.readouterr().out
    bodies = endpoint.bodies
    assert len(bodies) == 16 and len({body["seed"] for body in bodies}) == 16
    body = bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["presence_penalty"]) == (
        0.7,
        0.8,
        20,
        1.5,
    )
    assert body["max_tokens"] == 4096 and "response_format" not in body
    assert body["messages"][0] == {"role": "system", "content": "Answer."}
    rows = pq.read_table(out).to_pylist()
    assert rows[0]["response"].startswith("<think>Let me see.</think>") and rows[0]["response_ids"] is None
    assert rows[0]["response_tokens"] == 10 and len(rows) == 16
    assert main(["eval", "--data", str(data), *arguments]) == 0 and len(endpoint.bodies) == 16


def test_what_an_endpoint_refuses_is_left_out_and_said(data, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    gold, questions = answers_of(data)

    def answer(body, number):
        if question_of(body) == questions[0]:
            return failure(400, "the prompt is refused")
        return completion(gold[question_of(body)])

    endpoint.answer = answer
    assert evaluate(data, "--model", "m", "--base-url", endpoint.url) == 0
    printed = capsys.readouterr().out
    refused = questions.count(questions[0])
    assert "accuracy 100.0" in printed and f"on {8 - refused} problems" in printed
    assert f"Excluded from the accuracy: {refused} (not answered by the endpoint)" in printed
    endpoint.answer = lambda body, number: failure(401, "no key")
    assert evaluate(data, "--model", "m", "--base-url", endpoint.url) == 1
    assert "does not accept the key" in capsys.readouterr().err


def test_a_request_that_fails_once_is_sent_again(data, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("vicur.endpoints.patience.backoff", lambda *_: 0.0)
    gold, _ = answers_of(data)
    seen = set()

    def answer(body, number):
        if body["seed"] not in seen:
            seen.add(body["seed"])
            return failure(500 if len(seen) % 2 else 503)
        return completion(gold[question_of(body)])

    endpoint.answer = answer
    assert evaluate(data, "--model", "m", "--base-url", endpoint.url) == 0
    assert "accuracy 100.0" in capsys.readouterr().out and len(endpoint.bodies) == 16
    assert asyncio.run(_nothing()) is None  # the loop of the evaluation is closed


def test_responses_of_a_problem_that_lacks_one_are_kept(data, endpoint, tmp_path, capsys, monkeypatch):
    """They are not graded; a rerun asks for the missing one only, also after the endpoint gave up."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("vicur.endpoints.patience.backoff", lambda *_: 0.0)
    gold, _ = answers_of(data)
    seeds, refuse = [], failure(400, "refused")

    def answer(body, number):
        seeds.append(body["seed"])
        return refuse if body["seed"] == seeds[0] else completion(gold[question_of(body)])

    endpoint.answer = answer
    out = tmp_path / "out.parquet"
    sampled = ["--samples", "2", "--preset", "vicur", "--output", str(out)]
    command = ["--model", "m", "--base-url", endpoint.url, *sampled]
    assert evaluate(data, *command) == 0
    assert "Excluded from the accuracy: 1 (not answered by the endpoint)" in capsys.readouterr().out
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 15 and sum(row["correct"] is None for row in rows) == 1
    (partial,) = [row for row in rows if row["correct"] is None]
    assert partial["response"] and "refused" in partial["excluded"]
    refuse = failure(401, "no key")
    assert evaluate(data, *command) == 1 and "does not accept the key" in capsys.readouterr().err
    seeds[0] = None
    assert evaluate(data, *command) == 0 and len(endpoint.bodies) == 16 + 1 + 1
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 16 and all(row["correct"] for row in rows)


def test_replies_before_the_endpoint_gives_up_are_kept(data, endpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    gold, _ = answers_of(data)
    endpoint.answer = lambda body, number: (
        completion(gold[question_of(body)]) if number < 6 else failure(402, "no money")
    )
    out = tmp_path / "out.parquet"
    command = ["--model", "m", "--base-url", endpoint.url, "--output", str(out), "concurrency=1"]
    assert evaluate(data, *command) == 1 and "asks for payment" in capsys.readouterr().err
    kept = len(lines_path(out).read_text().splitlines()) - 1
    assert kept >= 5
    endpoint.answer = lambda body, number: completion(gold[question_of(body)])
    before = len(endpoint.bodies)
    assert evaluate(data, *command) == 0 and len(endpoint.bodies) - before == 8 - kept


async def _nothing():
    return None
