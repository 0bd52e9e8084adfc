"""Verifies a cue's claims about a CueBench image against the scene that the image was drawn from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from vicur.audit.values import find_values
from vicur.audit.visible import counts_something, counts_visible
from vicur.cuebench.boxes import cue_boxes
from vicur.cuebench.scenes import COLOURS, Scene, SegmentsScene
from vicur.data.sample import Sample

_COLOUR = re.compile(rf"\b(?:{'|'.join(COLOURS)})\b", re.IGNORECASE)
_UNKNOWN = re.compile(r"(?<![\w'])x(?![\w'])")
_FORMULA = re.compile(r"[=+*\u00d7·]|\s-\s|\\")
_PAPER = re.compile(r"\s*(?:background|paper|ink|digits?\b|circle|outline|canvas)")
_TWO_CHORDS = re.compile(
    r"\b(?:one|first|other|second|another|remaining|chord (?:[12]|one|two))\b", re.IGNORECASE
)
_LABEL_BEFORE = re.compile(
    r"(?:label\w*|marked|reads?|carr(?:y|ies)|digits?|numerals?|numbers?|value|shows?|is|:)\s+(?:an? |the )?"
    r"(?:digit |number )?[\"']?(?:\w+ and )?$",
    re.IGNORECASE,
)
_PIECE = re.compile(
    r"\b(?:chord|piece|part|segment|section|label|mark|length|measure|written|reads?)", re.IGNORECASE
)
_CHORD = re.compile(r"\bchord", re.IGNORECASE)


@dataclass(frozen=True)
class CueBenchVerifier:
    """Extracts colours, digits and pieces of chords from a claim, in any wording that keeps related words
    together.

    Without the scene, only the sample's `cue_boxes` are known. They list what its question is about, so a
    digit on any other segment is rejected: it can neither be confirmed nor matter for the question.

    Attributes:
        scenes: scenes by the sample's id, if available.
    """

    scenes: Mapping[str, Scene] = field(default_factory=dict)

    def __call__(self, sample: Sample, claim: str) -> bool | None:
        """Whether the claim matches the image; None if nothing in it can be checked."""
        boxes = [(name, value) for name, value, _ in cue_boxes(sample)]
        if not boxes:
            return None
        if any("chord" in name for name, _ in boxes):
            return _chords(boxes, claim)
        scene = self.scenes.get(sample.id)
        if isinstance(scene, SegmentsScene):
            return _segments({s.colour: str(s.digit) for s in scene.segments}, claim, True)
        return _segments(dict(boxes), claim, False)


def _segments(drawn: Mapping[str, str], claim: str, complete: bool) -> bool | None:
    colours, pairs = _paired(claim)
    if any(drawn.get(colour) != value for colour, value in pairs):
        return False
    if complete and any(colour not in drawn for colour in colours):
        return False
    return True if pairs else None


def _paired(claim: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The colours in a claim, and the pairs of colour and digit that it states."""
    tokens = [
        (match.start(), "colour", match.group().lower())
        for match in _COLOUR.finditer(claim)
        if not _PAPER.match(claim, match.end())
    ]
    tokens += [(start, "digit", word) for start, word in _labels(claim, unknown=False)]
    runs = [
        (kind, [word for *_, word in group])
        for kind, group in groupby(sorted(tokens), lambda token: token[1])
    ]
    if runs and runs[0][0] == "digit" and any(kind == "colour" for kind, _ in runs):
        pairing = zip(runs[1::2], runs[0::2], strict=False)  # "4 on cyan and 5 on pink"
    else:
        pairing = zip(runs[0::2], runs[1::2], strict=False)  # "cyan 4 and pink 5"
    pairs = []
    for (_, colours), (_, digits) in pairing:
        # With more colours than digits, the last colours are the ones next to the digits.
        pairs += list(zip(colours[-len(digits) :], digits, strict=False))
    return [word for _, kind, word in tokens if kind == "colour"], pairs


def _chords(boxes: list[tuple[str, str]], claim: str) -> bool | None:
    pieces: dict[str, list[str]] = {}
    for name, value in boxes:
        pieces.setdefault(name, []).append(value)
    drawn = [Counter(values) for values in pieces.values()]
    labels = [label for _, label in _labels(claim, unknown=True)]
    if not labels:
        return None
    if len(labels) >= 4 and _TWO_CHORDS.search(claim):
        first, second = Counter(labels[:2]), Counter(labels[2:4])
        return [first, second] in (drawn, drawn[::-1])
    if len(labels) == 2 and _CHORD.search(claim):
        return Counter(labels) in drawn
    if not _PIECE.search(claim):
        return None  # "the answer is 6" says nothing about what is drawn
    everything = sum(drawn, Counter())
    return all(everything[label] >= count for label, count in Counter(labels).items())


def _labels(claim: str, unknown: bool) -> list[tuple[int, str]]:
    """Labels that a claim reads from the image, with their positions. Counts ("two chords") and computed
    values are left out."""
    formula = _FORMULA.search(claim)
    if formula:
        return []
    labels = [
        (value.start, f"{value.number:g}")
        for value in find_values(claim)
        if not (counts_something(claim, value) or counts_visible(claim, value))
        and not (value.in_words and not _reads(claim, value.start))
    ]
    if unknown:
        labels += [(match.start(), "x") for match in _UNKNOWN.finditer(claim)]
    return sorted(labels)


def _reads(claim: str, start: int) -> bool:
    """Whether a number word is read off a label: "marked four", but not "the other one"."""
    return _LABEL_BEFORE.search(claim, max(0, start - 40), start) is not None
