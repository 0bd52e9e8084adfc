"""Five hundred steps with faults injected at random: flat memory, file handles and time per step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from launching import metrics
from report import add_row

STEPS = int(os.environ.get("VICUR_SOAK_STEPS", "500"))
SCRIPT = Path(__file__).with_name("endurance.py")


def test_five_hundred_steps_with_faults(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(STEPS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured = json.loads(output.splitlines()[-1])
    add_row("endurance", STEPS, measured)
    lines = metrics(tmp_path / "run")
    assert len(lines) == STEPS
    assert sum(line.get("skipped_updates", 0) for line in lines) == measured["faults"]["nan"] > 0
    (memory, later), (handles, more) = measured["mebibytes"], measured["handles"]
    assert later < 1.05 * memory and more <= handles + 2
