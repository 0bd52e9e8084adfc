"""The results of sweeps: held-out accuracy after training, by the value of a setting (VGS figures 5, 8 and
10), as a table, a figure and Markdown; and several finished sweeps in one figure.

`vicur sweep` writes sweep.json, from which all of this can be made again:

    keys       the settings that were swept; the values of the first are the x axis
    points     for each combination its `settings`, `accuracy` and `categories`, and its `runs`
    baseline   the same for the recipe that the others are compared with; null without one
    before     accuracy before training; null if the runs do not agree on it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from vicur.evaluation.results import accuracy_of
from vicur.evaluation.statistics import Estimate, mean_interval
from vicur.paths import expand, names_of
from vicur.reporting.curves import finish
from vicur.reporting.figures import (
    MUTED,
    SERIES,
    draw_band,
    draw_series,
    legend,
    new_figure,
    plain_text,
    series_style,
)
from vicur.reporting.finding import Finding, FindingOutput
from vicur.reporting.runs import RecordedRun, is_number, read_columns
from vicur.settings.reading import read_json
from vicur.settings.section import PathText, Text, section
from vicur.tables import markdown_table, plain_table
from vicur.wording import in_order, printable

SWEEP = "sweep"
"""Name of the analysis, and of its files."""
ALL = "all problems"
WIDE = 30
"""Ratio of the largest to the smallest value from which the x axis is logarithmic."""


def measured(folders: Sequence[Path], categories: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The held-out accuracy of runs that differ only by their seeds, after their last step.

    The interval of one run is over problems, that of several over seeds.

    Args:
        folders: folders of finished runs.
        categories: the category of each held-out problem by its id; None for no categories.

    Returns:
        `accuracy` in percent, the same by category, and each run.

    Raises:
        ValueError: a run has no accuracy after its last step.
    """
    each = [_measured_run(folder, categories) for folder in folders]
    names = dict.fromkeys(name for run in each for name in run["categories"])
    return {
        "accuracy": asdict(_together([run["accuracy"] for run in each])),
        "categories": {
            name: asdict(_together([run["categories"][name] for run in each if name in run["categories"]]))
            for name in sorted(names, key=in_order)
        },
        "runs": [
            {
                **run,
                "accuracy": asdict(run["accuracy"]),
                "categories": {name: asdict(estimate) for name, estimate in run["categories"].items()},
            }
            for run in each
        ],
    }


def _measured_run(folder: Path, categories: Mapping[str, str] | None) -> dict[str, Any]:
    run = RecordedRun(folder, folder.name)
    lines = [line for line in run.evaluations if is_number(line.get("accuracy"))]
    last = run.status["step"]
    if not lines or lines[-1]["step"] != last:
        raise ValueError(f"{folder} has no held-out accuracy after its last step.")
    final, first = lines[-1], lines[0]
    groups: dict[str, dict[str, list[bool]]] = {}
    if categories is not None:
        for row in read_columns(run.evaluation_files[-1], ("sample", "correct")):
            if row["correct"] is not None:
                problems = groups.setdefault(categories[row["sample"]], {})
                problems.setdefault(row["sample"], []).append(row["correct"])
    return {
        "folder": str(folder),
        "seed": run.recipe["training"]["seed"],
        "steps": last,
        "seconds": run.status["seconds"]["total"],
        "problems": final["problems"],
        "before": first["accuracy"] if first["step"] == 0 else None,
        "accuracy": Estimate(final["accuracy"], final["low"], final["high"]),
        "categories": {name: accuracy_of(list(group.values())) for name, group in groups.items()},
    }


def _together(estimates: Sequence[Estimate]) -> Estimate:
    """One run's estimate, or the mean of several with its interval over seeds."""
    return estimates[0] if len(estimates) == 1 else mean_interval([each.value for each in estimates])


def accuracy_before(points: Sequence[Mapping[str, Any]]) -> float | None:
    """The accuracy before training, if all runs began with the same; None otherwise."""
    values = {run["before"] for point in points for run in point["runs"]}
    return values.pop() if len(values) == 1 else None


# ------------------------------------------------------------------------------------- the finding


def sweep_finding(values: Mapping[str, Any]) -> Finding:
    """Table and figure of one sweep.

    Args:
        values: the content of sweep.json.
    """
    drawn = [DrawnSweep(str(values["recipe"]), values)]
    return Finding(SWEEP, dict(values), lambda: draw_sweeps(drawn), sweep_tables(values))


