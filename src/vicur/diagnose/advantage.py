"""`vicur diagnose advantage`: how visual advantage is distributed over tokens (VA-OPD figure 2a), and the
path of training in the plane of mean visual advantage and accuracy (figure 4b).

The paper finds about 93 % of the mass in the top 10 % of some 105,000 tokens of a Standard OPD student,
pooled over responses. Its heading says "within a rollout", so shares within responses are computed too.

Shape suffixes: N response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vicur.data.sources import FileSource
from vicur.diagnose.models import GroupSize, ModelsSettings, SavedModel, saved_models
from vicur.diagnostics.dependence import mass_curve, top_mass, top_mass_within
from vicur.evaluation.statistics import Estimate, accuracy_interval, mean_interval
from vicur.evaluation.visual_advantage import measure_visual_advantage
from vicur.models.load import LoadedModel
from vicur.paths import names_of
from vicur.progress import Bars, silent
from vicur.reporting.curves import finish
from vicur.reporting.figures import (
    MARKERS,
    MUTED,
    SERIES,
    draw_series,
    legend,
    new_figure,
    plain_text,
    series_style,
)
from vicur.reporting.finding import Finding
from vicur.reporting.runs import RecordedRun, is_number, open_runs
from vicur.settings.section import PathText, PositiveShare, Text, section
from vicur.tables import plain_table
from vicur.wording import counted
from vicur.worth.responses import StudentResponses

FRACTIONS = (0.01, 0.05, 0.1, 0.2)
"""Top shares of tokens whose mass is printed."""
TOP = 90.0
"""The percentile above which the top 10 % of tokens are."""


@section
class AdvantageSettings(ModelsSettings):
    """The settings of `vicur diagnose advantage`."""

    student: list[PathText] = field(default_factory=list)
    """Students whose responses are measured: checkpoint folders, hub ids, "vicur:NAME", or folders of runs,
    of which every checkpoint is measured."""
    runs: list[PathText] = field(default_factory=list)
    """Folders of runs that recorded visual advantage and accuracy on held-out problems; no model is run. Each
    run's own teacher judged its responses, so only runs with the same teacher can be compared."""
    names: list[Text] = field(default_factory=list)
    """A name for each student, then for each run, in tables and figures; by default the end of its path."""
    group_size: GroupSize = 4
    """Number of responses per problem."""
    observer: Literal["teacher", "student"] = "teacher"
    """Model that judges by how much a token depends on detail in the image: the teacher (VA-OPD eq. 2), or
    the student itself, for its own use of detail."""
    degraded_ratio: PositiveShare = 0.1
    """Ratio of side lengths of the degraded image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.student and not self.runs:
            raise ValueError("Give at least one --student or --run.")
        if self.student and self.observer == "teacher" and self.teacher is None:
            raise ValueError("The teacher judges the tokens: set --teacher, or observer=student.")
        if self.runs and self.observer == "student":
            raise ValueError("Runs record the teacher's judgement: observer=student needs --student.")


@dataclass(frozen=True)
class MeasuredModel:
    """The visual advantage of a model's responses.

    Attributes:
        step: step of its run; None outside a run.
        values_N: visual advantage of every response token, in nats.
        response_index_N: index of the response that each token belongs to.
        accuracy: accuracy in percent; None if no response could be graded.
    """

    step: int | None
    values_N: Float[Tensor, " N"]
    response_index_N: Int[Tensor, " N"]
    accuracy: Estimate | None

    @property
    def point(self) -> dict[str, Any]:
        """The model in the plane of figure 4b."""
        return point(self.step, float(self.values_N.double().mean()), self.accuracy)


def visual_advantage_of(settings: AdvantageSettings, bars: Bars = silent) -> Finding:
    """Distribution of visual advantage over tokens, and its mean beside accuracy.

    Args:
        settings: students and runs.
        bars: progress bars; silent if not given.

    Raises:
        ValueError: a model or the data cannot be read, the vocabularies differ, or a run has recorded no
            visual advantage.
    """
    names = names_of([*settings.student, *settings.runs], settings.names)
    count = len(settings.student)
    runs = open_runs(settings.runs, names[count:]) if settings.runs else []
    recorded = {run.name: recorded_path(run) for run in runs}
    measured = zip(names[:count], measure_students(settings, bars), strict=True)
    models: dict[str, dict[str, Any]] = {name: describe(steps) for name, steps in measured}
    models |= {name: {"path": path} for name, path in recorded.items()}
    values: dict[str, Any] = {
        "units": {"visual_advantage": "nats", "accuracy": "percent", "shares": "0 to 1"},
        "observer": settings.observer,
        "teacher": settings.teacher,
        "models": models,
    }
    tables = (shares_table(models),) if count else ()
    tables = (*tables, path_table(models))
    return Finding("advantage", values, lambda: draw_advantage(models), tables, tuple(_gaps(recorded)))


def measure_students(settings: AdvantageSettings, bars: Bars) -> list[list[MeasuredModel]]:
    """For each student its measured models, in the order of their steps."""
    if not settings.student:
        return []
    samples = settings.open(bars)
    teacher = settings.load_teacher(bars) if settings.observer == "teacher" else None
    return [
        [
            measure_model(settings, samples, model, teacher, bars)
            for model in saved_models(name, settings, bars)
        ]
        for name in settings.student
    ]


def measure_model(
    settings: AdvantageSettings,
    samples: FileSource,
    model: SavedModel,
    teacher: LoadedModel | None,
    bars: Bars,
) -> MeasuredModel:
    """Sample a model's responses and measure the visual advantage of their tokens.

    Args:
        settings: sampling and scoring.
        samples: the problems.
        model: the model.
        teacher: judges the tokens; None for the model itself.
        bars: progress bars.
    """
    loaded = model.load()
    observer = settings.scorer_of(loaded) if teacher is None else settings.teacher_scorer(loaded, teacher)
    responses = settings.answer(loaded, samples, bars, group_size=settings.group_size)
    size = settings.prompts_per_batch
    starts = range(0, len(responses), size)
    parts = []
    for start in bars("scoring").over(starts, len(starts)):
        part = responses.part(range(start, min(start + size, len(responses))))
        problems = [samples[i] for i in part.index]
        parts.append(measure_visual_advantage(observer, problems, part.ids, settings.degraded_ratio).cpu())
    return MeasuredModel(model.step, torch.cat(parts), response_index(responses), accuracy_of(responses))


def response_index(responses: StudentResponses) -> Int[Tensor, " N"]:
    """Index of the response, in the flat order, that each token belongs to."""
    lengths = torch.tensor([len(ids) for group in responses.ids for ids in group])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def accuracy_of(responses: StudentResponses) -> Estimate | None:
    """Accuracy of all responses in percent; None if none could be graded.

    The interval is over problems, because responses to one problem are not independent: Student's t of their
    accuracies, or Wilson's with one response each.
    """
    graded = [[value for value in group if value is not None] for group in responses.correct]
    graded = [group for group in graded if group]
    if len(graded) < 2 or all(len(group) == 1 for group in graded):
        values = [value for group in graded for value in group]
        return accuracy_interval(values) if values else None
    return mean_interval([100 * sum(group) / len(group) for group in graded])


def describe(steps: Sequence[MeasuredModel]) -> dict[str, Any]:
    """The distribution over the tokens of the last of a run's models, and the path of all."""
    last = steps[-1]
    values, index = last.values_N, last.response_index_N
    return {
        "step": last.step,
        "tokens": len(values),
        "responses": int(index.max()) + 1,
        "mean": float(values.double().mean()),
        "zero_share": float((values == 0).double().mean()),
        "shares": {f"top_{100 * f:g}_percent": top_mass(values, f) for f in FRACTIONS},
        "shares_within_responses": {
            f"top_{100 * f:g}_percent": top_mass_within(values, index, f) for f in FRACTIONS
        },
        "curve": mass_curve(values),
        "path": [measured.point for measured in steps],
    }


