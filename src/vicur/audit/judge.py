"""A model as judge of cues: one question per cue, with its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vicur.audit.findings import Category, Finding
from vicur.audit.rows import CueRow
from vicur.cues.parsing import json_objects

_KEYS: dict[Category, str] = {
    "answer": "states_answer",
    "reasoning": "solution_step",
    "grounding": "not_in_image",
}
_REASONS: dict[Category, str] = {
    "answer": "According to the judge, it states the answer.",
    "reasoning": "According to the judge, it takes a step of the solution.",
    "grounding": "According to the judge, the image does not show it.",
}
_CLEAN = frozenset({"", "none", "no", "false", "null", "n/a"})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in _KEYS.values()},
    "required": list(_KEYS.values()),
    "additionalProperties": False,
}
"""JSON schema of a reply."""


@dataclass(frozen=True)
class Verdict:
    """The faults that a judge finds in a cue.

    Attributes:
        faults: the offending words by category; "" if they are not quoted. Only categories with a fault.
    """

    faults: dict[Category, str]


Judge = Callable[[Sequence[CueRow]], Sequence[Verdict | None]]
"""Judges cues: a verdict for each row, None if there is none."""


def judge_question(row: CueRow, most: int) -> str:
    """The question about one cue. It contains the gold answer.

    Args:
        row: the cue with its problem.
        most: maximum number of characters of the cue to show.
    """
    return f"""\
Below are a question about the image, its correct answer, and a description of the image. The description \
may say what can be seen and matters for the question: labels, numbers, colours, positions. It may not state \
the answer, take a step of the solution, or claim what the image does not show.

Question: {row.question}
Correct answer: {row.answer or "(not known)"}
Description: {(row.text or "")[:most]}

Reply with one JSON object and nothing else:
{{"states_answer": "...", "solution_step": "...", "not_in_image": "..."}}

"states_answer": the words of the description that give away the correct answer, in any form (digits, words, \
a fraction, an option's letter). A label that is written in the image and only read out is no such \
statement, even if it equals the answer.
"solution_step": the words that name a theorem or rule, calculate, write an equation, or draw a conclusion.
"not_in_image": the words that claim something the image does not show. Check every label, number, colour \
and position.
Copy the words exactly. Where there are none, give an empty string."""


def parse_verdict(reply: str) -> Verdict | None:
    """The verdict in a model's reply; None if the reply has no such JSON object."""
    for _, value in json_objects(reply):
        if all(key in value for key in _KEYS.values()):
            words = {category: _words(value[key]) for category, key in _KEYS.items()}
            return Verdict({category: text for category, text in words.items() if text is not None})
    return None


def judged_findings(text: str, verdict: Verdict) -> list[Finding]:
    """The findings of a verdict, at the words that it quotes, or on the whole cue if it lacks these words."""
    findings = []
    for category, words in verdict.faults.items():
        start = text.casefold().find(words.casefold()) if words else -1
        inside = start >= 0 and len(text.casefold()) == len(text)
        span = (start, start + len(words)) if inside else (0, len(text))
        findings.append(Finding(category, "definite", "judged", *span, _REASONS[category]))
    return findings


def _words(value: Any) -> str | None:
    """The offending words of one key; "" if they are not quoted, None if there is no fault."""
    if isinstance(value, str):
        words = value.strip()
        return None if words.strip(".").casefold() in _CLEAN else words
    return "" if value else None
