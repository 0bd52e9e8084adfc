"""Against a real server: a killed build goes on, and so does one whose server went away."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pyarrow.parquet as pq
import pytest
from cue_endpoints import CountingProxy, wait_until

from vicur.cuebench.generate import write_parquet
from vicur.cues.build import build_cues
from vicur.cues.requests import Asking
from vicur.cues.settings import BuildConfig
from vicur.endpoints.config import EndpointConfig

PROBLEMS = 24
SHORT = """\
name: short
version: 1
system: Look.
user: "{question}"
"""


@pytest.fixture
def settings(tmp_path, served, monkeypatch):
    """Of a build in which the tiny student answers as it has learned to, in a few tokens."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data, prompt = tmp_path / "data.parquet", tmp_path / "short.yaml"
    write_parquet("segments", "test", PROBLEMS, data)
    prompt.write_text(SHORT)

    def made(url, **changes):
        chosen = {
            "data": {"train": str(data)},
            "output": str(tmp_path / "out.parquet"),
            "model": served.model,
            "prompt": str(prompt),
            "new_column": "seen",
            "backoff_seconds": 0.05,
            "concurrency": 2,
            "asking": {"max_tokens": 24, "temperature": 0.0},
        }
        return chosen | {"endpoint": {"base_url": url}} | changes

    return made


def config_of(settings):
    parts = {"endpoint": EndpointConfig(**settings["endpoint"]), "asking": Asking(**settings["asking"])}
    return BuildConfig(**settings | parts)


def records(store):
    if not store.is_file():
        return []
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_schema")]
        rows = database.execute("select record from replies").fetchall() if "replies" in tables else []
    found = [json.loads(text) for (text,) in rows]
    return [record for record in found if record["kind"] != "file"]


def check_each_once(config):
    found = records(config.store_path)
    assert sorted(record["kind"] for record in found) == ["cue"] * PROBLEMS
    assert len({record["key"] for record in found}) == PROBLEMS
    ids = [row["id"] for row in pq.read_table(config.data.train, columns=["id"]).to_pylist()]
    assert sorted(record["id"] for record in found) == sorted(ids)
    cue_of = {record["id"]: record["cue"] for record in found}
    rows = pq.read_table(config.output).to_pylist()
    assert [row["id"] for row in rows] == ids
    assert all(row["seen"] == cue_of[row["id"]] for row in rows)


def test_a_killed_build_resumes_and_requests_nothing_twice(served, settings):
    with CountingProxy(served, gate=8) as proxy:
        chosen = settings(proxy.url)
        config = config_of(chosen)
        code = (
            "import json, sys\n"
            "from vicur.cues.build import build_cues\n"
            "from vicur.cues.settings import BuildConfig\n"
            "from vicur.endpoints.config import EndpointConfig\n"
            "from vicur.cues.requests import Asking\n"
            "s = json.loads(sys.argv[1])\n"
            "s |= {'endpoint': EndpointConfig(**s['endpoint']), 'asking': Asking(**s['asking'])}\n"
            "build_cues(BuildConfig(**s))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, json.dumps(chosen)], env=os.environ)
        try:
            ready = lambda: len(records(config.store_path)) == 8 and proxy.waiting == 2  # noqa: E731
            wait_until(ready, "the build to be in its middle")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (config.store_path.with_name("out.parquet")).exists()
        proxy.open.set()
        wait_until(lambda: proxy.answered == 10, "what the killed build had asked")
        summary = build_cues(config)
        assert (summary.kept, summary.asked, summary.requests) == (8, PROBLEMS - 8, PROBLEMS - 8)
        # The two that were in flight are all that was answered twice: nobody was there to hear it.
        assert proxy.answered == PROBLEMS + 2
    check_each_once(config)


def test_a_server_that_goes_away_and_comes_back_loses_nothing(served, settings):
    with CountingProxy(served, gate=6) as proxy:
        config = config_of(settings(proxy.url))
        summaries = []
        build = threading.Thread(target=lambda: summaries.append(build_cues(config)))
        build.start()
        try:
            wait_until(lambda: proxy.waiting == 2, "the build to be in its middle")
            served.stop()
            proxy.open.set()
            wait_until(lambda: proxy.refused >= 2, "the build to notice")
        finally:
            served.stop()
            served.start()
            served.wait()
            proxy.open.set()
            build.join()
        (summary,) = summaries
        assert summary.stopped is None and not summary.failed
        assert proxy.answered == PROBLEMS == summary.asked
    check_each_once(config)


def test_the_tiny_student_says_what_it_sees(served, settings):
    config = config_of(settings(served.url, problems=2))
    summary = build_cues(config)
    assert summary.prompt_tokens > 0 and summary.completion_tokens > 0
    assert all(row["seen"].startswith("I read ") for row in pq.read_table(config.output).to_pylist())