def point(step: int | None, advantage: float, accuracy: Estimate | None) -> dict[str, Any]:
    """One point of figure 4b."""
    ends = (None, None, None) if accuracy is None else (accuracy.value, accuracy.low, accuracy.high)
    return {"step": step, "visual_advantage": advantage} | dict(
        zip(("accuracy", "low", "high"), ends, strict=True)
    )


def recorded_path(run: RecordedRun) -> list[dict[str, Any]]:
    """The path of a run from its records: the steps at which visual advantage was observed.

    Raises:
        ValueError: there is none.
    """
    advantages = {
        line["step"]: float(line["visual_advantage"])
        for line in run.observations
        if is_number(line.get("visual_advantage"))
    }
    if not advantages:
        raise ValueError(
            f"{run.folder} has recorded no visual advantage on held-out problems; give its folder as "
            "--student to measure its checkpoints."
        )
    accuracies = {line["step"]: line for line in run.evaluations if is_number(line.get("accuracy"))}
    return [
        {"step": step, "visual_advantage": advantage}
        | {name: accuracies.get(step, {}).get(name) for name in ("accuracy", "low", "high")}
        for step, advantage in sorted(advantages.items())
    ]


def _gaps(recorded: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """A sentence about each recorded run of which some steps have no accuracy."""
    for name, path in recorded.items():
        missing = [place["step"] for place in path if place["accuracy"] is None]
        if missing:
            steps = counted(len(missing), "step")
            yield (
                f"{name} recorded visual advantage but no accuracy at {steps} (first: {missing[0]}); these "
                "are not drawn."
            )


def shares_table(models: Mapping[str, Mapping[str, Any]]) -> Any:
    """Shares of the mass by model: pooled over tokens, and within responses."""
    rows = []
    for name, model in models.items():
        if "curve" not in model:
            continue
        for kind, label in (("shares", "pooled"), ("shares_within_responses", "within")):
            shares = [None if share is None else 100 * share for share in model[kind].values()]
            numbers = (model["tokens"], 100 * model["zero_share"]) if kind == "shares" else (None, None)
            rows.append([name, label, *numbers, *shares])
    return plain_table(
        "Visual advantage: percent of its mass in the highest tokens, pooled and within responses",
        ["model", "", "tokens", "zero, %", *(f"top {100 * f:g} %" for f in FRACTIONS)],
        rows,
    )


def path_table(models: Mapping[str, Mapping[str, Any]]) -> Any:
    """Mean visual advantage and accuracy of every model and step."""
    return plain_table(
        "Mean visual advantage of all tokens, nats, and accuracy, percent",
        ["model", "step", "visual advantage", "accuracy", "low", "high"],
        [
            [name, place["step"], place["visual_advantage"], place["accuracy"], place["low"], place["high"]]
            for name, model in models.items()
            for place in model["path"]
        ],
    )


def draw_advantage(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Figure 2a as two panels where tokens were measured, and figure 4b where accuracy is known."""
    curves = {name: model["curve"] for name, model in models.items() if "curve" in model}
    paths = {name: _complete(model["path"]) for name, model in models.items()}
    draws_paths = any(paths.values()) or not curves
    figure, panels = new_figure(1, 2 * bool(curves) + draws_paths, width=4.6, height=3.4)
    if curves:
        _draw_curves(panels[0], panels[1], curves)
    if draws_paths:
        _draw_paths(panels[-1], paths)
    legend(figure, panels[0])
    return figure


def _draw_curves(by_token: Axes, by_share: Axes, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    for index, (name, curve) in enumerate(curves.items()):
        positive = [value if value > 0 else math.nan for value in curve["value"]]
        draw_series(by_token, curve["percentile"], positive, index, name)
        shares = [100 * share for share in curve["share_above"]]
        draw_series(by_share, curve["percentile"], shares, index, name)
    x = "percentile of tokens, from the lowest"
    finish(by_token, "Visual advantage of tokens", "nats, zeros left out", x)
    by_token.set_yscale("log")
    finish(by_share, "Mass in the tokens above", "% of the sum", x)
    by_share.set_ylim(0, 102)
    for panel in (by_token, by_share):
        panel.set_xlim(0, 100)
        panel.axvline(TOP, color=MUTED, linestyle="--", linewidth=1)
    by_share.annotate("top 10 %", (TOP, 4), (-4, 0), textcoords="offset points", ha="right", color=MUTED)


def _draw_paths(panel: Axes, paths: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One line for each model: a circle at its start, a square at its end, arrows between its steps."""
    for index, (name, places) in enumerate(paths.items()):
        if not places:
            continue
        x = [place["visual_advantage"] for place in places]
        y = [place["accuracy"] for place in places]
        style = series_style(index) | {"marker": ""}
        panel.plot(x, y, label=plain_text(name), **style)
        colour = SERIES[index % len(SERIES)]
        for i in range(len(x) - 1):
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 3}
            panel.annotate("", (x[i + 1], y[i + 1]), (x[i], y[i]), arrowprops=arrow)
        if len(x) > 1:
            panel.plot(x[:1], y[:1], MARKERS[0], color=colour, markerfacecolor="none", markersize=9)
        panel.plot(x[-1:], y[-1:], MARKERS[1], color=colour, markersize=6)
    finish(panel, "Accuracy and visual advantage", "accuracy, %", "mean visual advantage of all tokens, nats")


def _complete(path: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points with both coordinates."""
    return [place for place in path if is_number(place["accuracy"])]
