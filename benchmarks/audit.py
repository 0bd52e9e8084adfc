"""Measures what the audit finds on CueBench, where every leak is planted and the exact cues are known.

    python benchmarks/audit.py                          # the rules, on all sets of wordings
    python benchmarks/audit.py --verifier MODEL --base-url http://127.0.0.1:8000/v1 --verdicts verdicts
                                                        # rules, judge and both: one question per cue
    python benchmarks/audit.py --problems 1000 --wordings fifth --examples 3

Prints a markdown table for each set of wordings, with a row for each planted kind and segments / chords in
each cell. Each number is the share of cues with any flag and, in brackets, with a definite one. For exact
cues that is the rate of false alarms. "Text" is what the rules find with the cue, the question and the answer
alone; "boxes" adds which values are drawn; "boxes, verifier" adds a verifier that knows the scene. With
--verifier the columns are the rules on the text, the judge (the model, given each cue with its image), and
both.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from planted_leaks import LEAKS, SETS, Leak, Wordings, load_wordings, planted_samples
from vicur.audit import Flag, Judge, audit_cues, cue_rows, question_givens
from vicur.audit.cuebench import CueBenchVerifier
from vicur.audit.endpoint import EndpointJudge
from vicur.cuebench.generate import FAMILIES, Family, scenes, to_sample
from vicur.cuebench.scenes import Scene
from vicur.data.sample import Sample
from vicur.endpoints.config import EndpointConfig

Problems = list[tuple[Scene, Sample]]
Audited = dict[str, tuple[list[Flag], int]]
"""By column: the flags, and the number of cues."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=200, help="per family and planted kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems and the wordings")
    parser.add_argument("--wordings", choices=[*SETS, "all"], default="all", help="set of wordings")
    parser.add_argument("--examples", type=int, default=0, help="number of misjudged cues to print per row")
    parser.add_argument("--verifier", metavar="MODEL", help="model that judges each cue")
    parser.add_argument("--base-url", help="endpoint of the verifier")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable that holds its key")
    parser.add_argument("--verdicts", type=Path, help="file that keeps the verifier's replies")
    options = parser.parse_args()
    audited: Callable[[Problems, list[Sample]], Audited] = with_rules
    if options.verifier:
        endpoint = EndpointConfig(base_url=options.base_url, api_key_env=options.api_key_env)
        judge = EndpointJudge(options.verifier, endpoint, store=options.verdicts)
        audited = partial(with_judge, judge)
    problems = {family: draw(family, options.problems, options.seed) for family in FAMILIES}
    for name in SETS if options.wordings == "all" else [options.wordings]:
        print(f"\n### {name.capitalize()} wordings, {options.problems} problems per family and row\n")
        print(table(problems, load_wordings(name), options.seed, options.examples, audited))


def draw(family: Family, count: int, seed: int) -> Problems:
    """Scenes and their problems."""
    return [(scene, to_sample(scene)) for scene in itertools.islice(scenes(family, "train", seed), count)]


def with_rules(problems: Problems, samples: list[Sample]) -> Audited:
    """What the rules find, by what is known about the image."""
    verifier = CueBenchVerifier({scene.key(): scene for scene, _ in problems})
    audits = {
        "text": audit_cues(samples, givens=question_givens),
        "boxes": audit_cues(samples),
        "boxes, verifier": audit_cues(samples, verifier=verifier),
    }
    return {name: (list(audit.flags), audit.cues) for name, audit in audits.items()}


def with_judge(judge: Judge, _: Problems, samples: list[Sample]) -> Audited:
    """What the rules find in the text alone, what the judge finds, and both."""
    audit = audit_cues(samples, givens=question_givens, judge=judge)
    judged = [flag for flag in audit.flags if flag.rule == "judged"]
    rules = [flag for flag in audit.flags if flag.rule != "judged"]
    return {"rules": (rules, audit.cues), "judge": (judged, audit.cues), "both": ([*audit.flags], audit.cues)}


def table(
    problems: dict[Family, Problems],
    wordings: Wordings,
    seed: int,
    examples: int,
    audited: Callable[[Problems, list[Sample]], Audited],
) -> str:
    """A markdown table of planted kinds by column of `audited`."""
    lines: list[str] = []
    kinds: list[Leak | None] = [None, *LEAKS]
    for leak in kinds:
        together: dict[str, list[str]] = {}
        wrong: list[str] = []
        for family_problems in problems.values():
            samples = planted_samples(family_problems, leak, wordings, seed)
            columns = audited(family_problems, samples)
            for column, (flags, count) in columns.items():
                together.setdefault(column, []).append(shares(flags, count))
            wrong += mistakes(samples, next(reversed(columns.values()))[0], leak)
        if not lines:
            lines = [f"| planted | {' | '.join(together)} |", "|---|" + "---:|" * len(together)]
        cells = " | ".join(" / ".join(each) for each in together.values())
        lines.append(f"| {leak or 'nothing: exact cue'} | {cells} |")
        lines += [f"<!-- {text} -->" for text in wrong[:examples]]
    return "\n".join(lines)


def shares(flags: Sequence[Flag], count: int) -> str:
    """The share of cues with any flag and with a definite one, in %."""
    definite = {flag.id for flag in flags if flag.severity == "definite"}
    return f"{100 * len({flag.id for flag in flags}) / count:.1f} ({100 * len(definite) / count:.1f})"


def mistakes(samples: Sequence[Sample], flags: Sequence[Flag], leak: Leak | None) -> list[str]:
    """Planted leaks without a flag, or exact cues with one, with the flags."""
    flagged = {flag.id for flag in flags}
    return [
        f"{row.question} {row.answer} / {row.text} / "
        + "; ".join(f"{flag.rule}: {flag.excerpt!r}" for flag in flags if flag.id == row.id)
        for row in cue_rows(samples, "cue")
        if (row.id in flagged) == (leak is None)
    ]


if __name__ == "__main__":
    main()
