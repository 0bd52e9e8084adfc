"""Several processes over gloo give the numbers of one, for every published method."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from launching import METHODS, assert_same_numbers, job, launch

from vicur import distributed
from vicur.cuebench.generate import write_parquet
from vicur.models.devices import choose_device

UNEVEN = ("training.prompts_per_step=7", "optimizer.prompts_per_micro_batch=1", "scoring.prompts_per_batch=2")
CASES = {
    **{method: (method, "pictures", ()) for method in METHODS},
    # Shares of 4 and 3 problems, in forward passes of one: one rank has a pass more than the other.
    "uneven shares": ("vicur", "pictures", UNEVEN),
    # Ranks with and without an image in the same pass.
    "few images": ("vicur", "few pictures", UNEVEN),
    "few images, blind views": ("vgs", "few pictures", UNEVEN),
    "frozen vision": ("vicur", "few pictures", (*UNEVEN, "student.freeze_vision=true")),
    "adapters": ("vicur", "pictures", ("student.lora.rank=4",)),
    "moving average": ("vicur", "pictures", ("teacher.update=ema", "teacher.ema_decay=0.5")),
    "live teacher": ("vicur", "pictures", ("teacher.update=live",)),
    # Only one rank has a problem that cannot be graded.
    "some without answers": ("vicur", "some without answers", ()),
    # The last rank halves its batches while it samples.
    "short of memory": ("vicur", "pictures", ()),
    "larger teacher": ("vicur", "pictures", ("teacher.model=vicur:tiny-teacher",)),
}
FAMILY = (
    "objective.sampled_token=null",
    'objective.target.looks={"hinted": {"segment": "rest"}, "own": {"of": "own", "segment": "digits"}}',
    *("objective.target.combine=each", 'objective.target.segments={"digits": "[0-9]"}'),
    *("objective.target.gate.evidence={}", "objective.target.gate.endorsement={}"),
    *("teachers.own.update=ema", "teachers.own.ema_decay=0.5", "teachers.own.privilege=cue"),
    *("teacher.privilege=verdict + crop", "student.view=augmented(0.3)", "student.recovery.sink=question"),
)
"""Two teachers, one in hindsight, segments, gates, a view of the student, and a sink at the question."""
CASES["family"] = ("vicur", "pictures", FAMILY)
SHARDED = [
    *((case, "full") for case in CASES),
    *((method, "replicated") for method in METHODS),
    ("vicur", "hybrid"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pictures.parquet"
    write_parquet("segments", "train", 24, path)
    table = pq.read_table(path)
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        if number % 5:
            row["images"] = []
            row["problem"] = row["problem"].replace("<image>", "")
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path.with_name("few pictures.parquet"))
    answers = [None if number % 8 == 0 else row["answer"] for number, row in enumerate(table.to_pylist())]
    without = table.set_column(table.column_names.index("answer"), "answer", [answers])
    pq.write_table(without, path.with_name("some without answers.parquet"))
    return path.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Every case in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")

    def jobs(names, suffix, *more):
        for name, sharding in names:
            method, table, overrides = CASES[name]
            settings = (*overrides, *more, f"training.sharding={sharding}")
            special = {"short": 2} if name == "short of memory" else {}
            output = folder / f"{name}{suffix}-{sharding}"
            yield job(method, output, data / f"{table}.parquet", *settings, exact=True, **special)

    launch(1, list(jobs([(case, "full") for case in CASES], "-1")), folder)
    launch(2, list(jobs(SHARDED, "-2")), folder)
    return folder


@pytest.mark.parametrize("case, sharding", SHARDED)
def test_two_processes_give_the_numbers_of_one(runs, case, sharding):
    assert_same_numbers(runs / f"{case}-2-{sharding}", runs / f"{case}-1-full", 1e-9)


def test_only_errors_of_collectives_are_of_the_network():
    """A user's error may be about a connection, too."""
    collective = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:40140")
    wrapped = OSError("Checkpoint step-000002 cannot be written")
    wrapped.__cause__ = collective
    for error in (collective, wrapped, torch.distributed.DistNetworkError("closed")):
        assert distributed._is_of_the_network(error)
    for error in (
        ValueError("Connection refused by peer"),
        ConnectionError("closed"),
        RuntimeError("peer_12"),
    ):
        assert not distributed._is_of_the_network(error)


@pytest.mark.parametrize("has_joined", [False, True])
def test_a_process_of_a_job_ends_before_python_does(has_joined):
    """Threads are waited for and files written; what Python would do at its very end is left out."""
    script = f"""
import atexit, os, threading
from vicur import distributed

class AtTheEnd:
    def __del__(self, end=os._exit):
        end(7)

kept = AtTheEnd()
if {has_joined}:
    distributed.background_group()
done = threading.Event()
threading.Thread(target=lambda: (done.wait(), print("thread"))).start()
atexit.register(print, "atexit")
print("end")
done.set()
distributed.exit_if_joined(3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == (3 if has_joined else 7)
    assert sorted(done.stdout.split()) == ["atexit", "end", "thread"]


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="4 processes were started on this machine, but torch finds 2 GPU"):
        choose_device("auto", 0)
    with pytest.raises(ValueError, match="would give 4 processes the same GPU"):
        choose_device("cuda:0", 0)


@pytest.mark.parametrize("count", range(9))
def test_shares_are_contiguous_and_nearly_equal(monkeypatch, count):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    shares = [distributed.share(count, of=rank) for rank in range(3)]
    items = [list(range(count))[share] for share in shares]
    assert [item for part in items for item in part] == list(range(count))
    assert max(map(len, items)) - min(map(len, items)) <= 1
