"""Finds cues that are wrong regardless of their content: empty, endless, or the same for different images."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vicur.audit.findings import Finding
from vicur.audit.rows import CueRow

_WORD = re.compile(r"\w+(?:['.]\w+)*|[^\w\s]")
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am)? (?:sorry|(?:cannot|can't|can not|unable to|do not|don't|could not|couldn't) "
    r"(?:\w+ ){0,2}(?:see|view|access|open|process|display|determine|tell|assist|help|provide|answer|"
    r"identify|describe|find|have))|unable to (?:see|view|access|process)|as an ai\b|"
    r"no image (?:was|is|has|provided|attached|found)|"
    r"(?:image|picture|photo) (?:is|was|has|could)(?: not|n't) (?:\w+ )?"
    r"(?:provided|visible|attached|available|loaded|shown|displayed|included)|"
    r"please (?:provide|upload|share|attach)|not able to (?:see|view|access))",
    re.IGNORECASE,
)
MAX_WORDS = 150
"""A cue with more words is too long."""
RUN, MAX_REPEATS = 4, 0.3
"""A cue is a loop if more than this share (0-1) of its runs of RUN words are repeats."""
SIMILARITY, SHINGLE = 0.9, 3
"""Two cues are near-duplicates if their runs of SHINGLE words have at least this Jaccard similarity, 0-1."""
_HASHES, _BANDS = 32, 8


def shape_findings(text: str, *, least: int) -> list[Finding]:
    """Whether a cue is empty, a refusal, a loop, too short or too long.

    Args:
        text: the cue.
        least: minimum number of words.
    """
    words = re.findall(r"\w+", text.casefold())
    whole = (0, len(text))
    findings = []
    if not words:
        return [Finding("degenerate", "definite", "empty", *whole, "It has no words.")]
    if refusal := _REFUSAL.search(text):
        reason = "It says that there is nothing to see, or refuses."
        findings.append(Finding("degenerate", "definite", "refusal", *refusal.span(), reason))
    if len(words) < least:
        reason = f"It has {len(words)} words, fewer than {least}."
        findings.append(Finding("degenerate", "definite", "short", *whole, reason))
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    if len(runs) > RUN:
        repeats = 1 - len(set(runs)) / len(runs)
        if repeats > MAX_REPEATS:
            reason = f"{repeats:.0%} of its runs of {RUN} words are repeats."
            findings.append(Finding("degenerate", "definite", "repeats", *whole, reason))
    size = len(text.split())
    if size > MAX_WORDS:
        reason = f"It has {size} words, more than {MAX_WORDS}."
        findings.append(Finding("length", "definite", "long", *whole, reason))
    return findings


@dataclass(frozen=True)
class Duplicate:
    """Two cues that say the same of different images.

    Attributes:
        index: index of the flagged cue among the rows.
        other: index of another cue that says the same.
        exact: whether the texts are equal except for spaces and case.
    """

    index: int
    other: int
    exact: bool


def duplicates(rows: list[CueRow]) -> list[Duplicate]:
    """Cues that say the same of different images.

    Near-duplicates are found by the minima of hashed shingles in bands, and confirmed against the first cue
    of their bucket alone, so time is linear. Texts with different numbers, letters or
    names of points count as different, however similar they are.

    Args:
        rows: the rows with their texts.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        tokens = tuple(_WORD.findall((row.text or "").casefold()))
        if tokens:
            groups.setdefault(tokens, []).append(index)
    pairs = [
        Duplicate(index, other, True)
        for members in groups.values()
        for index, other in _of_other_images(rows, members)
    ]
    flagged = {duplicate.index for duplicate in pairs}
    for cluster in _clusters([(tokens, members[0]) for tokens, members in groups.items()]):
        members = [index for tokens, _ in cluster for index in groups[tokens]]
        pairs += [
            Duplicate(index, other, False)
            for index, other in _of_other_images(rows, members)
            if index not in flagged
        ]
    return sorted(pairs, key=lambda duplicate: duplicate.index)


def _of_other_images(rows: list[CueRow], members: list[int]) -> Iterable[tuple[int, int]]:
    """Each member with a member of another image; nothing if all have the same image."""
    if len(members) < 2:
        return
    # Without a key, the id replaces it: nothing shows that two such images are the same.
    keys = [rows[index].media_key() or rows[index].id for index in members]
    first = members[0]
    other = next((index for index, key in zip(members, keys, strict=True) if key != keys[0]), None)
    if other is None:
        return
    for index, key in zip(members, keys, strict=True):
        yield index, other if key == keys[0] else first


def _clusters(texts: list[tuple[tuple[str, ...], int]]) -> Iterable[list[tuple[tuple[str, ...], int]]]:
    random = np.random.default_rng(0)
    factors = random.integers(1, 2**31, _HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = random.integers(0, 2**31, _HASHES, dtype=np.uint64)
    leaders: dict[tuple[object, ...], tuple[int, frozenset[int]]] = {}
    clusters: dict[int, list[tuple[tuple[str, ...], int]]] = {}
    for position, (tokens, index) in enumerate(texts):
        words = [token for token in tokens if token[0].isalnum()]
        shingles = frozenset(
            zlib.crc32(" ".join(words[i : i + SHINGLE]).encode())
            for i in range(max(1, len(words) - SHINGLE + 1))
        )
        hashed = np.fromiter(shingles, np.uint64, len(shingles))
        minima = ((hashed[:, None] * factors + offsets) >> np.uint64(16)).min(0).reshape(_BANDS, -1)
        particulars = tuple(sorted(Counter(word for word in words if _is_particular(word)).items()))
        keys = [(particulars, band, minima[band].tobytes()) for band in range(_BANDS)]
        leader = position
        for key in keys:
            if key in leaders:
                place, leader_shingles = leaders[key]
                if len(shingles & leader_shingles) >= SIMILARITY * len(shingles | leader_shingles):
                    leader = place
                    break
        for key in keys:
            leaders.setdefault(key, (position, shingles))
        clusters.setdefault(leader, []).append((tokens, index))
    return (cluster for cluster in clusters.values() if len(cluster) > 1)


def _is_particular(word: str) -> bool:
    """Whether a word is particular to an image: a number or the name of a point."""
    return any(character.isdigit() for character in word) or (len(word) == 1 and word != "a")
