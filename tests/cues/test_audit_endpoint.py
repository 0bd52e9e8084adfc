"""The judge behind an endpoint, and repair, from the command line."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cue_endpoints import completion, failure
from cue_problems import ANSWER, problem
from hypothesis import given
from hypothesis import strategies as st

from vicur.audit import CueRow, Verdict, audit_cues, cue_rows
from vicur.audit.endpoint import EndpointJudge
from vicur.audit.judge import parse_verdict
from vicur.cli.main import main
from vicur.data.sources import FileSource
from vicur.endpoints.config import EndpointConfig

CUES = ["A red circle stands on the left.", "A blue square stands on the right.", "A green line runs below."]


@pytest.fixture
def cued(tmp_path):
    path = tmp_path / "cued.parquet"
    pq.write_table(pa.Table.from_pylist([problem(i, cue=cue) for i, cue in enumerate(CUES)]), path)
    return path


def said(body):
    """The words of a request, and how many images it has."""
    contents = [message["content"] for message in body["messages"]]
    parts = [
        part
        for content in contents
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]
    text = "".join(part.get("text", "") for part in parts)
    return text, sum(part["type"] == "image_url" for part in parts)


def verdict(**faults):
    """A judge's reply."""
    clean = dict.fromkeys(("states_answer", "solution_step", "not_in_image"), "")
    return completion(json.dumps(clean | faults))


