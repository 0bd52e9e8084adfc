"""The audit itself: every cue through every check."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vicur.audit.answers import answer_findings, gold_forms
from vicur.audit.findings import CATEGORIES, Audit, Category, Finding, Flag
from vicur.audit.givens import DEFAULT_GIVENS, Givens
from vicur.audit.grounding import Claim, Verifier, split_claims
from vicur.audit.reasoning import reasoning_findings
from vicur.audit.rows import Column, CueRow, cue_rows
from vicur.audit.shape import duplicates, shape_findings
from vicur.data.sample import Sample
from vicur.data.sources import FileSource

READ = 4000
"""Characters of a cue that are read for leaks. A longer one is flagged for that, so nothing slips through."""
_RUN = re.compile(r"[0-9]{25,}|\s{25,}")
Reply = TypeVar("Reply")
Rows = FileSource | Iterable[CueRow] | Iterable[Sample]


@dataclass(frozen=True)
class AuditConfig:
    """What is looked for in cues."""

    column: Column = "cue"
    """The text to audit. Rationales and answers leak by nature: their rates are there to compare kinds."""
    checks: tuple[Category, ...] = CATEGORIES
    """The categories to look for."""
    tolerance: float = 1e-6
    """Numbers are equal if they differ by at most this, relative to the gold answer."""
    min_words: int = 3
    """A cue with fewer is degenerate."""
    max_words: int = 150
    """A cue with more is over-long."""
    max_tokens: int | None = None
    """The same bound in tokens, in the place of `max_words`; it takes a function that counts them."""
    repeat_ngram: int = 4
    """Words in a run that should not come again."""
    repeat_share: float = 0.3
    """A cue is degenerate if more of its runs than this are repeats, 0-1."""
    similarity: float = 0.9
    """Jaccard similarity of word triples from which two cues are near-duplicates; 1 for equal ones only."""
    concurrency: int = 16
    """Questions to a model at the same time."""

    def __post_init__(self) -> None:
        unknown = [check for check in self.checks if check not in CATEGORIES]
        if unknown:
            raise ValueError(f"checks has {unknown[0]}, which is none of {', '.join(CATEGORIES)}.")
        for name in ("min_words", "max_words", "repeat_ngram", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        for name in ("repeat_share", "similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and below 1, not {self.tolerance}.")


def audit_cues(
    source: Rows,
    config: AuditConfig | None = None,
    givens: Givens | None = None,
    verifier: Verifier | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Audit:
    """Look for all that is wrong with the cues of a source.

    Not to be called where an event loop runs already, if `givens` or `verifier` have to be waited for.

    Args:
        source: a file's samples, samples in memory, or rows.
        config: what to look for.
        givens: knows which values are drawn; what the question and the data's own lists say if not given.
        verifier: looks at the image; without one no claim is checked.
        count_tokens: tokens of a text, for `max_tokens`.

    Raises:
        ValueError: `max_tokens` is set without `count_tokens`, two samples have one id, or a verifier is
            given for rows without a sample.
        BadRowError: a verifier is given and an image cannot be decoded.
    """
    config = config or AuditConfig()
    if config.max_tokens is not None and count_tokens is None:
        raise ValueError("max_tokens is set, but there is no function that counts tokens; use max_words.")
    everything = list(cue_rows(source, config.column))
    repeated = [own for own, times in Counter(row.id for row in everything).items() if times > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} id(s) stand for several samples, the first is {repeated[0]}.")
    rows = [row for row in everything if row.text is not None]
    findings: list[list[Finding]] = [
        [*_shape(row, config, count_tokens), *_reasoning(row, config)] for row in rows
    ]
    if "answer" in config.checks:
        for found, leaks in zip(findings, _answers(rows, config, givens or DEFAULT_GIVENS), strict=True):
            found += leaks
    claims: Counter[str] = Counter()
    confirmed: set[int] = set()
    if verifier is not None and "grounding" in config.checks:
        confirmed = _ground(rows, findings, claims, verifier, config.concurrency)
    if "duplicate" in config.checks and config.column == "cue":
        _mark_duplicates(rows, findings, confirmed, config)
    flags = tuple(
        Flag(row.id, one.category, one.severity, one.start, one.end, _excerpt(row, one), one.reason, one.rule)
        for row, found in zip(rows, findings, strict=True)
        for one in sorted(found, key=lambda finding: (finding.start, finding.end, finding.category))
    )
    return Audit(config.column, len(everything), len(rows), flags, dict(claims))


def _shape(row: CueRow, config: AuditConfig, count: Callable[[str], int] | None) -> list[Finding]:
    in_tokens = config.max_tokens is not None
    found = shape_findings(
        row.text or "",
        # An answer is short by nature.
        least=config.min_words if config.column == "cue" else 1,
        most=config.max_tokens if config.max_tokens is not None else config.max_words,
        unit="tokens" if in_tokens else "words",
        count=count if in_tokens else None,
        ngram=config.repeat_ngram,
        share=config.repeat_share,
    )
    if len(row.text or "") > READ and not any(finding.category == "length" for finding in found):
        reason = f"It has more than {READ} characters, too many to be read for leaks."
        found.append(Finding("length", "certain", "long", 0, len(row.text or ""), reason))
    return [finding for finding in found if finding.category in config.checks]


def _readable(row: CueRow) -> str:
    """The text with endless runs of digits or spaces blotted out, place by place: a model that hangs writes
    them, and patterns would try every part of such a run."""
    return _RUN.sub(lambda run: "\0" * len(run.group()), (row.text or "")[:READ])


def _reasoning(row: CueRow, config: AuditConfig) -> list[Finding]:
    return reasoning_findings(_readable(row), row.question) if "reasoning" in config.checks else []


def _answers(rows: Sequence[CueRow], config: AuditConfig, givens: Givens) -> list[list[Finding]]:
    """The leaks of every row. Values that somebody has to be asked about are asked about together."""
    waiting: dict[tuple[str, str], Awaitable[bool | int | None]] = {}
    settled: dict[tuple[str, str], bool | int | None] = {}

    def look_up(row: CueRow, value: str) -> bool | int | None:
        key = (row.id, value)
        if key not in settled and key not in waiting:
            known = givens(row, value)
            if known is None or isinstance(known, int):
                settled[key] = known
            else:
                waiting[key] = known
        return settled.get(key)

    def look(row: CueRow) -> list[Finding]:
        if not row.answer or not row.text:
            return []
        gold = gold_forms(row.answer, row.question, row.choices)
        return answer_findings(
            _readable(row), row.question, gold, lambda value: look_up(row, value), config.tolerance
        )

    found = [look(row) for row in rows]
    if waiting:
        keys = list(waiting)
        replies = asyncio.run(_together([waiting[key] for key in keys], config.concurrency))
        settled.update(zip(keys, replies, strict=True))
        asked = {own for own, _ in keys}
        found = [look(row) if row.id in asked else leaks for row, leaks in zip(rows, found, strict=True)]
    return found


def _ground(
    rows: Sequence[CueRow],
    findings: list[list[Finding]],
    counts: Counter[str],
    verifier: Verifier,
    concurrency: int,
) -> set[int]:
    """Add what was rejected; return the rows of which everything was accepted."""
    confirmed: set[int] = set()
    step = 64 * concurrency  # rows whose images are open at the same time
    for start in range(0, len(rows), step):
        asked: list[tuple[int, Claim]] = []
        verdicts: list[bool | None] = []
        waiting: list[tuple[int, Awaitable[bool | None]]] = []
        for index in range(start, min(start + step, len(rows))):
            row = rows[index]
            if row.sample is None:
                raise ValueError(f"Sample {row.id} has no image at hand, so its cue cannot be verified.")
            sample = row.sample()
            for claim in split_claims(row.text or ""):
                verdict = verifier(sample, claim.text)
                asked.append((index, claim))
                if verdict is None or isinstance(verdict, bool):
                    verdicts.append(verdict)
                else:
                    waiting.append((len(verdicts), verdict))
                    verdicts.append(None)
        if waiting:
            replies = asyncio.run(_together([verdict for _, verdict in waiting], concurrency))
            for (place, _), reply in zip(waiting, replies, strict=True):
                verdicts[place] = reply
        told: dict[int, list[bool | None]] = {}
        for (index, claim), verdict in zip(asked, verdicts, strict=True):
            told.setdefault(index, []).append(verdict)
            counts["unknown" if verdict is None else "accepted" if verdict else "rejected"] += 1
            if verdict is False:
                reason = "Rejected by the verifier."
                findings[index].append(
                    Finding("grounding", "certain", "rejected", claim.start, claim.end, reason)
                )
        confirmed.update(index for index, own in told.items() if True in own and False not in own)
    return confirmed


def _mark_duplicates(
    rows: list[CueRow], findings: list[list[Finding]], confirmed: set[int], config: AuditConfig
) -> None:
    for duplicate in duplicates(rows, config.similarity):
        # Two images may show the same: what a verifier confirmed of both is no fault.
        if duplicate.index in confirmed:
            continue
        same = "the same" if duplicate.exact else "nearly the same"
        reason = f"The cue of {rows[duplicate.other].id} says {same} of another image."
        rule = "exact" if duplicate.exact else "near"
        whole = len(rows[duplicate.index].text or "")
        findings[duplicate.index].append(Finding("duplicate", "possible", rule, 0, whole, reason))


def _excerpt(row: CueRow, finding: Finding) -> str:
    return (row.text or "")[finding.start : finding.end]


async def _together(replies: Sequence[Awaitable[Reply]], concurrency: int) -> list[Reply]:
    """Wait for all, so many at a time."""
    free = asyncio.Semaphore(concurrency)

    async def one(reply: Awaitable[Reply]) -> Reply:
        async with free:
            return await reply

    return list(await asyncio.gather(*(one(reply) for reply in replies)))
