"""Collects what the long tests measured, for docs/reliability.md."""

from __future__ import annotations

import json
import os
from pathlib import Path


def add_row(table, *values):
    """Add a row to the file of VICUR_SOAK_REPORT, if that is set."""
    path = os.environ.get("VICUR_SOAK_REPORT")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps([table, *values]) + "\n")
