"""The audit's second look through an endpoint, and repair, from the command line."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cue_endpoints import completion, failure
from cue_problems import ANSWER, problem

from vicur.audit import ModelVerifier, audit_cues
from vicur.audit.endpoint import EndpointAsk
from vicur.cli.main import main
from vicur.cues.clients import EndpointConfig
from vicur.data.sources import FileSource

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


def test_a_model_rejects_claims_with_the_image_beside_them(cued, endpoint, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint.answer = lambda body, number: completion("No." if "blue square" in said(body)[0] else "Yes.")
    options = ["--verifier", "looker", "--base-url", endpoint.url, "--json"]
    assert main(["cues", "audit", "--data", str(cued), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["categories"]["grounding"]["cues"] == 1
    assert sum(told["claims"].values()) == 3
    for body in endpoint.bodies:
        text, images = said(body)
        assert images == 1 and ANSWER not in text and "Statement:" in text
        assert "response_format" not in body


def test_a_verifier_that_fails_is_asked_again_or_says_nothing(cued, endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    seen = set()

    def answer(body, number):
        text, _ = said(body)
        if "red circle" in text and text not in seen:
            seen.add(text)
            return failure(500)
        return failure(400) if "blue square" in text else completion("yes")

    endpoint.answer = answer
    ask = EndpointAsk("looker", EndpointConfig(base_url=endpoint.url), backoff_seconds=0.0)
    found = audit_cues(FileSource(cued), verifier=ModelVerifier(ask))
    assert found.count("grounding") == 0
    assert len(endpoint.bodies) == 4 and len(seen) == 1


def test_an_endpoint_that_takes_nothing_is_told(cued, endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint.answer = lambda body, number: failure(401)
    ask = EndpointAsk("looker", EndpointConfig(base_url=endpoint.url), backoff_seconds=0.0)
    with pytest.raises(ValueError, match="The verifier looker cannot be asked"):
        audit_cues(FileSource(cued), verifier=ModelVerifier(ask))


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
    options = ["--model", "m", "--endpoint.base_url", endpoint.url, "--repair", "2"]
    assert main(["cues", "build", "--data", str(data), "--out", str(out), *options]) == 0
    assert "asking for these again" in capsys.readouterr().out
    assert len(endpoint.bodies) == 7, "only the faulty cue is asked for again"
    cues = pq.read_table(out)["cue"].to_pylist()
    assert not any("theorem" in cue for cue in cues) and "number 2" in cues[2]


def test_repair_keeps_what_it_mended_and_asks_anew_for_the_rest(
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
    options = ["--model", "m", "--endpoint.base_url", endpoint.url, "--repair", "3", "--column", "made"]
    assert main(["cues", "build", "--data", str(data), "--out", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert "2 cues leak" in told and "1 cues leak" in told
    assert len(endpoint.bodies) == 6 + 2 + 1
    made = pq.read_table(out)["made"].to_pylist()
    assert made == [f"The drawing number {i} shows one shape of its own." for i in range(6)]


def test_rationales_are_not_repaired(data, capsys):
    options = ["--model", "m", "--prompt", "rationale", "--repair", "1"]
    assert main(["cues", "build", "--data", str(data), "--out", "x.parquet", *options]) == 1
    assert "repairs are for cues" in capsys.readouterr().err
