"""Scene graphs that draw and describe themselves.

Each family is one frozen class: from the same fields it derives the image, the
question, the answer, the cue, the rationale, the solution and the pixel boxes of
what the cue names, so these cannot disagree.

Families:
    `SegmentsScene`: coloured segments, each labelled with a digit, 64 x 64 pixels.
    `ChordsScene`: two chords that cross inside a circle, 224 x 224 pixels; the
        example of ViCuR's figure 1.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vicur.cuebench.draw import (
    Box,
    Colour,
    Label,
    Point,
    Stroke,
    label_box,
    rasterise,
    stroke_box,
)


@dataclass(frozen=True)
class CueBox:
    """The place in the image of something that the cue names.

    Attributes:
        name: its name in the cue, e.g. "red".
        value: the value to read there, e.g. "7".
        box: (left, top, right, bottom) in pixels.
    """

    name: str
    value: str
    box: Box


@runtime_checkable
class Scene(Protocol):
    """The interface of every family of problems."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def cue(self) -> str: ...
    @property
    def rationale(self) -> str: ...
    @property
    def solution(self) -> str: ...
    def draw(self) -> Image.Image: ...
    def cue_boxes(self) -> list[CueBox]: ...
    def key(self) -> str: ...


COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "green": (40, 150, 50),
    "blue": (35, 75, 205),
    "orange": (245, 135, 20),
    "purple": (130, 45, 175),
    "cyan": (25, 180, 205),
    "pink": (240, 110, 190),
    "brown": (120, 70, 40),
    "black": (25, 25, 25),
}

# Each digit as polylines in a box of width 1 and height 1, y pointing down.
DIGIT_STROKES: dict[int, tuple[tuple[Point, ...], ...]] = {
    0: (((0.5, 0.0), (0.95, 0.2), (0.95, 0.8), (0.5, 1.0), (0.05, 0.8), (0.05, 0.2), (0.5, 0.0)),),
    1: (((0.2, 0.25), (0.55, 0.0), (0.55, 1.0)),),
    2: (((0.05, 0.2), (0.5, 0.0), (0.95, 0.25), (0.05, 1.0), (0.95, 1.0)),),
    3: (((0.05, 0.0), (0.95, 0.0), (0.45, 0.42), (0.95, 0.7), (0.5, 1.0), (0.05, 0.9)),),
    4: (((0.75, 1.0), (0.75, 0.0), (0.05, 0.68), (1.0, 0.68)),),
    5: (((0.9, 0.0), (0.15, 0.0), (0.1, 0.45), (0.6, 0.4), (0.95, 0.7), (0.5, 1.0), (0.05, 0.9)),),
    6: (((0.8, 0.0), (0.2, 0.35), (0.05, 0.75), (0.5, 1.0), (0.95, 0.75), (0.5, 0.5), (0.1, 0.65)),),
    7: (((0.05, 0.0), (0.95, 0.0), (0.35, 1.0)),),
    8: (
        ((0.5, 0.0), (0.9, 0.22), (0.1, 0.72), (0.5, 1.0)),
        ((0.5, 1.0), (0.9, 0.72), (0.1, 0.22), (0.5, 0.0)),
    ),
    9: (((0.9, 0.35), (0.5, 0.5), (0.05, 0.25), (0.5, 0.0), (0.95, 0.25), (0.8, 0.65), (0.2, 1.0)),),
}

Operation = Literal["sum", "difference", "maximum"]
OPERATIONS: tuple[Operation, ...] = ("sum", "difference", "maximum")


