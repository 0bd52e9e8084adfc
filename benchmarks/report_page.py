"""How long a report with many responses takes to write, and to open in Chromium.

    python benchmarks/report_page.py

Prints seconds for two runs with 250 responses each, 300 tokens per response and ten numbers per token:
writing the page (median of 3), and from navigation to the first rendered response (median of 5). Opening
needs playwright and Chromium (CHROMIUM is its path); without them it is left out.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reporting"))

from recorded import metrics, response, save_tokenizer, write_run

from vicur.reporting.report import Report
from vicur.reporting.responses import MEASURES
from vicur.reporting.runs import RecordedRun

PROBLEMS, TOKENS = 125, 300


def planted_run(folder: Path, name: str) -> RecordedRun:
    """A run with a response to each problem before and after training."""
    numbers = random.Random(name)
    observed: dict[int, list[dict[str, Any]]] = {}
    for step in (0, 500):
        observed[step] = []
        for problem in range(PROBLEMS):
            row = response(step, f"problem {problem}", "reasoning " * (TOKENS // 10), problem % 2 == 0)
            row |= {measure: [numbers.gauss(0, 1) for _ in row["ids"]] for measure in MEASURES}
            observed[step].append(row)
    run: RecordedRun = write_run(folder / name, [metrics(step) for step in range(1, 501)], observed=observed)
    save_tokenizer(run.folder, ["reasoning "])
    return run


def seconds_to_open(page: Path) -> float | None:
    """Median seconds until the first response is on the screen; None without a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(chromium).exists():
        return None
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        measured = []
        for _ in range(5):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            started = time.perf_counter()
            tab.goto(f"file://{page}")
            tab.locator(".card").first.wait_for()
            measured.append(time.perf_counter() - started)
            tab.close()
        browser.close()
    return statistics.median(measured)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [planted_run(Path(folder), name) for name in ("first", "second")]
        page, written = Path(folder) / "report.html", []
        for _ in range(3):
            started = time.perf_counter()
            Report(runs, responses=500).write(page)
            written.append(time.perf_counter() - started)
        count = 4 * PROBLEMS
        print(f"{count} responses of {TOKENS} tokens, {page.stat().st_size / 2**20:.1f} MiB")
        print(f"written in {statistics.median(written):.1f} s")
        opened = seconds_to_open(page)
        print("not opened: no browser" if opened is None else f"opened in {opened:.2f} s")


if __name__ == "__main__":
    main()
