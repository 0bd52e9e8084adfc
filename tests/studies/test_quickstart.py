"""The quickstart from one end to the other, two updates of each method."""

from __future__ import annotations

import json
import math

import numpy as np
from PIL import Image

from vicur.cli.main import main
from vicur.studies.study import load_study

METHODS = load_study("quickstart").trained


def check(summary, seeds):
    assert summary["seeds"] == seeds
    assert {*METHODS} | {"base", "base_with_cue", "teacher"} == set(summary["methods"])
    for method in summary["methods"].values():
        for domain in ("in_domain", "out_of_domain"):
            found = method[domain]
            assert set(found) == {"accuracy", "low", "high"}
            assert found["low"] <= found["accuracy"] <= found["high"]
            assert 0 <= found["accuracy"] <= 100
        assert set(method["hint_leakage"]) == {"samples", "occurrences"}
        assert method["seconds"] > 0
    for difference in summary["differences"]:
        pair = (difference["ours"], difference["theirs"])
        accuracy = [summary["methods"][m]["in_domain"]["accuracy"] for m in pair]
        assert math.isclose(difference["in_domain"]["value"], accuracy[0] - accuracy[1], abs_tol=1e-9)


def test_quickstart(tmp_path, capsys):
    """With two seeds; the test of `vicur study` has one."""
    out, seeds = tmp_path / "out", 2
    arguments = ["quickstart", "--output", str(out), "--seeds", str(seeds)]
    assert main([*arguments, "--steps", "1", "--test-problems", "12"]) == 0
    table = capsys.readouterr().out
    assert "OPSD cue+recov." in table and "OPSD cue minus OPSD answer" in table
    check(json.loads((out / "summary.json").read_text()), seeds)
    picture = Image.open(out / "showcase.png")
    assert picture.width > 800 and len(np.unique(np.asarray(picture))) > 50
    for method in METHODS:
        folder = out / f"seed-{seeds - 1}" / method
        assert json.loads((folder / "status.json").read_text())["status"] == "finished"
        assert (folder / "checkpoints" / "final" / "model.safetensors").exists()
    assert main([*arguments, "--steps", "1", "--test-problems", "13"]) == 1
    assert "holds 12 problems" in capsys.readouterr().err
