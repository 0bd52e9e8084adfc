"""The table of estimated memory: weights without values, sharded over imagined ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = """
import json
from random_models import Shape, wide_processor
from memory_table import Entry, check_contract, estimate, ViCuRQwen3VLForConditionalGeneration

check_contract(ViCuRQwen3VLForConditionalGeneration)
shapes = {"S": Shape(128, 3, 4, 2, 384, 64, 2, 128, 4, (0,), True, head_dim=32, vocabulary=1024)}
processor = wide_processor(1000)
entries = {
    "one": Entry("S", "self", 1),
    "eight": Entry("S", "self", 8),
    "replicated": Entry("S", "self", 8, ("training.sharding=replicated",)),
    "nodes": Entry("S", "self", 16, ("training.sharding=hybrid",)),
    "offloaded": Entry("S", "S", 1, ("training.offload=true", "teacher.offload=true")),
    "adapters": Entry("S", "self", 1, ("student.lora={rank: 2}",)),
}
print(json.dumps({name: estimate(entry, processor, shapes).parts for name, entry in entries.items()}))
"""


@pytest.fixture(scope="module")
def parts():
    """Parts of the estimates, from another process: a process can be in one job only."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


WEIGHTS, MOMENTS, TEACHER = "student's weights", "AdamW's moments", "teacher's weights"


def test_ranks_share_weights_states_and_teacher(parts):
    one, eight = parts["one"], parts["eight"]
    assert one[MOMENTS] == 2 * one[WEIGHTS]  # float32, and two moments of it
    assert one[WEIGHTS] > 2 * one[TEACHER]  # the teacher is in bfloat16, and has no cue recovery
    for part in (WEIGHTS, MOMENTS, TEACHER):
        assert eight[part] == pytest.approx(one[part] / 8, rel=0.02)


def test_copies_are_per_rank_or_per_node(parts):
    for part in (WEIGHTS, MOMENTS, TEACHER):
        assert parts["replicated"][part] == parts["one"][part]
        assert parts["nodes"][part] == parts["eight"][part]


def test_what_is_offloaded_or_frozen_takes_no_memory_of_the_gpu(parts):
    assert not {WEIGHTS, MOMENTS, TEACHER} & set(parts["offloaded"])
    assert parts["adapters"][MOMENTS] < parts["one"][MOMENTS] / 2 and TEACHER not in parts["adapters"]
