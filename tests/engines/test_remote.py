"""The client of servers, against a server of our own that answers as vLLM's does."""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from vicur.encoding.prompts import EncodedPrompt
from vicur.vllm.backend import EngineError
from vicur.vllm.remote import RemoteEngine, ServedModel, _parts, _runs
from vicur.vllm.settings import VLLMConfig


class Handler(BaseHTTPRequestHandler):
    """Answers from the settings of its server: `missing` paths, `failing` paths, `max_model_len`."""

    def log_message(self, *arguments):
        """Say nothing."""

    def do_GET(self):
        if self.path == "/v1/models":
            return self.answer({"data": [{"id": "m", "max_model_len": self.server.max_model_len}]})
        return self.answer({}, 404 if self.path in self.server.missing else 405)

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length) or "null")
        self.server.asked.append((self.path, body))
        if self.path in self.server.missing:
            return self.answer({}, 404)
        if self.path in self.server.failing:
            return self.answer({"error": "out of cache"}, 500)
        if self.path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            self.server.weights = {k: v for file in folder.iterdir() for k, v in load_file(file).items()}
        if self.path != "/inference/v1/generate":
            return self.answer({})
        ids = body["token_ids"]
        if "prompt_logprobs" in body["sampling_params"]:
            entries = [None, *({str(token): {"logprob": -token / 8}} for token in ids[1:])]
            return self.answer({"prompt_logprobs": entries, "choices": []})
        first, number = (body["sampling_params"][name] for name in ("seed", "n"))
        choices = []
        for index in reversed(range(number)):
            seed = first + index
            content = [{"token_id": ids[0], "logprob": -0.5}, {"token_id": seed, "logprob": -0.25}]
            choice = {"token_ids": [ids[0], seed], "logprobs": {"content": content}, "finish_reason": "stop"}
            choices.append(choice | {"index": index})
        return self.answer({"choices": choices})

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def start():
    servers = []

    def started(max_model_len=512, missing=(), failing=()):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.missing, server.failing = [], set(missing), set(failing)
        server.max_model_len, server.weights = max_model_len, None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        server.url = f"http://127.0.0.1:{server.server_port}"
        return server

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def prompts(*firsts):
    return [EncodedPrompt.of_text([first, 7]) for first in firsts]


def test_answers_come_back_in_order_from_all_servers(start):
    first, second = start(), start()
    served = ServedModel([first.url, second.url + "/"], merge=2, max_model_len=100, timeout=30)
    groups = served.generate(prompts(1, 2, 3), [[11, 12], [21], [31]], {"max_tokens": 2, "temperature": 1.0})
    assert [[c.ids for c in group] for group in groups] == [[[1, 11], [1, 12]], [[2, 21]], [[3, 31]]]
    assert groups[0][0].log_probs == [-0.5, -0.25] and groups[0][0].stopped
    assert (len(first.asked), len(second.asked)) == (2, 1), "a request for all responses to a prompt"
    body = next(body for _, body in first.asked if body["token_ids"] == [1, 7])
    assert body["sampling_params"] == {"max_tokens": 2, "temperature": 1.0, "seed": 11, "n": 2, "logprobs": 0}
    assert body["cache_salt"] == "0:" and "features" not in body


@given(st.lists(st.integers(0, 4), max_size=12))
def test_seeds_in_a_row_share_a_request(steps):
    seeds = list(itertools.accumulate(steps, initial=7))
    runs = list(_runs(seeds))
    assert [first + i for first, number in runs for i in range(number)] == seeds
    assert len(runs) == 1 + sum(step != 1 for step in steps)


def test_a_large_group_takes_several_requests(start):
    server = start()
    served = ServedModel([server.url], merge=2, max_model_len=100, timeout=30)
    (group,) = served.generate(prompts(1), [list(range(100, 250))], {})
    assert [completion.ids[1] for completion in group] == list(range(100, 250))
    assert sorted(body["sampling_params"]["n"] for _, body in server.asked) == [22, 64, 64]


def test_given_tokens_are_scored(start):
    served = ServedModel([start().url], merge=2, max_model_len=100, timeout=30)
    responses = [[torch.tensor([4, 5]), torch.tensor([6])], [torch.tensor([8])]]
    scored = served.score(prompts(1, 2), responses)
    assert [one.tolist() for one in scored] == [[-0.5, -0.625], [-0.75], [-1.0]]


def test_the_students_weights_are_sent_and_old_results_dropped(start, student):
    server = start()
    engine = RemoteEngine(student, VLLMConfig(servers=[server.url]), 100)
    engine.load()
    assert {k: v.tolist() for k, v in server.weights.items()} == {
        k: v.tolist() for k, v in student.current_weights()
    }
    assert [path for path, _ in server.asked] == [
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_encoder_cache",
    ]
    with torch.no_grad():
        student.model.lm_head.weight.mul_(2)
    engine.load()
    assert torch.equal(server.weights["lm_head.weight"], student.model.lm_head.weight)
    engine.generate(prompts(1), [[11]], {})
    assert server.asked[-1][1]["cache_salt"] == "2:", "weights have other salts"
    folder = Path(engine._folder.name)
    engine.close()
    assert not folder.exists()


def test_weights_are_split_into_files(student, monkeypatch):
    monkeypatch.setattr("vicur.vllm.remote.FILE_BYTES", 100_000)
    parts = list(_parts(student.current_weights()))
    assert len(parts) > 2 and len({name for name, _ in parts}) == len(parts)
    joined = {key: value for _, part in parts for key, value in part.items()}
    assert set(joined) == set(student.weight_shapes())
    assert all(joined[name].shape == shape for name, shape in student.weight_shapes().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 64}, r"takes 64 tokens of prompt and response, and 100 may be needed"),
        ({"missing": ["/inference/v1/generate"]}, r"does not accept token ids. Start it with `vicur serve"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(start, settings, message):
    with pytest.raises(EngineError, match=message):
        ServedModel([start(**settings).url], merge=2, max_model_len=100, timeout=30)


def test_failures_name_the_server(start, student):
    failing = start(failing=["/inference/v1/generate"])
    served = ServedModel([failing.url], merge=2, max_model_len=100, timeout=30)
    with pytest.raises(EngineError, match=rf"server {failing.url} answers 500: .*out of cache"):
        served.generate(prompts(1), [[1]], {})
    fixed = start(missing=["/collective_rpc"])
    engine = RemoteEngine(student, VLLMConfig(servers=[fixed.url]), 100)
    with pytest.raises(EngineError, match=r"does not accept new weights. Start it with .*trainable=true"):
        engine.load()
    engine.close()
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9 cannot be reached"):
        ServedModel(["http://127.0.0.1:9"], merge=2, max_model_len=100, timeout=30)


def test_a_server_that_hangs_is_told(start, monkeypatch):
    server = start()
    served = ServedModel([server.url], merge=2, max_model_len=100, timeout=0.2)
    answered = threading.Event()
    monkeypatch.setattr(Handler, "do_POST", lambda handler: answered.wait(30))
    try:
        with pytest.raises(EngineError, match="has not answered in time"):
            served.generate(prompts(1), [[1]], {})
    finally:
        answered.set()
