"""Runs all checks on all cues."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vicur.audit.answers import answer_findings, gold_forms
from vicur.audit.findings import Audit, Finding, Flag
from vicur.audit.givens import Givens, default_givens
from vicur.audit.grounding import Verifier, split_claims
from vicur.audit.judge import Judge, judged_findings
from vicur.audit.reasoning import reasoning_findings
from vicur.audit.rows import CueRow, cue_rows
from vicur.audit.shape import duplicates, shape_findings
from vicur.data.sample import Sample, TextKind
from vicur.data.sources import FileSource

READ = 4000
"""Maximum number of characters of a cue that are searched for leaks. A longer cue is flagged as such, so
nothing slips through."""
MIN_WORDS = 3
"""A cue with fewer words is degenerate. Answers and rationales may be short."""
_RUN = re.compile(r"[0-9]{25,}|\s{25,}")
Rows = FileSource | Iterable[CueRow] | Iterable[Sample]


def audit_cues(
    source: Rows,
    kind: TextKind = "cue",
    *,
    givens: Givens = default_givens,
    verifier: Verifier | None = None,
    judge: Judge | None = None,
) -> Audit:
    """Find the faults of the cues of a source.

    Args:
        source: a file's samples, samples in memory, or rows.
        kind: kind of text to audit. Rationales and answers leak by nature: their rates are for comparison.
        givens: decides which values are drawn.
        verifier: checks each claim of a cue against the image; None for no check.
        judge: judges each cue with its image, in addition to the rules; None for the rules alone.

    Raises:
        ValueError: two samples have the same id, a verifier is given for rows without a sample, or the judge
            raises it.
        BadRowError: a verifier is given and an image cannot be decoded.
    """
    everything = list(cue_rows(source, kind))
    repeated = [sample_id for sample_id, times in Counter(row.id for row in everything).items() if times > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} id(s) are shared by several samples each; the first is {repeated[0]}."
        )
    rows = [row for row in everything if row.text is not None]
    findings = [
        [*_shape(row, kind), *reasoning_findings(_readable(row), row.question), *_answer(row, givens)]
        for row in rows
    ]
    claims: Counter[str] = Counter()
    confirmed: set[int] = set()
    if verifier is not None:
        confirmed |= _verify(rows, findings, claims, verifier)
    if judge is not None:
        confirmed |= _judge(rows, findings, claims, judge)
    if kind == "cue":
        _mark_duplicates(rows, findings, confirmed)
    flags = tuple(
        _flag(row, finding)
        for row, of_row in zip(rows, findings, strict=True)
        for finding in sorted(of_row, key=lambda finding: (finding.start, finding.end, finding.category))
    )
    return Audit(kind, len(everything), len(rows), flags, dict(claims))


def _flag(row: CueRow, finding: Finding) -> Flag:
    return Flag(
        id=row.id,
        category=finding.category,
        severity=finding.severity,
        start=finding.start,
        end=finding.end,
        excerpt=(row.text or "")[finding.start : finding.end],
        reason=finding.reason,
        rule=finding.rule,
    )


def _shape(row: CueRow, kind: TextKind) -> list[Finding]:
    text = row.text or ""
    findings = shape_findings(text, least=MIN_WORDS if kind == "cue" else 1)
    if len(text) > READ and not any(finding.category == "length" for finding in findings):
        reason = f"It has more than {READ} characters, too many to search for leaks."
        findings.append(Finding("length", "definite", "long", 0, len(text), reason))
    return findings


def _readable(row: CueRow) -> str:
    """The text with long runs of digits or spaces masked, at the same length: a model caught in a loop writes
    them, and patterns would try every part of such a run."""
    return _RUN.sub(lambda run: "\0" * len(run.group()), (row.text or "")[:READ])


def _answer(row: CueRow, givens: Givens) -> list[Finding]:
    if not row.answer or not row.text:
        return []
    gold = gold_forms(row.answer, row.question, row.choices)
    return answer_findings(_readable(row), row.question, gold, lambda value: givens(row, value))


def _verify(
    rows: Sequence[CueRow], findings: list[list[Finding]], claims: Counter[str], verifier: Verifier
) -> set[int]:
    """Add the rejected claims; return the rows that have accepted claims and no rejected one."""
    confirmed: set[int] = set()
    for index, row in enumerate(rows):
        if row.sample is None:
            raise ValueError(f"Sample {row.id} has no image, so its cue cannot be verified.")
        sample = row.sample()
        verdicts: set[bool | None] = set()
        for claim in split_claims(row.text or ""):
            verdict = verifier(sample, claim.text)
            verdicts.add(verdict)
            claims[_outcome(verdict)] += 1
            if verdict is False:
                reason = "Rejected by the verifier."
                findings[index].append(
                    Finding("grounding", "definite", "rejected", claim.start, claim.end, reason)
                )
        if True in verdicts and False not in verdicts:
            confirmed.add(index)
    return confirmed


def _judge(
    rows: Sequence[CueRow], findings: list[list[Finding]], claims: Counter[str], judge: Judge
) -> set[int]:
    """Add the judge's findings; return the rows in which the image shows every claim."""
    confirmed: set[int] = set()
    for index, verdict in enumerate(judge(rows)):
        claims[_outcome(None if verdict is None else not verdict.faults)] += 1
        if verdict is not None:
            findings[index] += judged_findings(rows[index].text or "", verdict)
            if "grounding" not in verdict.faults:
                confirmed.add(index)
    return confirmed


def _outcome(verdict: bool | None) -> str:
    return "unknown" if verdict is None else "accepted" if verdict else "rejected"


def _mark_duplicates(rows: list[CueRow], findings: list[list[Finding]], confirmed: set[int]) -> None:
    for duplicate in duplicates(rows):
        # Two images may show the same thing, so a confirmed cue is not at fault.
        if duplicate.index in confirmed:
            continue
        same = "The same" if duplicate.exact else "Nearly the same"
        reason = f"{same} text as the cue of {rows[duplicate.other].id}, but about another image."
        rule = "exact" if duplicate.exact else "near"
        whole = len(rows[duplicate.index].text or "")
        findings[duplicate.index].append(Finding("duplicate", "possible", rule, 0, whole, reason))
