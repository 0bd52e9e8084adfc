"""`vicur quickstart`: the main experiment on CueBench, from base model and teacher to table and figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vicur.data.sources import FileSource
from vicur.data.views import Hinted, Plain, Shown
from vicur.studies.outcomes import Outcome, summarise
from vicur.studies.runner import StudyConfig, run_study
from vicur.studies.study import BASE, load_study

if TYPE_CHECKING:  # imports matplotlib, which nothing else needs
    from vicur.studies.showcase import Bar, Case

COMPARED = "opsd_cue"
"""The method whose responses are shown beside those of the base."""
LABELS = {
    BASE: "base,\nuntrained",
    "opsd_answer": "self-teacher,\nshown the\nanswer",
    "opsd_cue": "self-teacher,\nshown the\ncue",
    "opsd_cue_recovery": "the same,\nstudent with\nrecovery",
    "opd_cue": "larger\nteacher, shown\nthe cue",
}
"""Labels of the bars, from left to right."""


def run_quickstart(config: StudyConfig, console: Console) -> dict[str, Any]:
    """Run the study "quickstart" and draw showcase.png.

    Returns:
        the summary.

    Raises:
        ValueError: the output folder holds another study.
        OSError: it cannot be made or written.
    """
    study = load_study("quickstart")
    outcomes = run_study(study, config, console)
    summary = summarise(study, outcomes)
    _draw(config.folder, summary, outcomes)
    return summary


def _draw(output: Path, summary: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> None:
    from vicur.studies.showcase import draw_showcase

    seeds = summary["seeds"]
    spread = f"Student's t over {seeds} seeds" if seeds > 1 else "from sampling the test problems, one seed"
    points = "; points: seeds" if seeds > 1 else ""
    count = len(outcomes[BASE][0].in_domain.correct)
    caption = (
        f"Greedy answers to {count} CueBench problems each. Intervals: 95 %, {spread}{points}. Every method "
        "trains the same base; no model is shown a cue at test time."
    )
    draw_showcase(_bars(summary, outcomes), _case(output, outcomes), caption, output / "showcase.png")


def _bars(summary: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> list[Bar]:
    from vicur.studies.showcase import BLUE, GREEN, GREY, ORANGE, SKY, Bar

    colours = dict(zip(LABELS, (GREY, ORANGE, BLUE, SKY, GREEN), strict=True))

    def interval(name: str, domain: str) -> tuple[float, float, float]:
        scores = summary["methods"][name][domain]
        return scores["accuracy"], scores["low"], scores["high"]

    return [
        Bar(
            label,
            colours[name],
            interval(name, "in_domain"),
            interval(name, "out_of_domain"),
            tuple(outcome.in_domain.accuracy.value for outcome in outcomes[name]),
        )
        for name, label in LABELS.items()
    ]


def _case(output: Path, outcomes: dict[str, list[Outcome]]) -> Case:
    """The first test problem of seed 0 that the base gets wrong and the student right, or the first one if
    there is none."""
    from vicur.studies.showcase import Case

    base, student = outcomes[BASE][0].in_domain, outcomes[COMPARED][0].in_domain
    pairs = list(zip(base.correct, student.correct, strict=True))
    gained = [index for index, pair in enumerate(pairs) if pair == (False, True)]
    index = gained[0] if gained else 0
    caption = "The first test problem of seed 0"
    if gained:
        lost = sum(pair == (True, False) for pair in pairs)
        caption += (
            f" that only the trained student gets right. There are {len(gained)} such problems among "
            f"{len(pairs)}, and {lost} that only the base gets right."
        )
    sample = FileSource(output / "seed-0" / "data" / "test.parquet")[index]
    return Case(
        sample,
        _text(Plain().show(sample)),
        _text(Hinted("cue").show(sample)),
        [
            ("Student before training", base.responses[index], bool(base.correct[index])),
            ("Student taught by the cue", student.responses[index], bool(student.correct[index])),
        ],
        caption,
    )


def _text(prompt: Shown) -> str:
    """The text of a prompt's last message."""
    content = prompt.messages[-1]["content"]
    return "".join(part["text"] for part in content if part["type"] == "text").strip()
