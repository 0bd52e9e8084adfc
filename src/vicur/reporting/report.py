"""`vicur report`: one self-contained HTML page about one or several runs.

The page is made from the files of the runs alone, no model is loaded, and it loads nothing from anywhere.
Everything that comes from models and data is escaped: texts by the template, the responses as JSON that the
page's script shows as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from vicur.evaluation.results import accuracy_of
from vicur.evaluation.statistics import compare_shared
from vicur.files import write_text
from vicur.reporting.alarms import FEWEST_STEPS, Alarm, alarms_of
from vicur.reporting.config import ReportConfig
from vicur.reporting.drift import draw_drift
from vicur.reporting.figures import styled, svg_of
from vicur.reporting.gap import draw_gap
from vicur.reporting.inline import inline_svg
from vicur.reporting.leakage import draw_leakage, leakage_table, responses_per_step
from vicur.reporting.measures import draw_measures
from vicur.reporting.papers import ScoreTable
from vicur.reporting.phases import draw_time, time_by_phase
from vicur.reporting.problems import hardest_problems
from vicur.reporting.responses import Lookup, collect_responses
from vicur.reporting.runs import Graded, RecordedRun
from vicur.reporting.series import ends
from vicur.reporting.training import draw_training
from vicur.settings.reading import read_json
from vicur.wording import printable

TEMPLATES = Path(__file__).parent / "templates"
FIGURES = "figures"
"""Folder of a report's figures as SVG files, beside it."""
DIAGNOSTICS = "diagnostics"
"""Folder in that of a run whose figures are in its report: the output of `vicur diagnose`."""


@dataclass(frozen=True)
class Section:
    """A figure of the report.

    Attributes:
        key: name of its file and id in the page.
        title: heading.
        text: how to read it.
        draw: makes the figure.
    """

    key: str
    title: str
    text: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Report:
    """A report, ready to be written.

    Attributes:
        runs: the runs.
        lookups: finds the problems of each run, by its name.
        responses: maximum number of responses of each run.
        scores: benchmark scores, ours and published, a table for each harness.
        smooth: number of steps over which curves are averaged.
    """

    runs: Sequence[RecordedRun]
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    responses: int = ReportConfig.responses
    scores: Sequence[ScoreTable] = ()
    smooth: int = 1

    def write(self, path: Path, *, replace: bool = True) -> None:
        """Write the page, and its figures as SVG files into a folder beside it: `figures`, or NAME_figures
        for a page that is not called report.html.

        Raises:
            OSError: a file cannot be written.
        """
        with styled():
            figures = [(part, svg_of(part.draw())) for part in self.sections()]
        for part, svg in figures:
            write_text(figures_of(path) / f"{part.key}.svg", svg, replace=replace)
        write_text(path, self.html(figures), replace=replace)

    def html(self, figures: Sequence[tuple[Section, str]]) -> str:
        """The page.

        Args:
            figures: its figures as SVG.
        """
        collected = collect_responses(self.runs, self.lookups, self.responses)
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["printable"] = printable
        svgs = [
            {"part": part, "svg": Markup(inline_svg(svg, part.key, f"{part.title}. {part.text}"))}
            for part, svg in figures
        ]
        return environment.get_template("report.html").render(
            title=", ".join(run.name for run in self.runs),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            notes=collected.notes,
            alarms=self.alarms(),
            judged=[run.name for run in self.runs if len(run.metrics) >= FEWEST_STEPS],
            unjudged=[run.name for run in self.runs if len(run.metrics) < FEWEST_STEPS],
            fewest_steps=FEWEST_STEPS,
            runs=[describe_run(run) for run in self.runs],
            differences=recipe_differences(self.runs),
            results=result_rows(self.runs),
            scores=self.scores,
            leakage=leakage_table(self.runs),
            hardest=[(run.name, hardest_problems(run)) for run in self.runs],
            figures=svgs,
            diagnostics=[drawn for run in self.runs for drawn in diagnostics_of(run)],
            style=Markup((TEMPLATES / "report.css").read_text("utf-8")),
            script=Markup((TEMPLATES / "report.js").read_text("utf-8")),
            data=Markup(json_for_script(collected.to_json(self.runs))),
            has_responses=bool(collected.problems),
        )

    def alarms(self) -> list[tuple[str, Alarm]]:
        """The alarms of all runs, with the name of each one's run."""
        return [
            (run.name, alarm)
            for run in self.runs
            for alarm in alarms_of(run.metrics, run.evaluations, responses_per_step(run))
        ]

    def sections(self) -> list[Section]:
        """The figures, as far as the runs have recorded their numbers."""
        runs, smooth = self.runs, self.smooth
        times = {run.name: time_by_phase(run) for run in runs}
        sections = [
            Section(
                "training",
                "Training",
                "Loss, and the accuracy of training responses and held-out problems.",
                lambda: draw_training(runs, smooth),
            ),
            Section(
                "gap",
                "Teacher-student gap",
                "log q - log p of the student's tokens, teacher minus student, by part of the response.",
                lambda: draw_gap(runs, smooth),
            ),
            Section(
                "measures",
                "What the student's tokens depend on",
                "Measures of the responses to held-out problems: visual advantage, visual dependency, "
                "language and visual KL, and where the gap comes from.",
                lambda: draw_measures(runs),
            ),
            Section(
                "leakage",
                "Hint leakage",
                'Responses with the word "hint", which the student was never shown.',
                lambda: draw_leakage(runs, smooth),
            ),
            Section(
                "drift",
                "Drift of the responses",
                "Length, truncation, marked answers, repetition and entropy.",
                lambda: draw_drift(runs, smooth),
            ),
            Section("time", "Time", "Seconds by phase.", lambda: draw_time(runs, times)),
        ]
        recorded = {
            "gap": any(run.series("gap_whole")[0] for run in runs),
            "measures": any(run.observations for run in runs),
            "leakage": any(line["hint_samples"] for run in runs for line in run.metrics),
        }
        return [part for part in sections if recorded.get(part.key, True)]


