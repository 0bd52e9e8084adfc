"""The quickstart's figure: accuracy by teacher, and one problem as student and teacher see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vicur.cuebench.boxes import cue_boxes
from vicur.data.sample import Sample
from vicur.files import write_whole

matplotlib.use("Agg")

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#7F7F7F"
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""
WRAP, LINE = 44, 13.5
"""Characters per line of the texts beside the image, and points from one line to the next."""


@dataclass(frozen=True)
class Bar:
    """One method.

    Attributes:
        label: label under the bar; may have several lines.
        colour: colour of the bar.
        in_domain, out_of_domain: accuracy in percent, with the ends of its 95 % interval.
        seeds: in-domain accuracy of each seed.
    """

    label: str
    colour: str
    in_domain: tuple[float, float, float]
    out_of_domain: tuple[float, float, float]
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        sample: a problem with one image.
        student_reads, teacher_reads: the text of their prompts.
        responses: (when, text, whether it is right).
        caption: how the problem was chosen.
    """

    sample: Sample
    student_reads: str
    teacher_reads: str
    responses: Sequence[tuple[str, str, bool]]
    caption: str


def draw_showcase(bars: Sequence[Bar], case: Case, caption: str, path: Path) -> None:
    """Draw the methods' accuracies on the left and one problem on the right.

    Args:
        bars: the methods; the first is the baseline.
        case: the problem.
        caption: explanation of bars and intervals.
        path: path of the PNG.
    """
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.12), wspace=0.03)
    left, right = sides
    _draw_bars(left.subplots(), bars)
    left.supxlabel(fill(caption, 88), fontsize=9, color="#444444")
    image, texts = right.subplots(1, 2, width_ratios=(0.85, 1.0))
    right.suptitle("One problem, as student and teacher see it", fontsize=13, weight="bold")
    _draw_image(image, case)
    _write_texts(texts, case)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=120, format="png"))


def _draw_bars(axis: Any, bars: Sequence[Bar]) -> None:
    places = np.arange(len(bars))
    for place, bar in zip(places, bars, strict=True):
        points = bar.seeds if len(bar.seeds) > 1 else ()
        _draw_bar(axis, place - 0.2, bar.in_domain, bar.colour, 1.0, points)
        _draw_bar(axis, place + 0.2, bar.out_of_domain, bar.colour, 0.35)
    axis.axhline(bars[0].in_domain[0], color=GREY, lw=1, ls="--", zorder=0)
    axis.set_xticks(places, [bar.label for bar in bars], fontsize=9.5)
    axis.set_ylim(0, 100)
    axis.set_ylabel("accuracy on held-out problems, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("Accuracy of the student, by teacher", fontsize=13, weight="bold")
    solid, pale = Rectangle((0, 0), 1, 1, fc=GREY), Rectangle((0, 0), 1, 1, fc=GREY, alpha=0.35)
    axis.legend([solid, pale], ["in domain", "out of domain"], frameon=False, loc="upper left")


def _draw_bar(
    axis: Any,
    place: float,
    accuracy: tuple[float, float, float],
    colour: str,
    alpha: float,
    points: Sequence[float] = (),
) -> None:
    value, low, high = accuracy
    top = max((high, *points))
    reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axis.bar(place, value, 0.38, color=colour, alpha=alpha)
    axis.errorbar(place, value, yerr=reach, color="black", lw=1.2, capsize=3)
    axis.scatter([place] * len(points), points, s=14, color="white", ec="black", zorder=3)
    axis.annotate(
        f"{value:.0f}",
        (place, top),
        (0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=10,
        weight="bold",
    )


def _draw_image(axis: Any, case: Case) -> None:
    """The image, with boxes around what the cue names, and how the problem was chosen."""
    axis.imshow(np.asarray(case.sample.images[0]), interpolation="nearest")
    for name, value, (left, top, right, bottom) in cue_boxes(case.sample):
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec=BLUE, lw=2)
        )
        above = top > 8  # a name above the image would run into its title
        axis.annotate(
            f"{name} {value}",
            ((left + right) / 2 - 0.5, top - 1 if above else bottom),
            color=BLUE,
            fontsize=10,
            ha="center",
            va="bottom" if above else "top",
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.8},
        )
    axis.set_anchor("N")
    axis.set_title("Blue: what the cue names (not shown to any model)", fontsize=9.5, color="#444444")
    axis.set_xlabel(fill(case.caption, 44), fontsize=9, color="#444444", labelpad=8)
    axis.set_xticks([])
    axis.set_yticks([])


def _write_texts(axis: Any, case: Case) -> None:
    marks = {True: ("right", GREEN), False: ("wrong", ORANGE)}
    answers = [(f"{when}: {marks[ok][0]}", text, marks[ok][1]) for when, text, ok in case.responses]
    prompts = [
        ("The student is shown the image and", case.student_reads, "black"),
        ("Its teacher is shown the same, and the cue", case.teacher_reads, BLUE),
        ("Correct answer (shown to neither)", str(case.sample.answer), "black"),
    ]
    _write(axis, [*prompts, *answers])


def _write(axis: Any, blocks: Sequence[tuple[str, str, str]]) -> None:
    """Write titles and texts below each other, from the top."""
    axis.axis("off")
    down = 0.0
    for title, text, colour in blocks:
        wrapped = "\n".join(fill(part, WRAP) for part in text.splitlines())
        _line(axis, down, title, fontsize=10.5, weight="bold", color=colour)
        _line(axis, down + LINE + 2, wrapped, fontsize=9.5, family="monospace", linespacing=1.25)
        down += LINE * (wrapped.count("\n") + 2) + 14


def _line(axis: Any, down: float, text: str, **style: Any) -> None:
    """Write text a number of points below the top of the axis."""
    axis.annotate(
        text, (0, 1), (0, -down), xycoords="axes fraction", textcoords="offset points", va="top", **style
    )
