"""Endpoints for tests: one that misbehaves as told, a counting proxy, and a real server."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers and body of a reply: bytes, or their parts as they are sent."""


def completion(text: str | None, *, finish="stop", usage=(100, 10), **message: Any) -> Answer:
    """A chat completion."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
    }
    if usage is not None:
        sent, received = usage
        body["usage"] = {
            "prompt_tokens": sent,
            "completion_tokens": received,
            "total_tokens": sent + received,
        }
    return json_answer(200, body)


def json_answer(status: int, body: Any, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json", **named}, json.dumps(body).encode()


def failure(status: int, message: str = "it went wrong", code: str | None = None, **headers: str) -> Answer:
    return json_answer(status, {"error": {"message": message, "code": code}}, **headers)


def question_of(body: dict[str, Any]) -> str:
    """All text of the user's message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


class Server:
    """An HTTP server in a thread; `answer` gets each chat request, or returns None to drop the line."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = outer.handle(self.path, dict(self.headers), content)
                self.close_connection = True
                if answer is None:
                    return
                status, headers, body = answer
                whole = isinstance(body, bytes)
                length = {"Content-Length": str(len(body))} if whole else {}
                try:
                    self.send_response(status)
                    for name, value in {**length, **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    for part in [body] if whole else body:
                        self.wfile.write(part)
                except OSError:  # the client was killed
                    pass

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def handle(self, path: str, headers: dict[str, str], content: bytes) -> Answer | None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class FakeEndpoint(Server):
    """Answers as a function of the request and of how many there were before."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer | None] | None = None) -> None:
        super().__init__()
        self.answer = answer or (lambda body, number: completion('{"cue": "A red square."}'))
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self.released = threading.Event()
        """For answers that hang: the test releases them before it ends."""
        self._lock = threading.Lock()

    def handle(self, path: str, headers: dict[str, str], content: bytes) -> Answer | None:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(json.loads(content))
            self.headers.append(headers)
            self.raw.append(content)
        if path != "/v1/chat/completions":
            return failure(404)
        return self.answer(self.bodies[number], number)

    def __exit__(self, *error: object) -> None:
        self.released.set()
        super().__exit__(*error)


class CountingProxy(Server):
    """Passes requests on, and counts; holds back those after the first `gate` until `open` is set."""

    def __init__(self, target: Any, gate: int) -> None:
        super().__init__()
        self.target, self.gate = target, gate
        self.open = threading.Event()
        self.answered = self.refused = self.waiting = self.seen = 0
        self._lock = threading.Lock()

    def handle(self, path: str, headers: dict[str, str], content: bytes) -> Answer | None:
        with self._lock:
            self.seen += 1
            hold = self.seen > self.gate
            self.waiting += hold
        if hold:
            self.open.wait()
        connection = http.client.HTTPConnection("127.0.0.1", self.target.port, timeout=60)
        try:
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            with self._lock:
                self.refused += 1
            return failure(502, "nobody there")
        finally:
            connection.close()
        with self._lock:
            self.answered += response.status == 200
        return response.status, {"Content-Type": "application/json"}, body

    def __exit__(self, *error: object) -> None:
        self.open.set()
        super().__exit__(*error)


class TransformersServer:
    """`transformers serve` with a checkpoint, as a process of its own."""

    def __init__(self, model: str, log: Any) -> None:
        self.model, self.log = model, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        command = "from transformers.cli.transformers import main; main()"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", self.model, *options],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    def wait(self) -> None:
        wait_until(self._healthy, "the server to start", seconds=120)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _healthy(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
