"""Several evaluations of the same problems: accuracies, paired differences, and accuracy by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vicur.data.sources import FileSource
from vicur.evaluation.controls import Control
from vicur.evaluation.results import Evaluation, accuracy_of
from vicur.evaluation.statistics import Estimate, compare_shared
from vicur.wording import in_order

WITHOUT = "(none)"
"""Category of the problems whose column is empty."""


@dataclass(frozen=True)
class Arm:
    """One model, perhaps under a control.

    Attributes:
        name: name in tables.
        model: the model.
        control: the control; None for the problems as they are.
        evaluation: its responses.
        settings: everything that they depend on.
    """

    name: str
    model: str
    control: Control | None
    evaluation: Evaluation
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Category:
    """The problems with one value in a column.

    Attributes:
        column: the column.
        value: its value, as text.
        problems: number of graded problems.
        accuracy: accuracy in percent; None if no problem was graded.
    """

    column: str
    value: str
    problems: int
    accuracy: Estimate | None


def categories_of(source: FileSource, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """The value of each problem in some columns, by column and by the problem's id.

    Raises:
        ValueError: the data has no such column.
    """
    if not columns:
        return {}
    ids = [str(problem) for problem in source.column("id")]
    return {column: dict(zip(ids, map(_label, source.values(column)), strict=True)) for column in columns}


def _label(value: Any) -> str:
    """The value of a column as a category."""
    return WITHOUT if value is None or value == "" else str(value)


def by_category(evaluation: Evaluation, categories: Mapping[str, Mapping[str, str]]) -> list[Category]:
    """Accuracy by category; the counts of a column's categories sum to the number of graded problems.

    Args:
        evaluation: the responses.
        categories: as `categories_of` returns them.
    """
    results = []
    for column, values in categories.items():
        groups: dict[str, list[list[bool]]] = {}
        for problem, correct in evaluation.by_problem.items():
            groups.setdefault(values[problem], []).append(correct)
        results += [
            Category(column, value, len(groups[value]), accuracy_of(groups[value]))
            for value in sorted(groups, key=in_order)
        ]
    return results


def reference_of(arm: Arm, arms: Sequence[Arm], baseline: str) -> Arm | None:
    """What an arm is compared with: a control with the model's own problems, a model with the baseline; None
    for the baseline itself.

    Args:
        arm: the arm.
        arms: all arms.
        baseline: name of the model that the others are compared with.
    """
    if arm.control is not None:
        return next(other for other in arms if other.model == arm.model and other.control is None)
    return None if arm.name == baseline else next(other for other in arms if other.name == baseline)


def summarise(
    arms: Sequence[Arm], baseline: str, categories: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Everything about the arms, JSON-serialisable: accuracies in percent, differences in points.

    Args:
        arms: the arms.
        baseline: name of the model that the others are compared with.
        categories: as `categories_of` returns them.
    """
    return [_summary(arm, reference_of(arm, arms, baseline), categories) for arm in arms]


def _summary(arm: Arm, reference: Arm | None, categories: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    evaluation = arm.evaluation
    summary: dict[str, Any] = {
        "name": arm.name,
        "model": arm.model,
        "control": arm.control,
        **evaluation.numbers(),
        "accuracy": asdict(evaluation.accuracy) if evaluation.by_problem else None,
        "right_counts": evaluation.right_counts,
        "excluded": dict(evaluation.excluded),
        "by": [asdict(category) for category in by_category(evaluation, categories)],
        "settings": dict(arm.settings),
    }
    if reference is not None:
        difference = compare_shared(evaluation.by_problem, reference.evaluation.by_problem)
        if difference is not None:
            summary["difference"] = {"from": reference.name, **asdict(difference)}
    return summary
