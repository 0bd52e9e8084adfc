"""The documented pipeline, as a user types it: build, audit, worth, from a folder of photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cue_endpoints import FakeEndpoint, completion
from PIL import Image, ImageDraw

from vicur.cli.main import main


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of images with a metadata.jsonl, as docs/cues.md begins."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number in range(3):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).line((8, 8, 24 + 8 * number, 40), fill="red", width=3)
        image.save(folder / f"board{number}.png")
        question = f"How long is the red segment of board {number}?"
        rows.append({"file_name": f"board{number}.png", "question": question, "answer": str(number + 4)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return folder


def reply(body, number):
    text = json.dumps({"cue": f"A red segment starts at the left edge, board {number}."})
    return completion(f"They may mean the length.\n</think>\n\n{text}")


def test_build_audit_and_worth(photos, endpoint, capsys):
    endpoint.answer = reply
    asked = ["--model", "m", "--endpoint.base_url", endpoint.url, "--concurrency", "1"]
    assert main(["cues", "build", "--data", "photos", "--output", "photos_cues.parquet", *asked]) == 0
    built = pq.read_table("photos_cues.parquet").to_pylist()
    assert [row["image"] for row in built] == [f"photos/board{n}.png" for n in range(3)]
    assert built[0]["cue"].startswith("A red segment starts")
    capsys.readouterr()
    dropped = ["--drop", "clean/photos.parquet", "--json"]
    assert main(["cues", "audit", "--data", "photos_cues.parquet", *dropped]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["cues"]) == (3, 3)
    models = ["--student", "vicur:tiny-student", "--problems", "2", "--group-size", "1"]
    brief = ["--sampling.max_new_tokens", "3", "--kinds", "cue", "--output", "worth"]
    assert main(["cues", "worth", "--data", "photos_cues.parquet", *models, *brief]) == 0
    assert json.loads(Path("worth/worth.json").read_text())["problems"] == 2


def test_paths_that_cannot_be_moved_need_an_image_dir(photos, endpoint, capsys):
    """The output lies beside the photographs, from where no path may lead to them."""
    endpoint.answer = reply
    asked = ["--model", "m", "--endpoint.base_url", endpoint.url]
    assert main(["cues", "build", "--data", "photos", "--output", "made/c.parquet", *asked]) == 0
    assert f"--image-dir {photos.name}" in capsys.readouterr().out
    assert main(["cues", "audit", "--data", "made/c.parquet", "--json"]) == 1
    assert main(["cues", "audit", "--data", "made/c.parquet", "--image-dir", "photos", "--json"]) == 0


def test_a_model_that_only_reasons_is_asked_once_for_each_problem(photos, capsys):
    message = {"role": "assistant", "content": None, "reasoning": "Let me look at the picture first"}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    usage = {"prompt_tokens": 5, "completion_tokens": 400, "total_tokens": 405}
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    answer = (200, {"Content-Type": "application/json"}, json.dumps(body).encode())
    with FakeEndpoint(lambda *_: answer) as server:
        asked = ["--model", "m", "--endpoint.base_url", server.url, "--completion_price", "1000"]
        extra = "--endpoint.extra_body={chat_template_kwargs: {enable_thinking: false}}"
        assert main(["cues", "build", "--data", "photos", "--output", "c.parquet", *asked, extra]) == 0
        assert len(server.bodies) == 3
        assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    said = capsys.readouterr().out
    assert "reasoning field" in said and "max_tokens" in said and "cost 1.2000" in said
