"""A one-page summary of a run, made only from the files in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vicur.evaluation.results import accuracy_of
from vicur.evaluation.statistics import Estimate, compare
from vicur.files import write_json, write_whole
from vicur.reporting.runs import RecordedRun, read_columns
from vicur.settings.reading import read_json
from vicur.wording import printable

CURVES = {
    "loss": "loss",
    "gap_whole": "log-prob gap, nats per token",
    "rollout_accuracy": "rollout accuracy, %",
    "response_tokens": "response tokens",
}
"""Metrics that are summarised, with their titles."""
WINDOW = 10
"""A curve's first and last values are means over a tenth of the steps, so no single batch decides them."""
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
    status, lines = run.status, run.metrics
    return {
        "folder": str(folder),
        "status": status["status"],
        "steps": len(lines),
        "evaluation": _evaluation(run),
        "curves": _curves(lines),
        "examples": _examples(run),
        "seconds": _seconds(lines, status["seconds"]),
        "memory": _memory(folder),
    }


def _evaluation(run: RecordedRun) -> dict[str, Any] | None:
    """Accuracies on the held-out problems that could be graded, and their paired difference."""
    files = run.evaluation_files
    if not files or not (before := _graded(files[0])):
        return None
    after = _graded(files[-1]) if len(files) > 1 else {}
    summary: dict[str, Any] = {
        "problems": len(before),
        "before": _interval(accuracy_of(list(before.values()))),
    }
    if after:
        summary["after"] = _interval(accuracy_of(list(after.values())))
        both = [problem for problem in after if problem in before]
        if both:
            pairs = ([each[problem] for problem in both] for each in (after, before))
            summary["difference"] = _interval(compare(*pairs).points)
    return summary


def _graded(file: Path) -> dict[str, list[bool]]:
    """Whether each response that could be graded is right, by problem."""
    problems: dict[str, list[bool]] = {}
    for row in read_columns(file, ["sample", "correct"]):
        if row["correct"] is not None:
            problems.setdefault(row["sample"], []).append(row["correct"])
    return problems


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _curves(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    window = max(1, len(lines) // WINDOW)
    curves = {}
    for name in CURVES:
        values = [line[name] for line in lines if line.get(name) is not None]  # null: not finite
        if values:
            curves[name] = {"first": _mean(values[:window]), "last": _mean(values[-window:]), "steps": window}
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


def _seconds(lines: Sequence[dict[str, Any]], outside: dict[str, float]) -> dict[str, float]:
    """The whole run, the phases of its steps, and what came before and after them."""
    phases: dict[str, float] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith("seconds_"):
                phase = name.removeprefix("seconds_")
                phases[phase] = phases.get(phase, 0.0) + value
    return {"total": outside["total"], **phases, **{k: v for k, v in outside.items() if k != "total"}}


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
    lines += ["| | first | last |", "|---|---|---|"]
    lines += [f"| {title} | {first} | {last} |" for title, first, last in _course(summary)]
    if summary["examples"]:
        lines += ["", f"## Examples: {summary['examples'][0]['source']}", ""]
        lines += ["| question | response | gold | verdict |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(e['question'])} | {_cell(e['response'])} | {_cell(e['answer'])} | "
            f"{_verdict(e['correct'])} |"
            for e in summary["examples"]
        ]
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


def _short(text: str, length: int = 300) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= length else f"{joined[: length - 2]} …"


def _cell(text: str | None) -> str:
    """Text for a cell of a Markdown table."""
    return "" if text is None else printable(_short(text)).replace("\\", "\\\\").replace("|", "\\|")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
