"""A one-page summary of a run, made only from the files in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vicur.evaluation.results import accuracy_of
from vicur.evaluation.statistics import compare_shared
from vicur.files import write_json, write_whole
from vicur.reporting.phases import time_by_phase
from vicur.reporting.runs import RecordedRun, read_columns
from vicur.reporting.series import ends, window_of
from vicur.settings.reading import read_json
from vicur.tables import markdown_table
from vicur.wording import printable, shortened

CURVES = {
    "loss": "loss",
    "gap_whole": "log-prob gap, nats per token",
    "rollout_accuracy": "rollout accuracy, %",
    "response_tokens": "response tokens",
}
"""Metrics that are summarised, with their titles."""
EXAMPLES = 5
GIB = 2**30


def write_run_summary(folder: Path) -> None:
    """Write summary.json and summary.md into a run's folder; nothing if it has no steps."""
    summary = summarise_run(folder)
    if summary["steps"] == 0:
        return
    write_json(folder / "summary.json", summary)
    write_whole(folder / "summary.md", lambda partial: partial.write_text(as_markdown(summary)))


def summarise_run(folder: Path) -> dict[str, Any]:
    """Summarise a run from the files of its folder.

    Returns:
        `status`, `steps`, `evaluation` (accuracies in percent before and after, with their difference; None
        without held-out problems), `curves` (first and last values), `examples`, `seconds` by phase, and
        `memory` in bytes.

    Raises:
        ValueError: it is not the folder of a run.
    """
    run = RecordedRun(folder, folder.name)
    times = time_by_phase(run)
    return {
        "folder": str(folder),
        "status": run.status["status"],
        "steps": len(run.metrics),
        "evaluation": _evaluation(run),
        "curves": _curves(run),
        "examples": _examples(run),
        "seconds": {"total": times["total"], **times["phases"]},
        "memory": _memory(folder),
    }


def _evaluation(run: RecordedRun) -> dict[str, Any] | None:
    """Accuracies on the held-out problems that could be graded, and their paired difference."""
    before, after = run.graded_before, run.graded_after
    if not before:
        return None
    summary: dict[str, Any] = {
        "problems": len(before),
        "before": asdict(accuracy_of(list(before.values()))),
    }
    if after:
        summary["after"] = asdict(accuracy_of(list(after.values())))
        difference = compare_shared(after, before)
        if difference is not None:
            summary["difference"] = asdict(difference.points)
    return summary


def _curves(run: RecordedRun) -> dict[str, dict[str, Any]]:
    curves, window = {}, window_of(run.metrics)
    for name in CURVES:
        _, values = run.series(name)
        if values:
            first, last = ends(values, window)
            curves[name] = {"first": first, "last": last, "steps": window}
    return curves


def _examples(run: RecordedRun) -> list[dict[str, Any]]:
    """The last responses to the first held-out problems, or else to the last step's problems."""
    columns = ["step", "sample", "question", "response", "answer", "correct"]
    files = run.evaluation_files
    rows = read_columns(files[-1], columns) if len(files) > 1 else []
    source = f"held-out problems after step {int(files[-1].stem.removeprefix('step-'))}" if rows else ""
    if not rows:
        all_rows = read_columns(run.rollout_files[-1], columns) if run.rollout_files else []
        rows = [row for row in all_rows if row["step"] == all_rows[-1]["step"]]
        source = f"training problems of step {rows[0]['step']}" if rows else ""
    first = list({row["sample"]: row for row in reversed(rows)}.values())[::-1][:EXAMPLES]
    keys = ("sample", "question", "response", "answer", "correct")
    return [{"source": source, **{key: row[key] for key in keys}} for row in first]


def _memory(folder: Path) -> dict[str, Any] | None:
    """Estimated and measured peak; the relative error is positive where the estimate was too high."""
    path = folder / "memory.json"
    if not path.is_file():
        return None
    memory = read_json(path)
    estimate, peak = memory.get("estimate"), memory.get("peak")
    error = None if not estimate or not peak else estimate / peak - 1
    return {"device": memory["device"], "estimate": estimate, "peak": peak, "relative_error": error}


def print_run_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the summary as tables and lines."""
    table = Table("", "first", "last", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title, first, last in _course(summary):
        table.add_row(title, first, last)
    console.print(table)
    for example in summary["examples"]:
        colour = {True: "green", False: "red", None: "yellow"}[example["correct"]]
        console.print(f"[bold]{escape(_short(example['question']))}[/]", highlight=False, soft_wrap=True)
        verdict = f"gold {example['answer']}, {_verdict(example['correct'])}"
        response = escape(_short(example["response"]))
        console.print(f"  {response} [{colour}]({escape(verdict)})[/]", highlight=False, soft_wrap=True)
    for line in _footer(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page of Markdown."""
    title = printable(summary["folder"])
    lines = [f"# {title}", "", f"{summary['status']} after {summary['steps']} steps.", ""]
    lines.append(markdown_table(["", "first", "last"], _course(summary)))
    if summary["examples"]:
        lines += ["", f"## Examples: {summary['examples'][0]['source']}", ""]
        rows = [
            [_short(e["question"]), _short(e["response"]), e["answer"] or "", _verdict(e["correct"])]
            for e in summary["examples"]
        ]
        lines.append(markdown_table(["question", "response", "gold", "verdict"], rows))
    return "\n".join([*lines, "", *_footer(summary)]) + "\n"


def _course(summary: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Rows of (title, first value, last value)."""
    held_out = summary["evaluation"]
    if held_out is not None:
        after = _shown(held_out["after"]) if "after" in held_out else ""
        yield f"held-out accuracy, % (n={held_out['problems']})", _shown(held_out["before"]), after
        if "difference" in held_out:
            yield "  difference, points", "", _shown(held_out["difference"], "+.1f")
    for name, curve in summary["curves"].items():
        form = ".1f" if name in ("rollout_accuracy", "response_tokens") else ".3f"
        yield CURVES[name], format(curve["first"], form), format(curve["last"], form)


def _footer(summary: dict[str, Any]) -> Iterable[str]:
    """Lines on the averaging of the curves, on time, and on memory."""
    window = max((curve["steps"] for curve in summary["curves"].values()), default=1)
    if window > 1:
        yield f"First and last: means over {window} steps."
    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items() if name != "total")
    yield f"Time: {_duration(seconds['total'])} ({parts})."
    memory = summary["memory"]
    if memory is not None and memory["peak"]:
        line = f"Peak memory ({memory['device']}): {memory['peak'] / GIB:.2f} GiB"
        if memory["relative_error"] is not None:
            line += f"; estimate {memory['estimate'] / GIB:.2f} GiB ({100 * memory['relative_error']:+.0f} %)"
        yield f"{line}."


def _shown(estimate: dict[str, float], form: str = ".1f") -> str:
    value, low, high = (format(estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    if minutes < 1:
        return f"{rest:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s"


def _verdict(correct: bool | None) -> str:
    return {True: "right", False: "wrong", None: "not graded"}[correct]


def _short(text: str) -> str:
    return shortened(" ".join(text.split()), 300)