@pytest.fixture
def judge(endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def made(**options):
        return EndpointJudge("m", EndpointConfig(base_url=endpoint.url), backoff_seconds=0.0, **options)

    return made


def test_a_judge_is_asked_once_per_cue_with_image_question_and_answer(cued, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(body, number):
        text, _ = said(body)
        return verdict(not_in_image="A blue square") if "blue square" in text else verdict()

    endpoint.answer = answer
    verdicts = cued.with_name("verdicts")
    command = ["cues", "audit", "--data", str(cued), "--verifier", "looker", "--base-url", endpoint.url]
    command += ["--verdicts", str(verdicts), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["categories"]["grounding"]["definite"] == 1
    assert printed["claims"] == {"accepted": 2, "rejected": 1} and len(endpoint.bodies) == 3
    for body in endpoint.bodies:
        text, images = said(body)
        assert images == 1 and f"Correct answer: {ANSWER}" in text and "how many?" in text
        schema = body["response_format"]["json_schema"]["schema"]
        assert list(schema["properties"]) == ["states_answer", "solution_step", "not_in_image"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert len(endpoint.bodies) == 3, "replies are kept"


def test_a_changed_cue_is_judged_anew(cued, endpoint, judge, tmp_path):
    endpoint.answer = lambda body, number: verdict()
    keeping = judge(store=tmp_path / "verdicts")
    rows = list(cue_rows(FileSource(cued), "cue"))
    assert keeping(rows) == [Verdict({})] * 3
    keeping([replace(rows[0], text="Another cue."), *rows[1:]])
    assert len(endpoint.bodies) == 4


def test_a_judge_that_fails_is_asked_again_or_gives_no_verdict(cued, endpoint, judge):
    tries = Counter()

    def answer(body, number):
        text, _ = said(body)
        cue = next(cue for cue in CUES if cue in text)
        tries[cue] += 1
        if "blue" in cue:
            return failure(400)
        if "green" in cue:
            return completion("I see nothing wrong.")
        return failure(500) if tries[cue] == 1 else verdict(states_answer="red circle")

    endpoint.answer = answer
    audit = audit_cues(FileSource(cued), judge=judge(tries=3))
    assert [tries[cue] for cue in CUES] == [2, 1, 3]
    assert audit.claims == {"rejected": 1, "unknown": 2}
    assert [flag.excerpt for flag in audit.flags if flag.rule == "judged"] == ["red circle"]


def test_an_endpoint_that_refuses_everything_is_reported(cued, endpoint, judge):
    endpoint.answer = lambda body, number: failure(401)
    with pytest.raises(ValueError, match="The verifier m cannot be used"):
        audit_cues(FileSource(cued), judge=judge())


def test_a_judge_that_only_reasons_is_reported(cued, endpoint, judge):
    endpoint.answer = lambda body, number: completion("<think>Let me look at it", finish="length")
    with pytest.raises(ValueError, match="spends its reply of 300 tokens on reasoning"):
        audit_cues(FileSource(cued), judge=judge())


def test_a_judge_needs_images(judge):
    with pytest.raises(ValueError, match="Sample a has no image, so its cue cannot be judged"):
        audit_cues([CueRow("a", "One line is here.")], judge=judge())


@pytest.mark.parametrize(
    ("reply", "faults"),
    [
        ('{"states_answer": "", "solution_step": "none", "not_in_image": " No. "}', {}),
        (
            'Sure: ```json\n{"states_answer": "so 7", "solution_step": null, "not_in_image": false} Done.',
            ["answer"],
        ),
        ('{"states_answer": true, "solution_step": ["x = 7"], "not_in_image": ""}', ["answer", "reasoning"]),
        ('{"a": {}} {"states_answer": "", "solution_step": "", "not_in_image": "blue"}', ["grounding"]),
        ('{"states_answer": "", "solution_step": ""}', None),
        ("yes", None),
        ("", None),
    ],
)
def test_verdicts_are_read(reply, faults):
    read = parse_verdict(reply)
    assert (None if read is None else list(read.faults)) == (None if faults is None else list(faults))


@given(st.text())
def test_any_reply_is_read(reply):
    parse_verdict(reply)


def test_one_command_compares_rules_and_judge(endpoint, capsys, monkeypatch):
    """The judge sees nothing but stated answers, wherever a cue has the word "answer"."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(body, number):
        cue = said(body)[0].partition("Description: ")[2].partition("Reply with")[0]
        return verdict(states_answer="answer") if "answer" in cue.lower() else verdict()

    endpoint.answer = answer
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    options = ["--verifier", "m", "--base-url", endpoint.url, "--problems", "4", "--wordings", "first"]
    monkeypatch.setattr(sys, "argv", ["audit.py", *options])
    monkeypatch.syspath_prepend(str(benchmarks))
    runpy.run_path(str(benchmarks / "audit.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    table = {cells[1]: cells[2:5] for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}
    assert table["planted"] == ["rules", "judge", "both"] and len(table) == 2 + 8
    assert table["nothing: exact cue"][1] == "0.0 (0.0) / 0.0 (0.0)"
    rules, judged, both = table["answer"]
    assert rules == both == "100.0 (100.0) / 100.0 (100.0)" and "0.0" not in judged.split()[:1]
    assert table["theorem"][1] == "0.0 (0.0) / 0.0 (0.0)" != table["theorem"][2]
    assert len(endpoint.bodies) == 8 * 2 * 4


def test_repair_asks_again_for_what_leaked(data, tmp_path, endpoint, capsys, monkeypatch):
    """One problem's first cue states a derivation; asked again, with what was wrong, it does not."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(body, number):
        text, _ = said(body)
        which = next(i for i in range(6) if f"Question {i}" in text)
        if which == 2 and "previous description" not in text:
            return completion(json.dumps({"cue": "By the Pythagorean theorem, 3 + 4 = 7, therefore 7."}))
        return completion(json.dumps({"cue": f"The drawing number {which} shows one shape of its own."}))

    endpoint.answer = answer
    out = tmp_path / "cues.parquet"
    options = ["--model", "m", "--endpoint.base_url", endpoint.url, "--repairs", "2"]
    assert main(["cues", "build", "--data", str(data), "--output", str(out), *options]) == 0
    assert "Regenerating 1 cue with definite faults" in capsys.readouterr().out
    assert len(endpoint.bodies) == 7, "only the faulty cue is asked for again"
    cues = pq.read_table(out)["cue"].to_pylist()
    assert not any("theorem" in cue for cue in cues) and "number 2" in cues[2]


def test_repair_keeps_repaired_cues_and_requests_the_rest_again(
    data, tmp_path, endpoint, capsys, monkeypatch
):
    """Problem 2 is mended by the first correction, 4 by the second. The data has another cue column."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    table = pq.read_table(data)
    pq.write_table(table.append_column("cue", [["By the theorem, 3 + 4 = 7, therefore 7."] * 6]), data)

    def answer(body, number):
        text, _ = said(body)
        which = next(i for i in range(6) if f"Question {i}" in text)
        rounds = 2 if "Correction 2" in text else 1 if "previous description" in text else 0
        if rounds < {2: 1, 4: 2}.get(which, 0):
            return completion(json.dumps({"cue": "By the Pythagorean theorem, 3 + 4 = 7, therefore 7."}))
        return completion(json.dumps({"cue": f"The drawing number {which} shows one shape of its own."}))

    endpoint.answer = answer
    out = tmp_path / "cues.parquet"
    options = ["--model", "m", "--endpoint.base_url", endpoint.url, "--repairs", "3", "--new-column", "made"]
    assert main(["cues", "build", "--data", str(data), "--output", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert "Regenerating 2 cues" in told and "Regenerating 1 cue " in told
    assert len(endpoint.bodies) == 6 + 2 + 1
    made = pq.read_table(out)["made"].to_pylist()
    assert made == [f"The drawing number {i} shows one shape of its own." for i in range(6)]


def test_rationales_are_not_repaired(data, capsys):
    options = ["--model", "m", "--prompt", "rationale", "--repairs", "1"]
    assert main(["cues", "build", "--data", str(data), "--output", "x.parquet", *options]) == 1
    assert "repairs are for cues" in capsys.readouterr().err
