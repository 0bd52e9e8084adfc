"""Ask again for the cues that leak, saying what was wrong, and never what the answer is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from vicur.audit.answers import gold_forms
from vicur.audit.findings import CATEGORIES, Audit, Category, Flag
from vicur.audit.givens import Givens
from vicur.audit.grounding import Ask, Verifier
from vicur.audit.rows import CueRow, cue_rows
from vicur.audit.run import AuditConfig, Rows, audit_cues
from vicur.data.sample import Sample

# Fixed sentences: an excerpt of the rejected cue would hold the very answer that it leaked.
_NOTES: dict[Category, tuple[str, ...]] = {
    "answer": (
        "Your previous description gave away what the question asks for. Describe only what can be read or "
        "seen, and leave out everything that has to be worked out.",
        "Your previous description gave too much away.",
    ),
    "reasoning": (
        "Your previous description took steps towards a solution. Name no theorem or rule, write no equation "
        "and no calculation, and draw no conclusion.",
        "Your previous description went beyond observation.",
    ),
    "grounding": (
        "Your previous description claimed something that the image does not show. Check every label, "
        "number, colour and position against the image.",
        "Your previous description was inaccurate.",
    ),
    "degenerate": (
        "Your previous description was not usable. Write complete sentences about what is visible.",
        "Your previous description was unusable.",
    ),
    "duplicate": (
        "Your previous description would fit other images as well. Say what is particular to this image.",
        "Your previous description was too general.",
    ),
    "length": (
        "Your previous description was too long. Keep to what matters for the question.",
        "Your previous description was lengthy.",
    ),
}
_REQUEST = (
    "Describe what is visible in the image and matters for the question below: labels, numbers, colours, and "
    "what stands where. Do not solve it."
)


@dataclass(frozen=True)
class Repair:
    """What asking again brought.

    Attributes:
        texts: the new cue of each sample that got a clean one.
        given_up: samples whose cue was still flagged after the last attempt.
        requests: how often the model was asked.
    """

    texts: dict[str, str]
    given_up: tuple[str, ...]
    requests: int


def correction(flags: Iterable[Flag], row: CueRow) -> str:
    """The sentences that say what was wrong with a cue, without any word of its answer.

    Where a sentence would use a word of the answer by chance (an answer may be "image"), a shorter one is
    taken, or none.

    Args:
        flags: of this cue.
        row: its sample's.
    """
    gold = gold_forms(row.answer, row.question, row.choices) if row.answer else None
    forbidden = [row.answer.strip(), *(gold.texts if gold else ())] if row.answer else []
    broken = {flag.category for flag in flags}
    said = []
    for category in CATEGORIES:
        if category in broken:
            clean = (note for note in _NOTES[category] if not any(_holds(note, text) for text in forbidden))
            said.append(next(clean, ""))
    return " ".join(note for note in said if note)


def default_request(row: CueRow) -> str:
    """What to ask where nothing else is said: for a description of what matters for the question."""
    return f"{_REQUEST}\n\nQuestion: {row.question}"


def repair(
    source: Rows,
    audit: Audit,
    ask: Ask,
    config: AuditConfig | None = None,
    *,
    givens: Givens | None = None,
    verifier: Verifier | None = None,
    count_tokens: Callable[[str], int] | None = None,
    request: Callable[[CueRow], str] = default_request,
    attempts: int = 3,
    possible: bool = False,
) -> Repair:
    """Ask again for each flagged cue, audit what comes, and give up after some attempts.

    All cues of an attempt are asked for together. Where possible leaks do not count, a new cue may have them.

    Args:
        source: the same as was audited.
        audit: of these cues.
        ask: shows a sample's media and a text to the model, and gives its reply.
        config, givens, verifier, count_tokens: as of `audit_cues`, for the new cues.
        request: what was asked at first; the correction is put behind it.
        attempts: at most.
        possible: also mend what is only a possible fault.

    Raises:
        ValueError: fewer attempts than 1, or a flagged row has no sample.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}.")
    config = config or AuditConfig()
    flags = {own: _counting(found, possible) for own, found in audit.by_sample().items()}
    rows = {row.id: row for row in cue_rows(source, config.column) if flags.get(row.id)}
    taken = {_same(row.text) for row in rows.values()}
    open_flags = {own: flags[own] for own in rows}
    texts: dict[str, str] = {}
    requests = 0
    for _ in range(attempts):
        if not open_flags:
            break
        replies = _ask_all(
            ask,
            [
                (rows[own], _joined(request(rows[own]), correction(found, rows[own])))
                for own, found in open_flags.items()
            ],
            config.concurrency,
        )
        requests += len(replies)
        new = [replace(rows[own], text=reply.strip()) for own, reply in zip(open_flags, replies, strict=True)]
        again = audit_cues(new, config, givens, verifier, count_tokens).by_sample()
        for row in new:
            found = _counting(again.get(row.id, []), possible)
            if not found and _same(row.text) not in taken:
                texts[row.id] = row.text or ""
                taken.add(_same(row.text))
                del open_flags[row.id]
            elif found:
                open_flags[row.id] = found
    return Repair(texts, tuple(open_flags), requests)


def _counting(flags: list[Flag], possible: bool) -> list[Flag]:
    return [flag for flag in flags if possible or flag.severity == "certain"]


def _joined(request: str, note: str) -> str:
    return f"{request}\n\n{note}" if note else request


def _ask_all(ask: Ask, requests: list[tuple[CueRow, str]], concurrency: int) -> list[str]:
    async def everything() -> list[str]:
        free = asyncio.Semaphore(concurrency)

        async def one(row: CueRow, text: str) -> str:
            async with free:
                reply = ask(_sample(row), text)
                return reply if isinstance(reply, str) else await reply

        return list(await asyncio.gather(*(one(row, text) for row, text in requests)))

    return asyncio.run(everything())


def _sample(row: CueRow) -> Sample:
    if row.sample is None:
        raise ValueError(f"Sample {row.id} has no image at hand, so its cue cannot be asked for again.")
    return row.sample()


def _holds(note: str, answer: str) -> bool:
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", note, re.IGNORECASE) is not None


def _same(text: str | None) -> str:
    return " ".join((text or "").split()).casefold()
