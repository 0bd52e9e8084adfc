"""What the audit of cues finds on CueBench, where every leak was planted and the exact cues are known.

    python benchmarks/cue_audit.py                       # all sets of wordings, 400 problems per cell
    python benchmarks/cue_audit.py --problems 2000 --examples 3 --wordings fourth

Prints tables in markdown: a row for each kind of leak, a column for what the audit knows. "Text" is the cue,
the question and the answer alone; "givens" adds which values are drawn; "givens, verifier" adds one who looks
at the image. A cell is the share of cues with any flag, and in brackets with a certain one. For exact cues
that is the rate of false alarms.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from vicur.audit import Audit, AuditConfig, Category, CueRow, QuestionGivens, audit_cues, cue_rows
from vicur.audit.cuebench import CueBenchVerifier
from vicur.cuebench.generate import FAMILIES, Family, scenes, to_sample
from vicur.cuebench.leaks import FIRST, FOURTH, LEAKS, SECOND, THIRD, Leak, Wordings, planted_samples
from vicur.cuebench.scenes import Scene
from vicur.data.sample import Sample

SETS = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH}
CATEGORIES: tuple[Category, ...] = ("answer", "reasoning", "grounding", "duplicate", "degenerate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=400, help="per family and kind of leak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wordings", choices=[*SETS, "all"], default="all")
    parser.add_argument("--examples", type=int, default=0, help="cues to print of each cell that went wrong")
    parser.add_argument("--rows", type=int, default=0, help="also time the audit of so many cues")
    options = parser.parse_args()
    problems = {family: draw(family, options.problems, options.seed) for family in FAMILIES}
    for name in SETS if options.wordings == "all" else [options.wordings]:
        for family in FAMILIES:
            print(f"\n### {family}, {name} wordings, {options.problems} problems a row\n")
            print(table(problems[family], SETS[name], options.seed, options.examples))
    print("\n### Cues, rationales and answers: flagged, of all\n")
    print(compared(problems))
    if options.rows:
        print(f"\n{options.rows} cues: {speed(problems, options.rows):.1f} s")


def draw(family: Family, count: int, seed: int) -> list[tuple[Scene, Sample]]:
    """Scenes and their problems."""
    return [(scene, to_sample(scene)) for scene in itertools.islice(scenes(family, "train", seed), count)]


def table(problems: list[tuple[Scene, Sample]], wordings: Wordings, seed: int, examples: int) -> str:
    """Kinds of leak against what the audit knows, and against the categories of its flags."""
    lines = [
        "| planted | text | givens | givens, verifier | " + " | ".join(CATEGORIES) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(CATEGORIES),
    ]
    kinds: list[Leak | None] = [None, *LEAKS]
    for leak in kinds:
        samples = planted_samples(problems, leak, wordings, seed)
        verifier = CueBenchVerifier({scene.key(): scene for scene, _ in problems})
        audits = [
            audit_cues(samples, givens=QuestionGivens()),
            audit_cues(samples),
            audit_cues(samples, verifier=verifier),
        ]
        cells = [f"{audit.rate():.1%} ({audit.rate(severity='certain'):.1%})" for audit in audits]
        cells += [f"{audits[-1].rate(category):.1%}" for category in CATEGORIES]
        lines.append(f"| {leak or 'nothing: exact cue'} | {' | '.join(cells)} |")
        lines += [f"<!-- {text} -->" for text in wrong(samples, audits[-1], leak)[:examples]]
    return "\n".join(lines)


def wrong(samples: Sequence[Sample], audit: Audit, leak: Leak | None) -> list[str]:
    """Planted leaks that were missed, or exact cues that were flagged, with the reasons."""
    flags = audit.by_sample()
    rows = [row for row in cue_rows(samples, "cue") if (row.id in flags) == (leak is None)]
    return [
        f"{row.question} {row.answer} / {row.text} / "
        + "; ".join(f"{flag.rule}: {flag.excerpt!r}" for flag in flags.get(row.id, []))
        for row in rows
    ]


def compared(problems: dict[Family, list[tuple[Scene, Sample]]]) -> str:
    """The kinds of privilege side by side."""
    lines = ["| family | text | answer | reasoning | any |", "|---|---|---:|---:|---:|"]
    for family, own in problems.items():
        for column in ("cue", "rationale", "answer"):
            verifier = CueBenchVerifier({scene.key(): scene for scene, _ in own})
            audit = audit_cues([sample for _, sample in own], AuditConfig(column=column), verifier=verifier)
            rates = [audit.rate("answer"), audit.rate("reasoning"), audit.rate()]
            lines.append(f"| {family} | {column} | " + " | ".join(f"{rate:.1%}" for rate in rates) + " |")
    return "\n".join(lines)


def speed(problems: dict[Family, list[tuple[Scene, Sample]]], count: int) -> float:
    """Seconds for so many cues, of all kinds, without a verifier."""
    pool = [
        row
        for own in problems.values()
        for leak in (None, *LEAKS)
        for row in cue_rows(planted_samples(own, leak, FIRST), "cue")
    ]
    many: list[CueRow] = [replace(pool[i % len(pool)], id=str(i), sample=None) for i in range(count)]
    start = time.perf_counter()
    audit_cues(many)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