def scene_hash(content: object) -> str:
    """64-bit hash, in hex, of a JSON-able description: equal scenes have equal hashes."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class SegmentsStyle:
    """Settings for how hard a segments image is to read."""

    objects: tuple[int, int] = (4, 6)
    """Fewest and most segments in a scene."""
    background: Colour = (250, 250, 250)
    """RGB of the paper."""
    noise: float = 34.0
    """Standard deviation of the pixel noise, in units of 1/255."""
    jitter: float = 1.2
    """Largest shift of a digit from its place, in pixels."""
    break_probability: float = 0.07
    """Chance that a piece of stroke about two pixels long is missing."""
    fading: float = 0.54
    """Fading of the inks towards the paper, 0-1."""


PRETRAINING = SegmentsStyle(noise=30.0, jitter=1.0, break_probability=0.05, fading=0.0)
"""The difficulty that the tiny student was pretrained on: fresh ink. Training and test problems are written
in ink that has faded by half, so the student starts there with about half of the answers right."""
IN_DOMAIN = SegmentsStyle()
OUT_OF_DOMAIN = SegmentsStyle(
    objects=(7, 8), background=(226, 220, 200), noise=38.0, break_probability=0.08, fading=0.48
)


@dataclass(frozen=True)
class Segment:
    """One coloured segment with its digit.

    Attributes:
        colour: a key of `COLOURS`.
        digit: 1-9.
        cell: 0-15, row-major on the 4 x 4 grid of 16-pixel cells. A cell is one visual
            token of the tiny models (patch 8, merge 2).
        shift: displacement of the digit, in pixels.
        tilt: height difference of the segment's ends, in pixels.
    """

    colour: str
    digit: int
    cell: int
    shift: Point
    tilt: float


@dataclass(frozen=True)
class SegmentsScene:
    """Coloured segments labelled with digits; the question asks for a sum, difference or maximum of two."""

    segments: tuple[Segment, ...]
    operation: Operation
    first: str
    second: str
    style: SegmentsStyle
    noise_seed: int

    SIZE = 64
    CELL = 16

    @classmethod
    def sample(cls, random: np.random.Generator, style: SegmentsStyle) -> SegmentsScene:
        """Draw a scene. The answer is drawn first and uniformly within its operation.

        The question's text therefore says nothing about the answer: the best text-only guess is
        right once in 17 sums, 9 differences and 9 maxima.
        """
        operation = OPERATIONS[random.integers(3)]
        pairs = _pairs_by_answer(operation)
        answers = sorted(pairs)
        candidates = pairs[answers[random.integers(len(answers))]]
        asked = candidates[random.integers(len(candidates))]
        count = int(random.integers(style.objects[0], style.objects[1] + 1))
        colours = [list(COLOURS)[i] for i in random.permutation(len(COLOURS))[:count]]
        cells = random.permutation(16)[:count]
        digits = [*asked, *(int(d) for d in random.integers(1, 10, count - 2))]
        segments = tuple(
            Segment(
                colour=colour,
                digit=digit,
                cell=int(cell),
                shift=(
                    float(random.uniform(-style.jitter, style.jitter)),
                    float(random.uniform(-style.jitter, style.jitter)) / 2,
                ),
                tilt=float(random.uniform(-1.5, 1.5)),
            )
            for colour, digit, cell in zip(colours, digits, cells, strict=True)
        )
        noise_seed = int(random.integers(2**31))
        return cls(segments, operation, colours[0], colours[1], style, noise_seed)

    def segment(self, colour: str) -> Segment:
        """The segment of that colour."""
        return next(segment for segment in self.segments if segment.colour == colour)

    @property
    def operands(self) -> tuple[int, int]:
        """The digits of the two segments that the question names, in its order."""
        return self.segment(self.first).digit, self.segment(self.second).digit

    @property
    def question(self) -> str:
        pair = f"{self.first} and {self.second}"
        return {
            "sum": f"What is the sum of {pair}?",
            "difference": f"What is the difference between {pair}?",
            "maximum": f"What is the maximum of {pair}?",
        }[self.operation]

    @property
    def answer(self) -> str:
        return str(_compute(self.operation, *self.operands))

    @property
    def cue(self) -> str:
        a, b = self.operands
        return f"The segments are {self.first} {a} and {self.second} {b}."

    @property
    def rationale(self) -> str:
        return f"{self._equation()}, so the answer is {self.answer}."

    @property
    def solution(self) -> str:
        """A correct response: first what is read from the image, then the arithmetic."""
        a, b = self.operands
        return (
            f"I read {self.first} {a} and {self.second} {b}. {self._equation()}. The answer is {self.answer}."
        )

    @property
    def listing(self) -> str:
        """Every segment with its digit, in reading order."""
        ordered = sorted(self.segments, key=lambda segment: segment.cell)
        return "I read " + ", ".join(f"{s.colour} {s.digit}" for s in ordered) + "."

    def key(self) -> str:
        content = [(s.colour, s.digit, s.cell) for s in self.segments]
        return scene_hash(["segments", sorted(content), self.operation, self.first, self.second])

    def draw(self) -> Image.Image:
        strokes = [stroke for segment in self.segments for stroke in self._strokes(segment)]
        return rasterise(
            strokes,
            size=self.SIZE,
            background=self.style.background,
            noise=self.style.noise,
            break_probability=self.style.break_probability,
            seed=self.noise_seed,
        )

    def cue_boxes(self) -> list[CueBox]:
        named = [self.segment(self.first), self.segment(self.second)]
        return [CueBox(s.colour, str(s.digit), stroke_box(self._strokes(s), size=self.SIZE)) for s in named]

    def _equation(self) -> str:
        a, b = self.operands
        return {
            "sum": f"{a} + {b} = {self.answer}",
            "difference": f"{max(a, b)} - {min(a, b)} = {self.answer}",
            "maximum": f"max {a} {b} = {self.answer}",
        }[self.operation]

    def _strokes(self, segment: Segment) -> list[Stroke]:
        left = segment.cell % 4 * self.CELL
        top = segment.cell // 4 * self.CELL
        colour = self._ink(segment.colour)
        x0, y0 = left + 4.5 + segment.shift[0], top + 2.0 + segment.shift[1]
        strokes = [
            Stroke(tuple((x0 + 6.5 * x, y0 + 8.5 * y) for x, y in line), colour, width=1.3)
            for line in DIGIT_STROKES[segment.digit]
        ]
        ends = (
            (left + 2.5, top + 13.6 - segment.tilt / 2),
            (left + 13.5, top + 13.6 + segment.tilt / 2),
        )
        return [*strokes, Stroke(ends, colour, width=1.8)]

    def _ink(self, name: str) -> Colour:
        fading = self.style.fading
        red, green, blue = (
            round((1 - fading) * ink + fading * paper)
            for ink, paper in zip(COLOURS[name], self.style.background, strict=True)
        )
        return red, green, blue


def _compute(operation: Operation, a: int, b: int) -> int:
    return {"sum": a + b, "difference": abs(a - b), "maximum": max(a, b)}[operation]


@functools.cache
def _pairs_by_answer(operation: Operation) -> dict[int, list[tuple[int, int]]]:
    """The digit pairs that give each possible answer."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for a in range(1, 10):
        for b in range(1, 10):
            pairs.setdefault(_compute(operation, a, b), []).append((a, b))
    return pairs


