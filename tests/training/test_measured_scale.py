"""The norms and the angle of a measured scale are those of the whole gradient, on any number of processes."""

from __future__ import annotations

import pytest
from launching import job, launch, metrics, write_problems

NUMBERS = ("gradient_standard", "gradient_steering", "gradient_angle", "gradient_scale")
MEASURED = "objective.visual_steering.scale=measured"


def test_two_processes_record_the_numbers_of_one(tmp_path):
    data = write_problems(tmp_path, 16)

    def measured(sharding, processes):
        folder = tmp_path / f"{sharding}-{processes}"
        settings = (MEASURED, f"training.sharding={sharding}")
        return job("vgs", folder, data, *settings, steps=2, exact=True)

    launch(1, [measured("full", 1)], tmp_path)
    launch(2, [measured("full", 2), measured("replicated", 2)], tmp_path)
    alone = metrics(tmp_path / "full-1")
    assert all(0 < line["gradient_angle"] < 180 and line["gradient_steering"] > 0 for line in alone)
    for sharding in ("full", "replicated"):
        for line, reference in zip(metrics(tmp_path / f"{sharding}-2"), alone, strict=True):
            for name in NUMBERS:
                assert line[name] == pytest.approx(reference[name], rel=1e-7), (sharding, name)
