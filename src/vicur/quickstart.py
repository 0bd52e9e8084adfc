"""`vicur quickstart`: the main job on CueBench, from base and teacher to table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from vicur.data.sources import FileSource
from vicur.diagnostics.attention import sink_attention
from vicur.models.load import load_model
from vicur.study import Outcome, StudyConfig, load_study, run_study, summarise

SHOWN = "opsd_cue_recovery"
SHOWN_PROBLEMS = 3


def run_quickstart(config: StudyConfig, console: Console) -> dict[str, Any]:
    """Run the study "quickstart" and draw showcase.png.

    Returns:
        the summary.

    Raises:
        ValueError: the output folder already holds a study.
        OSError: it cannot be made or written.
    """
    study = load_study("quickstart")
    outcomes = run_study(study, config, console)
    _show_cases(Path(config.output), outcomes)
    return summarise(study, outcomes)


def _show_cases(output: Path, outcomes: dict[str, list[Outcome]]) -> None:
    """Draw the first problems of seed 0 that only one of base and student gets right.

    Where there are too few of them, others fill up.
    """
    from vicur.reporting.showcase import draw_showcase  # with matplotlib, which nothing else needs

    folder = output / "seed-0"
    samples = FileSource(folder / "data" / "test.parquet")
    base, student = outcomes["base"][0].in_domain, outcomes[SHOWN][0].in_domain
    differs = [i for i, (a, b) in enumerate(zip(base.correct, student.correct, strict=True)) if a != b]
    same = [i for i in range(len(samples)) if i not in differs]
    chosen = sorted((differs + same)[:SHOWN_PROBLEMS])
    shown = [samples[i] for i in chosen]
    student_model = load_model(str(folder / SHOWN / "checkpoints" / "final"))
    draw_showcase(
        shown,
        sink_attention(student_model, shown),
        {
            "base": [base.responses[i] for i in chosen],
            "student": [student.responses[i] for i in chosen],
        },
        output / "showcase.png",
    )