def diagnostics_of(run: RecordedRun) -> list[dict[str, str]]:
    """The figures of analyses of a run's models: those in the folder `diagnostics` of the run.

    As images they cannot run anything, whatever is in the files.
    """
    figures = []
    for path in sorted((run.folder / DIAGNOSTICS).glob("*.svg")):
        record = path.with_suffix(".json")
        notes = read_json(record).get("notes", []) if record.is_file() else []
        figures.append(
            {
                "run": run.name,
                "name": path.stem,
                "notes": " ".join(map(str, notes)),
                "source": f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}",
            }
        )
    return figures


def figures_of(page: Path) -> Path:
    """The folder of the figures of a page."""
    return page.with_name(FIGURES if page.stem == "report" else f"{page.stem}_{FIGURES}")


def json_for_script(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def describe_run(run: RecordedRun) -> dict[str, Any]:
    """What was run: state, length, data, versions and hardware."""
    recipe, environment = run.recipe, run.environment
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    data = run.data
    facts = {
        "state": f"{run.status['status']} after {run.status['step']} steps",
        "student": recipe["student"]["model"],
        "teacher": f"{recipe['teacher']['model']}, shown {recipe['teacher']['privilege']}",
        "objective": " + ".join(name for name, part in recipe["objective"].items() if part is not None),
        "training problems": f"{data.get('problems', '?')} from {data.get('train', recipe['data']['train'])}",
        "held-out problems": _held_out(data),
        "device": f"{environment.get('device')}, {environment.get('processes', 1)} process(es)",
        "versions": f"Python {environment.get('python')}, {versions}",
        "command": " ".join(environment.get("command", [])),
        "folder": str(run.folder),
    }
    return {"name": run.name, "facts": facts, "notes": data.get("notes", [])}


def _held_out(data: Mapping[str, Any]) -> str:
    parts = [
        f"{data[key]['problems']} from {data[key]['data']} ({what})"
        for key, what in (("evaluate", "accuracy"), ("observe", "measures"))
        if key in data
    ]
    return ", ".join(parts) or "none"


def recipe_differences(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, with the value of each run."""
    ignored = ("training.output", "training.name", "training.overwrite")
    flat = [dict(_flatten(run.recipe)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    return [
        (name, [_value(settings.get(name)) for settings in flat])
        for name in names
        if name not in ignored and len({_value(settings.get(name)) for settings in flat}) > 1
    ]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat += _flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", value))
    return flat


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def result_rows(runs: Sequence[RecordedRun]) -> list[dict[str, str]]:
    """Accuracy of each run on its held-out problems before and after training, and compared with that of the
    first run that has both."""
    rows: list[dict[str, str]] = []
    reference: RecordedRun | None = None
    for run in runs:
        before, after = run.graded_before, run.graded_after
        row = {"run": run.name, "before": "", "after": "", "change": "", "against": "", "rollouts": ""}
        accuracies = run.series("rollout_accuracy")[1]
        row["rollouts"] = " to ".join(f"{value:.1f}" for value in ends(accuracies) if value is not None)
        if before:
            row["before"] = str(accuracy_of(list(before.values())))
        if after:
            row["after"] = str(accuracy_of(list(after.values())))
            row["change"] = _difference(after, before)
            if reference is not None:
                row["against"] = _difference(after, reference.graded_after, f" against {reference.name}")
            reference = reference or run
        rows.append(row)
    return rows


def _difference(after: Graded, before: Graded, name: str = "") -> str:
    """A line with points and interval, and one with won and lost, on the problems that both have; "" if there
    are none."""
    result = compare_shared(after, before)
    if result is None:
        return ""
    points = result.points
    return (
        f"{points.value:+.1f} [{points.low:+.1f}, {points.high:+.1f}]{name}\nwon {result.won}, "
        f"lost {result.lost}, p {result.p:.2g}"
    )