def sweep_tables(values: Mapping[str, Any], name: str = "") -> tuple[Table, ...]:
    """The accuracies of a sweep for the terminal, and those by category if there are any.

    Args:
        values: the content of sweep.json.
        name: name of the sweep, for the titles.
    """
    runs = len(values["points"][0]["runs"])
    over = "over problems" if runs == 1 else f"over {runs} seeds"
    start = f"{name}: held-out" if name else "Held-out"
    titles = (
        f"{start} accuracy after training, percent, with the 95 % interval {over}",
        f"The same by {values['by']}",
    )
    return tuple(
        plain_table(title, columns, rows)
        for title, (columns, rows) in zip(titles, _tables_of(values), strict=False)
    )


def _tables_of(values: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Columns and rows: a row for each point and the baseline; then, a row for each category."""
    keys, baseline = values["keys"], values["baseline"]
    points = [([str(point["settings"][key]) for key in keys], point) for point in values["points"]]
    if baseline is not None:
        points.append(([str(baseline["recipe"]), *[""] * (len(keys) - 1)], baseline))
    rows = []
    for label, point in points:
        accuracy = point["accuracy"]
        interval = f"[{accuracy['low']:.1f}, {accuracy['high']:.1f}]"
        rows.append([*label, f"{accuracy['value']:.1f} {interval}", str(point["runs"][0]["steps"])])
    tables = [([*short_keys(keys).values(), "accuracy", "steps"], rows)]
    if categories := _category_names([values]):
        names = [", ".join(filter(None, label)) for label, _ in points]
        cells = [[_cell(point, category) for _, point in points] for category in categories]
        by_category = [[name, *line] for name, line in zip(categories, cells, strict=True)]
        tables.append(([str(values["by"]), *names], by_category))
    return tables


def _cell(point: Mapping[str, Any], category: str) -> str:
    accuracy = point["categories"].get(category)
    return "-" if accuracy is None else f"{accuracy['value']:.1f}"


def sweep_markdown(values: Mapping[str, Any]) -> str:
    """The tables of a sweep in Markdown, and how it was made."""
    table = "\n\n".join(markdown_table(columns, rows) for columns, rows in _tables_of(values))
    seeds = ", ".join(map(str, values["seeds"]))
    over = "seeds" if len(values["seeds"]) > 1 else "problems"
    return (
        f"{table}\n\nRecipe {printable(str(values['recipe']))}, training.seed {seeds}: held-out accuracy "
        f"after training in percent, with its 95 % interval over {over}.\n"
    )


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each setting's name, or the whole name where two have the same last part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


# ----------------------------------------------------------------------------- several sweeps together


@section
class SweepsSettings(FindingOutput):
    """The settings of `vicur diagnose sweep`."""

    sweeps: list[PathText] = field(default_factory=list)
    """Folders of finished sweeps."""
    names: list[Text] = field(default_factory=list)
    """A name for each sweep in tables and figures; by default the end of its path."""
    left: list[Text] = field(default_factory=list)
    """Names of sweeps whose values are drawn on the left of 0, with a minus sign, as VGS figure 5 draws those
    of language steering."""


def sweeps_together(settings: SweepsSettings) -> Finding:
    """Several finished sweeps in one figure.

    Raises:
        ValueError: none is given, a folder is not that of a sweep, or `left` names none of them or one whose
            values are not numbers.
    """
    if not settings.sweeps:
        raise ValueError("Give the folder of at least one sweep.")
    names = names_of(settings.sweeps, settings.names)
    if unknown := set(settings.left) - set(names):
        raise ValueError(f"left={min(unknown)} is none of the sweeps {', '.join(names)}.")
    drawn = []
    for name, folder in zip(names, settings.sweeps, strict=True):
        sweep = DrawnSweep(name, read_sweep(Path(expand(folder))))
        is_left = name in settings.left
        if is_left and not all(map(_is_coordinate, sweep.x_values)):
            raise ValueError(f"left={name}: the values of {sweep.key} are not numbers.")
        drawn.append(replace(sweep, is_left=is_left))
    tables = tuple(table for sweep in drawn for table in sweep_tables(sweep.values, sweep.name))
    values = {
        "units": {"accuracy": "percent"},
        "left": list(settings.left),
        "sweeps": {sweep.name: dict(sweep.values) for sweep in drawn},
    }
    return Finding("sweeps", values, lambda: draw_sweeps(drawn), tables)


def read_sweep(folder: Path) -> dict[str, Any]:
    """The results of a finished sweep.

    Raises:
        ValueError: the folder is not that of a finished sweep.
    """
    path = folder / f"{SWEEP}.json"
    values = read_json(path) if path.is_file() else {}
    if values.get("analysis") != SWEEP:
        raise ValueError(f"{folder} is not the folder of a finished sweep: it has no {path.name} of one.")
    return values


@dataclass(frozen=True)
class DrawnSweep:
    """A sweep as it is drawn.

    Attributes:
        name: name in the legend.
        values: the content of its sweep.json.
        is_left: whether its values get a minus sign.
    """

    name: str
    values: Mapping[str, Any]
    is_left: bool = False

    @property
    def key(self) -> str:
        """The setting on the x axis."""
        return str(self.values["keys"][0])

    @property
    def x_values(self) -> list[Any]:
        """The values on the x axis, in their order."""
        values = [point["settings"][self.key] for point in self.values["points"]]
        signed = [-value if self.is_left else value for value in values]
        return sorted(set(signed)) if all(map(_is_coordinate, signed)) else list(dict.fromkeys(signed))

    def lines(self) -> dict[str, list[tuple[Any, Mapping[str, Any]]]]:
        """The points of each line, by its label: one for each combination of the other settings."""
        short = short_keys(self.values["keys"])
        lines: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {}
        for point in self.values["points"]:
            x, *others = (point["settings"][key] for key in self.values["keys"])
            pairs = zip(list(short.values())[1:], others, strict=True)
            label = ", ".join(f"{name} {value}" for name, value in pairs) or self.name
            lines.setdefault(label, []).append((-x if self.is_left else x, point))
        return lines


def _is_coordinate(value: object) -> bool:
    return is_number(value) and not isinstance(value, bool)


def _category_names(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name for values in sweeps for point in values["points"] for name in point["categories"]}
    return sorted(names, key=in_order)


def draw_sweeps(sweeps: Sequence[DrawnSweep]) -> Figure:
    """A panel for all problems, and one for each category; lines as in `DrawnSweep.lines`, baselines and the
    accuracy before training as horizontal lines."""
    categories = _category_names([sweep.values for sweep in sweeps])
    panels_in_a_row = min(2 if len(categories) == 3 else 3, 1 + len(categories))
    rows = -(-(1 + len(categories)) // panels_in_a_row)
    figure, panels = new_figure(rows, panels_in_a_row, sharey=True)
    for index, panel in enumerate(panels):
        if index > len(categories):
            panel.set_axis_off()
            continue
        _draw_panel(panel, sweeps, None if index == 0 else categories[index - 1])
        if index % panels_in_a_row:
            panel.set_ylabel("")
    legend(figure, panels[0])
    return figure


def _draw_panel(panel: Axes, sweeps: Sequence[DrawnSweep], category: str | None) -> None:
    axis = _XAxis(sweeps)
    lines = [
        (label if len(sweeps) == 1 or label == sweep.name else f"{sweep.name}, {label}", points)
        for sweep in sweeps
        for label, points in sweep.lines().items()
    ]
    for index, (label, points) in enumerate(lines):
        drawn = sorted(
            (axis.place(x), estimate)
            for x, point in points
            if (estimate := _estimate(point, category)) is not None
        )
        x, ends = [place for place, _ in drawn], [estimate for _, estimate in drawn]
        if axis.is_numeric and len(lines) == 1:
            draw_band(panel, x, [low for _, low, _ in ends], [high for _, _, high in ends], index)
            draw_series(panel, x, [value for value, _, _ in ends], index, label)
        else:
            beside = axis.beside * (index - (len(lines) - 1) / 2)
            style = series_style(index) | ({} if axis.is_numeric else {"linestyle": ""})
            _draw_bars(panel, [place + beside for place in x], ends, label, style)
    _draw_references(panel, sweeps, len(lines), category)
    title = ALL if category is None else f"{sweeps[0].values['by']}: {category}"
    finish(panel, plain_text(title), "held-out accuracy, %", axis.label)
    axis.finish(panel)
    low, high = panel.get_ylim()
    panel.set_ylim(
        max(low, -3), min(high, 103)
    )  # an interval over two seeds may be wider than all accuracies


def _estimate(point: Mapping[str, Any], category: str | None) -> tuple[float, float, float] | None:
    estimate = point["accuracy"] if category is None else point["categories"].get(category)
    return None if estimate is None else (estimate["value"], estimate["low"], estimate["high"])


def _draw_bars(
    panel: Axes,
    x: Sequence[float],
    ends: Sequence[tuple[float, float, float]],
    label: str,
    style: Mapping[str, Any],
) -> None:
    """Draw one of several lines: points with intervals."""
    values = [value for value, _, _ in ends]
    below = [value - low for value, low, _ in ends]
    above = [high - value for value, _, high in ends]
    panel.errorbar(
        x, values, yerr=[below, above], fmt="none", capsize=2.5, elinewidth=1, ecolor=style["color"]
    )
    panel.plot(x, values, label=plain_text(label), **style)


def _draw_references(panel: Axes, sweeps: Sequence[DrawnSweep], lines: int, category: str | None) -> None:
    """Horizontal lines: each baseline once, and the accuracy before training where there is one panel's."""
    baselines = {
        (sweep.values["baseline"]["recipe"], estimate): sweep.name
        for sweep in reversed(sweeps)
        if sweep.values["baseline"] is not None
        and (estimate := _estimate(sweep.values["baseline"], category)) is not None
    }
    recipes = [recipe for recipe, _ in baselines]
    for index, ((recipe, estimate), sweep_name) in enumerate(reversed(baselines.items())):
        colour = SERIES[(lines + index) % len(SERIES)]
        name = plain_text(recipe if recipes.count(recipe) == 1 else f"{recipe}, {sweep_name}")
        panel.axhline(estimate[0], color=colour, linestyle=(0, (6, 2)), linewidth=1.3, label=name)
        if len(baselines) == 1:
            panel.axhspan(estimate[1], estimate[2], color=colour, alpha=0.08, linewidth=0)
    before = {sweep.values["before"] for sweep in sweeps}
    if category is None and len(before) == 1 and (accuracy := before.pop()) is not None:
        panel.axhline(accuracy, color=MUTED, linestyle=":", linewidth=1.3, label="before training")


class _XAxis:
    """The x axis of several sweeps: numbers, logarithmic if they are far apart, or values side by side.

    Args:
        sweeps: the sweeps.
    """

    def __init__(self, sweeps: Sequence[DrawnSweep]) -> None:
        values = list(dict.fromkeys(value for sweep in sweeps for value in sweep.x_values))
        self.is_numeric = len(values) > 1 and all(map(_is_coordinate, values))
        self.values = sorted(values) if self.is_numeric else values
        positive = self.is_numeric and self.values[0] > 0
        self.is_log = positive and self.values[-1] / self.values[0] >= WIDE
        if self.is_numeric and not self.is_log and _is_crowded(self.values):
            self.is_numeric = False
        keys = list(dict.fromkeys(sweep.key for sweep in sweeps))
        label = ", ".join(keys if len(keys) == 1 else short_keys(keys).values())
        if left := [sweep.name for sweep in sweeps if sweep.is_left]:  # it must fit below a panel
            label = f"{', '.join(short_keys(keys).values())}; left of 0: {', '.join(left)}"
        self.label = plain_text(label)

    @property
    def beside(self) -> float:
        """How far the points of neighbouring lines are apart, so that their intervals do not overlap."""
        if not self.is_numeric:
            return 0.08
        return 0.0 if self.is_log else 0.01 * (self.values[-1] - self.values[0])

    def place(self, value: Any) -> float:
        """The coordinate of a value."""
        return float(value) if self.is_numeric else float(self.values.index(value))

    def finish(self, panel: Axes) -> None:
        """Put a tick at each value."""
        labels = [plain_text(f"{value:g}" if _is_coordinate(value) else str(value)) for value in self.values]
        if self.is_log:
            panel.set_xscale("log")
            panel.minorticks_off()
        panel.set_xticks([self.place(value) for value in self.values], labels)
        if not self.is_numeric:
            panel.margins(x=0.15)


def _is_crowded(values: Sequence[float]) -> bool:
    """Whether ticks of neighbouring values would overlap on a linear axis."""
    nearest = min(later - earlier for earlier, later in pairwise(values))
    return nearest < 0.04 * (values[-1] - values[0])
