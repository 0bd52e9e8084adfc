"""The examples stay short, and run."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
EXAMPLE = EXAMPLES / "one_file_opd.py"


def load(path=EXAMPLE):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_only_torch():
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 250
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "copy", "time", "torch"}


def test_its_loop_teaches():
    example = load()
    torch.manual_seed(0)
    base = example.pretrain(steps=300)
    teacher = example.accuracy(base, example.hinted)
    before = example.accuracy(base)
    torch.manual_seed(1)
    after = example.accuracy(example.distil(base, steps=60))
    assert teacher > 90
    assert after > before + 5


def test_training_from_python():
    path = EXAMPLES / "train_in_python.py"
    assert len(path.read_text().splitlines()) <= 50
    before, after = load(path).main(steps=1, test_problems=6)
    assert 0 <= before <= 100 and 0 <= after <= 100
