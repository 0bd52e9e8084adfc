"""Small data sets for cues, and a real server."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cue_endpoints import FakeEndpoint, TransformersServer
from cue_problems import problem

from vicur.cues.settings import BuildConfig
from vicur.endpoints.config import EndpointConfig
from vicur.models.checkpoints import resolve_checkpoint


@pytest.fixture
def data(tmp_path):
    """Six problems as parquet."""
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([problem(i) for i in range(6)]), path)
    return path


@pytest.fixture
def endpoint():
    with FakeEndpoint() as server:
        yield server


@pytest.fixture
def configure(data, tmp_path, endpoint, monkeypatch):
    """Settings for the fake endpoint, quick to try again."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def configured(**changes):
        settings = {
            "data": {"train": str(data)},
            "output": str(tmp_path / "out.parquet"),
            "model": "m",
            "endpoint": EndpointConfig(base_url=endpoint.url),
            "backoff_seconds": 0.0,
            "concurrency": 3,
        }
        return BuildConfig(**settings | changes)

    return configured


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """`transformers serve` with the tiny student."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    with (tmp_path_factory.mktemp("server") / "log.txt").open("wb") as log:
        server = TransformersServer(resolve_checkpoint("vicur:tiny-student"), log)
        server.start()
        try:
            server.wait()
            yield server
        finally:
            server.stop()
