"""Printed results of evaluations: lines on one model, and tables on several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vicur.tables import markdown_table, plain_table
from vicur.wording import counted, in_order

if TYPE_CHECKING:
    from vicur.evaluation.results import Evaluation
    from vicur.evaluation.settings import EvaluationSettings

COLUMNS = ("accuracy, %", "difference", "won", "lost", "p", "tokens", "cut off")
"""Columns of the comparison, after the name."""


def arm_lines(evaluation: Evaluation, settings: EvaluationSettings) -> list[str]:
    """The accuracy, and everything that a reader must know to trust it."""
    count, leakage = len(evaluation.answers), evaluation.leakage
    name = "accuracy" if evaluation.samples == 1 else f"avg@{evaluation.samples}"
    graded = (
        f"{name} {evaluation.accuracy} % on {counted(len(evaluation.by_problem), 'problem')}"
        if evaluation.by_problem
        else "no accuracy"
    )
    lines = [
        f'{graded}; the word "hint" occurs in {leakage.samples} of {counted(count, "response")}',
    ]
    if evaluation.samples > 1:
        counts = ", ".join(
            f"{right} of {evaluation.samples}: {n}" for right, n in enumerate(evaluation.right_counts)
        )
        lines.append(f"Problems by number of right responses: {counts}.")
    if evaluation.truncated:
        lines.append(
            f"Warning: {evaluation.truncated} of {count} responses were cut off at "
            f"{settings.sampling.max_new_tokens} tokens. Raise --max-new-tokens."
        )
    if evaluation.unextracted:
        lenient = "" if settings.rewards.lenient else " rewards.lenient=true accepts unmarked answers too."
        lines.append(
            f"Warning: no answer was found in {evaluation.unextracted} of {count} responses; they count as "
            f"wrong.{lenient}"
        )
    lines += [
        f"Excluded from the accuracy: {number} ({kind})." for kind, number in evaluation.excluded.items()
    ]
    return lines


def comparison_tables(arms: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table of several models and controls, and a table for each column of categories.

    Args:
        arms: as `vicur.evaluation.comparison.summarise` returns them.
    """
    if len(arms) > 1:
        yield plain_table("", ["", *COLUMNS], [[arm["name"], *_cells(arm)] for arm in arms])
    for column in _categorised(arms):
        yield plain_table(
            "", [column, "problems", *(arm["name"] for arm in arms)], list(_by_rows(arms, column))
        )


def markdown_of(arms: Sequence[Mapping[str, Any]]) -> str:
    """The same tables in Markdown, the comparison also for a single model."""
    blocks = [markdown_table(["", *COLUMNS], [[arm["name"], *_cells(arm)] for arm in arms])]
    for column in _categorised(arms):
        blocks.append(
            markdown_table([column, "problems", *(arm["name"] for arm in arms)], list(_by_rows(arms, column)))
        )
    references = [f"{arm['name']} minus {arm['difference']['from']}" for arm in arms if "difference" in arm]
    if references:
        blocks.append(
            f"Differences in points on the same problems: {'; '.join(references)}. Won and lost: problems "
            "with a higher and a lower share of right responses; p: exact sign test."
        )
    return "\n\n".join(blocks) + "\n"


def _categorised(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of the data whose values are categories."""
    return list(dict.fromkeys(category["column"] for arm in arms for category in arm["by"]))


def _cells(arm: Mapping[str, Any]) -> list[str]:
    accuracy, difference = arm["accuracy"], arm.get("difference")
    tokens = arm["response_tokens"]
    cells = ["-"] if accuracy is None else [f"{accuracy['value']:.1f} {_interval(accuracy)}"]
    if difference is None:
        cells += [""] * 4
    else:
        points = difference["points"]
        cells.append(f"{points['value']:+.1f} {_interval(points, '+.1f')}")
        cells += [str(difference["won"]), str(difference["lost"]), f"{difference['p']:.2g}"]
    cut = arm["truncated"]
    return [
        *cells,
        "-" if tokens is None else f"{tokens:.0f}",
        "-" if cut is None else f"{100 * cut:.0f} %",
    ]


def _by_rows(arms: Sequence[Mapping[str, Any]], column: str) -> Iterator[list[str]]:
    """Rows of a table of categories: value, number of problems of the first model, accuracies."""
    by_arm = [{c["value"]: c for c in arm["by"] if c["column"] == column} for arm in arms]
    for value in sorted({value for categories in by_arm for value in categories}, key=in_order):
        counts = [categories[value]["problems"] for categories in by_arm if value in categories]
        yield [value, str(max(counts)), *(_accuracy(categories.get(value)) for categories in by_arm)]
    totals = [sum(category["problems"] for category in categories.values()) for categories in by_arm]
    whole = (arm["accuracy"] for arm in arms)
    yield ["all", str(max(totals, default=0)), *(_accuracy({"accuracy": accuracy}) for accuracy in whole)]


def _accuracy(category: Mapping[str, Any] | None) -> str:
    if category is None or category["accuracy"] is None:
        return "-"
    return f"{category['accuracy']['value']:.1f} {_interval(category['accuracy'])}"


def _interval(estimate: Mapping[str, float], form: str = ".1f") -> str:
    return f"[{estimate['low']:{form}}, {estimate['high']:{form}}]"