@dataclass(frozen=True)
class ChordsScene:
    """Two chords AB and CD of a circle that cross at P: PA * PB = PC * PD; the question asks for one length.

    Attributes:
        lengths: (PA, PB, PC, PD), whole numbers with PA * PB = PC * PD.
        unknown: 0-3, which of the four is written as x.
        angle: angle of the first chord, in radians.
        noise: standard deviation of the pixel noise, in units of 1/255.
        noise_seed: seed of the noise.
    """

    lengths: tuple[int, int, int, int]
    unknown: int
    angle: float
    noise: float
    noise_seed: int

    SIZE = 224
    RADIUS = 92.0

    @classmethod
    def sample(cls, random: np.random.Generator, *, noise: float = 6.0) -> ChordsScene:
        """Draw lengths up to 18 whose two chords really fit into one circle."""
        while True:
            a, b, c = (int(n) for n in random.integers(2, 13, 3))
            product = a * b
            if product % c or not 2 <= product // c <= 18 or {a, b} == {c, product // c}:
                continue
            scene = cls(
                lengths=(a, b, c, product // c),
                unknown=int(random.integers(4)),
                angle=float(random.uniform(0, math.tau)),
                noise=noise,
                noise_seed=int(random.integers(2**31)),
            )
            if min(map(math.dist, *_consecutive(scene._label_points()))) > 24:
                return scene

    @property
    def _texts(self) -> list[str]:
        return ["x" if i == self.unknown else str(n) for i, n in enumerate(self.lengths)]

    @property
    def question(self) -> str:
        return "Two chords of the circle cross. Find the length x."

    @property
    def answer(self) -> str:
        return str(self.lengths[self.unknown])

    @property
    def cue(self) -> str:
        a, b, c, d = self._texts
        return (
            "Inside the circle two chords cross at one point. The crossing point cuts one chord "
            f"into pieces marked {a} and {b}, and the other into pieces marked {c} and {d}."
        )

    @property
    def rationale(self) -> str:
        a, b, c, d = self._texts
        return f"By the intersecting chords theorem {a} * {b} = {c} * {d}, so x = {self.answer}."

    @property
    def solution(self) -> str:
        a, b, c, d = self._texts
        return (
            f"One chord has the pieces {a} and {b}, the other {c} and {d}. "
            f"{a} * {b} = {c} * {d}. The answer is {self.answer}."
        )

    def key(self) -> str:
        return scene_hash(["chords", self.lengths, self.unknown, round(self.angle, 3)])

    def draw(self) -> Image.Image:
        ink = (20, 20, 30)
        centre = (self.SIZE / 2, self.SIZE / 2)
        turn = np.linspace(0, math.tau, 120)
        circle = tuple(
            (centre[0] + self.RADIUS * math.cos(t), centre[1] + self.RADIUS * math.sin(t)) for t in turn
        )
        a, b, c, d = self._ends()
        strokes = [Stroke(circle, ink, 2.0), Stroke((a, b), ink, 2.0), Stroke((c, d), ink, 2.0)]
        return rasterise(
            strokes,
            size=self.SIZE,
            background=(252, 252, 252),
            labels=self._labels(),
            noise=self.noise,
            seed=self.noise_seed,
        )

    def cue_boxes(self) -> list[CueBox]:
        names = ("first chord", "first chord", "second chord", "second chord")
        return [
            CueBox(name, label.text, label_box(label))
            for name, label in zip(names, self._labels(), strict=True)
        ]

    def _labels(self) -> list[Label]:
        points = self._label_points()
        return [Label(t, p, (20, 20, 30), 15.0) for t, p in zip(self._texts, points, strict=True)]

    def _ends(self) -> tuple[Point, Point, Point, Point]:
        """End points A, B, C, D in pixels of a circle that has chords of exactly these lengths.

        With P at distance h from the centre, PA * PB = R^2 - h^2 for every chord through P;
        chord AB has its middle (PA - PB)/2 away from P, so it makes an angle with the line from
        the centre to P whose cosine is (PA - PB) / 2h. The circle is 1.1 times the smallest that
        fits, or has h = 0.35 sqrt(PA * PB) if that is more, so that P is well off the centre. That
        determines R and both directions.
        """
        pa, pb, pc, pd = (float(n) for n in self.lengths)
        half_difference = max(abs(pa - pb), abs(pc - pd)) / 2
        h = max(1.1 * half_difference, 0.35 * math.sqrt(pa * pb))
        radius = math.sqrt(pa * pb + h * h)
        scale = self.RADIUS / radius
        p = (
            self.SIZE / 2 + h * scale * math.cos(self.angle),
            self.SIZE / 2 + h * scale * math.sin(self.angle),
        )

        def ends(near: float, far: float, side: float) -> tuple[Point, Point]:
            # The chord's middle lies towards the centre's foot point: shift (near - far) / 2 along it.
            direction = self.angle + side * math.acos((far - near) / (2 * h))
            ux, uy = math.cos(direction), math.sin(direction)
            return (
                (p[0] + near * scale * ux, p[1] + near * scale * uy),
                (p[0] - far * scale * ux, p[1] - far * scale * uy),
            )

        return (*ends(pa, pb, 1.0), *ends(pc, pd, -1.0))

    def _label_points(self) -> list[Point]:
        """Positions beside the middle of each piece, away from the nearer end of the other chord."""
        ends = self._ends()
        p = _crossing(*ends)
        points = []
        for end in ends:
            dx, dy = end[0] - p[0], end[1] - p[1]
            length = math.hypot(dx, dy)
            middle = (p[0] + 0.55 * dx, p[1] + 0.55 * dy)
            points.append((middle[0] - 11 * dy / length, middle[1] + 11 * dx / length))
        return points


def _crossing(a: Point, b: Point, c: Point, d: Point) -> Point:
    """The intersection of the lines AB and CD."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = a, b, c, d
    denominator = (bx - ax) * (dy - cy) - (by - ay) * (dx - cx)
    t = ((cx - ax) * (dy - cy) - (cy - ay) * (dx - cx)) / denominator
    return ax + t * (bx - ax), ay + t * (by - ay)


def _consecutive(points: list[Point]) -> tuple[list[Point], list[Point]]:
    """All pairs of points, as two parallel lists."""
    pairs = [(p, q) for i, p in enumerate(points) for q in points[i + 1 :]]
    return [p for p, _ in pairs], [q for _, q in pairs]
