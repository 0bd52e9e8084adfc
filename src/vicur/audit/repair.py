"""Requests leaking cues again, with a remark on what was wrong but without the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vicur.audit.answers import gold_forms
from vicur.audit.findings import CATEGORIES, Category, Flag
from vicur.audit.rows import CueRow, cue_rows
from vicur.audit.run import audit_cues
from vicur.cues.settings import BuildConfig
from vicur.cues.summary import BuildSummary
from vicur.data.sources import FileSource

# Fixed sentences, because an excerpt of the rejected cue would contain the answer that it leaked.
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
Build = Callable[[BuildConfig, Mapping[str, str]], BuildSummary]
"""Builds cues, with remarks to the model by problem id."""


def build_repaired(
    config: BuildConfig, rounds: int, build: Build, report: Callable[[int], None] | None = None
) -> BuildSummary:
    """Build cues, audit them, and request those again that are certainly faulty.

    Args:
        config: settings of the build.
        rounds: maximum number of repair rounds.
        build: builds the cues, as `vicur.cues.build.build_cues` does.
        report: called with the number of faulty cues before each round.

    Raises:
        ValueError: raised by the build.
    """
    summary = build(config, {})
    remarks: dict[str, str] = {}
    for number in range(1, rounds + 1):
        faulty = {} if summary.output is None else corrections(summary.output, config)
        if not faulty:
            break
        if report is not None:
            report(len(faulty))
        # A cue that an earlier round repaired keeps its remark, or its first reply would come back. One that
        # is still faulty gets another remark, or the same reply would be taken from the store.
        again = f" (Correction {number}.)" if number > 1 else ""
        remarks |= {sample_id: remark + again for sample_id, remark in faulty.items()}
        summary = build(config, remarks)
    return summary


def corrections(built: Path, config: BuildConfig) -> dict[str, str]:
    """Remarks to the model about each cue that is certainly faulty."""
    columns = config.data.columns | {"cue": config.new_column or "cue"}
    source = FileSource(built, image_dir=config.data.image_dir, columns=columns, bad_rows="skip")
    definite: dict[str, list[Flag]] = {}
    for flag in audit_cues(source).flags:
        if flag.severity == "definite":
            definite.setdefault(flag.id, []).append(flag)
    return {
        row.id: correction(definite[row.id], row) for row in cue_rows(source, "cue") if row.id in definite
    }


def correction(flags: Iterable[Flag], row: CueRow) -> str:
    """A remark on what was wrong with a cue, which never contains its answer.

    If a sentence happens to contain the answer, such as "image", a shorter one is used, or none.

    Args:
        flags: the findings about this cue.
        row: the row of its sample.
    """
    gold = gold_forms(row.answer, row.question, row.choices) if row.answer else None
    forbidden = [row.answer.strip(), *(gold.texts if gold else ())] if row.answer else []
    broken = {flag.category for flag in flags}
    notes = []
    for category in CATEGORIES:
        if category in broken:
            clean = (note for note in _NOTES[category] if not any(_holds(note, text) for text in forbidden))
            notes.append(next(clean, ""))
    return " ".join(note for note in notes if note)


def _holds(note: str, answer: str) -> bool:
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", note, re.IGNORECASE) is not None
