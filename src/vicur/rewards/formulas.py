"""Finds the last whole formula of a text: `2\\sqrt{7}`, never just its 7."""

from __future__ import annotations

import re

from vicur.rewards.notation import is_balanced
from vicur.rewards.numbers import NUMBER, SCALES
from vicur.rewards.units import leading_unit

_FUNCTIONS = r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|pi|sqrt|arcsin|arccos|arctan)(?![A-Za-z])"
_TOKEN = re.compile(
    r"(?P<span>\$\$[^$]+\$\$|\$[^$\n]+\$|\\\((?:[^\\]|\\(?![()]))+\\\)|\\\[(?:[^\\]|\\(?![\[\]]))+\\\])"
    rf"|(?P<number>{NUMBER})"
    rf"|(?P<command>\\[A-Za-z]+|\\[%{{}}|,!;: ])|(?P<function>{_FUNCTIONS})"
    r"|(?P<word>[^\W\d_]{2,})|(?P<letter>[^\W\d_])"
    r"|(?P<sign>[-+*/^=<>!_(){}\[\]|:,%&~.'$])|(?P<space>[ \t]+)|(?P<other>.|\n)"
)
_JOINED = re.compile(r"[\s,]*(?:and|or)\s+")
_SCALE = re.compile(rf"\s+(?:{'|'.join(SCALES)})\b", re.IGNORECASE)
_ENUMERATION = re.compile(r"(?:^|\n)[ \t]*(?:step\s+)?$", re.IGNORECASE)
_REFERENCE = re.compile(
    r"\b(?:step|figure|fig\.?|image|table|question|problem|case|method|equation|eq\.?)\s*\(?$", re.I
)
_COMPARED = re.compile(
    r"(?:\b(?:than|not|isn't|n't|except|below|under|exceeds?|versus|vs\.?)|不是)"
    r"\s+(?:equal to\s+)?(?:the \w+\s+)?$",
    re.IGNORECASE,
)
"""Words before a number that something is compared with, so that it is not an answer."""
_PARTS = re.compile(
    r"\s+(?:dozens?|half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth)s?|more|less)\b",
    re.IGNORECASE,
)
"""Words after a number that show that it is not an answer: "3 dozen", "2 thirds"."""
_BOX = re.compile(r"\\[bf]?(?:boxed|box)")
"""A box that the response did not close."""
_LONGEST = 4000


def last_formula(text: str) -> tuple[int, str] | None:
    """The start and the text of the last formula; None if there is none.

    A number with its unit is a formula, and so is a list joined by "and". A number that is part of a word, as
    in "2nd", is not.
    """
    text = text[-_LONGEST:]
    runs = _merged(text, [_with_unit(text, *run) for run in _runs(text)])
    for start, end in reversed(runs):
        formula = _trimmed(text[start:end])
        start += text[start:end].index(formula)
        torn = (start > 0 and text[start - 1].isalnum()) or (end < len(text) and _continues(text, end))
        compared = _COMPARED.search(text[max(0, start - 40) : start]) or _PARTS.match(text, end)
        if formula and not torn and not compared and not _counts_steps(text, start, end):
            return (start, formula) if is_balanced(formula) and not _BOX.search(formula) else None
    return None


def only_formula(text: str) -> str | None:
    """The formula of a text that has exactly one; otherwise None."""
    formula = last_formula(text)
    return formula[1] if formula is not None and last_formula(text[: formula[0]]) is None else None


def _runs(text: str) -> list[tuple[int, int]]:
    """Stretches of numbers, commands, signs and single letters."""
    runs: list[tuple[int, int]] = []
    start: int | None = None
    solid = False  # whether the run holds a number, a command or a formula between dollar signs
    end = 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind in ("word", "other") or (kind == "letter" and _is_word(text, token.start())):
            if start is not None and solid:
                runs.append((start, end))
            start, solid = None, False
            continue
        if kind == "space":
            continue
        start = token.start() if start is None else start
        solid = solid or kind in ("number", "command", "span", "function")
        end = token.end()
    if start is not None and solid:
        runs.append((start, end))
    return runs


def _is_word(text: str, place: int) -> bool:
    """Whether a single letter is a word: "a" or "I", with no operator beside it."""
    before, after = text[max(0, place - 2) : place], text[place + 1 : place + 3]
    return (
        before.strip() == before[:-1].strip()
        and not re.search(r"[-+*/^=<>_\\(|]\s?$", before)
        and not re.match(r"\s?[-+*/^=<>_\\)|]|[0-9(\[]", after)
        and not before[-1:].isalnum()
    )


def _with_unit(text: str, start: int, end: int) -> tuple[int, int]:
    trimmed = len(text[start:end].rstrip(" .,;:"))
    stop = start + trimmed
    tail = text[stop : stop + 80]
    if stop == end:
        while scale := _SCALE.match(tail):
            stop += scale.end()
            tail = text[stop : stop + 80]
        if unit := leading_unit(tail):
            return start, stop + unit
    return start, max(end, stop)


def _merged(text: str, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in runs:
        if merged and start - merged[-1][1] < 12 and _JOINED.fullmatch(text[merged[-1][1] : start]):
            merged[-1] = (merged[-1][0], end)
        elif merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _trimmed(formula: str) -> str:
    formula = re.sub(r"^[-*+]\s+(?=\S)|^[\s=:,.*>&~/|)\]}!%]+", "", formula.strip())
    formula = formula.rstrip(" \t=:,;.*<&~|!([{") if not formula.endswith("\\{") else formula
    for left, right in ("()", "[]", "{}"):
        if formula.count(right) > formula.count(left):
            formula = formula.rstrip(right + " .") if formula.endswith(right) else formula
        if formula.count(left) > formula.count(right) and formula.startswith(left):
            formula = formula.lstrip(left + " ")
    return formula if re.search(r"[0-9\\A-Za-z$]", formula) else ""


def _continues(text: str, end: int) -> bool:
    return text[end].isalpha() and text[end].isascii() and text[end - 1].isalnum()


def _counts_steps(text: str, start: int, end: int) -> bool:
    """Whether a number only counts the steps or figures of an explanation."""
    if not text[start:end].strip(" .:)").isdigit():
        return False
    before = text[max(0, start - 24) : start]
    numbered = _ENUMERATION.search(before) and re.match(
        r"[.):]*\s+[A-Za-z]", text[start:end][-2:].lstrip("0123456789") + text[end : end + 3]
    )
    return bool(numbered and text[end - 1] in ".:)") or _REFERENCE.search(before) is not None
