"""The problems that a run gets wrong most and right most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vicur.reporting.runs import RecordedRun, read_columns

SHOWN = 5
"""Number of problems of each kind."""


def hardest_problems(run: RecordedRun) -> dict[str, list[dict[str, Any]]]:
    """Held-out problems by what training changed, or training problems by accuracy without held-out ones.

    Returns:
        "lost" and "won": right before training and wrong after it, and the reverse; without two evaluations
        "worst" and "best": training problems with the lowest and highest share of right responses. Each with
        id, question, answer, response and share right.
    """
    files = run.evaluation_files
    if len(files) > 1:
        before, after = (_by_problem(read_columns(path, _COLUMNS)) for path in (files[0], files[-1]))
        changed = [
            problem | {"change": problem["share"] - before[key]["share"]}
            for key, problem in after.items()
            if key in before
        ]
        lost = sorted((p for p in changed if p["change"] < 0), key=lambda p: p["change"])
        won = sorted((p for p in changed if p["change"] > 0), key=lambda p: -p["change"])
        return {"lost": lost[:SHOWN], "won": won[:SHOWN]}
    if not run.rollout_files:
        return {}
    ordered = sorted(
        _by_problem(read_columns(run.rollout_files[-1], _COLUMNS)).values(), key=lambda p: p["share"]
    )
    return {"worst": ordered[:SHOWN], "best": ordered[::-1][:SHOWN]}


_COLUMNS = ("sample", "question", "answer", "response", "correct")


def _by_problem(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The graded problems with their last response and the share of right responses."""
    problems: dict[str, dict[str, Any]] = {}
    right: dict[str, list[bool]] = {}
    for row in rows:
        if row["correct"] is not None:
            problems[row["sample"]] = {key: row[key] for key in _COLUMNS}
            right.setdefault(row["sample"], []).append(row["correct"])
    return {key: problem | {"share": sum(right[key]) / len(right[key])} for key, problem in problems.items()}
