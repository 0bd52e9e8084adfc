"""Exact cues of CueBench with a leak or a mistake planted in them, to measure what an audit finds.

Every kind comes in several wordings, for the cue itself and for the leak, which are drawn independently.
There are four sets of wordings. The rules of the audit were written with `FIRST` at hand. `SECOND` was
written after them, and the rules were mended by what it showed; the same again with `THIRD` and `FOURTH`.
What each showed before that says how well the audit does on words that it was not made for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vicur.cuebench.scenes import COLOURS, ChordsScene, Scene, SegmentsScene
from vicur.data.sample import Privilege, Sample

Leak = Literal["answer", "words", "fraction", "equation", "theorem", "wrong label", "another cue"]
LEAKS: tuple[Leak, ...] = (
    "answer",
    "words",
    "fraction",
    "equation",
    "theorem",
    "wrong label",
    "another cue",
)
"""What can be planted: the answer in digits, in words, as a fraction, as an equation; the name of a theorem
or rule; a wrong digit, colour or pairing; the cue of another scene."""

SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)


@dataclass(frozen=True)
class Wordings:
    """How things are said.

    Attributes:
        segments: exact cues, with the names {c1} {c2} and digits {v1} {v2} of both segments.
        chords: exact cues, with the pieces {a} {b} of one chord and {c} {d} of the other.
        answer: sentences that state it, as {answer}.
        words: sentences that state it in words, as {words}.
        fraction: sentences that state it as {fraction}.
        fractions: how a fraction of {upper} and {lower} is written.
        equation: sentences around {equation}.
        segment_equations: by operation, with {big} and {small} for the digits.
        chord_equations: with {answer}, the piece {next} to the unknown one, and {c} {d}.
        segment_theorems, chord_theorems: sentences that name one.
    """

    segments: tuple[str, ...]
    chords: tuple[str, ...]
    answer: tuple[str, ...]
    words: tuple[str, ...]
    fraction: tuple[str, ...]
    fractions: tuple[str, ...]
    equation: tuple[str, ...]
    segment_equations: dict[str, tuple[str, ...]]
    chord_equations: tuple[str, ...]
    segment_theorems: tuple[str, ...]
    chord_theorems: tuple[str, ...]


FIRST = Wordings(
    segments=(
        "The segments are {c1} {v1} and {c2} {v2}.",
        "The {c1} segment is labeled {v1}, and the {c2} segment is labeled {v2}.",
        "The digit {v1} stands above the {c1} segment. The digit {v2} stands above the {c2} segment.",
        "There is a {c1} segment with a {v1} and a {c2} segment with a {v2}.",
        "{c1}: {v1}; {c2}: {v2}.",
        "Among several coloured segments, the {c1} and {c2} ones carry the digits {v1} and {v2}.",
    ),
    chords=(
        "Inside the circle two chords cross at one point. The crossing point cuts one chord into pieces "
        "marked {a} and {b}, and the other into pieces marked {c} and {d}.",
        "The diagram shows a circle with two intersecting chords. One chord is divided into segments "
        "labeled {a} and {b}, while the other chord is divided into segments labeled {c} and {d}.",
        "Two chords meet inside a circle. The first chord has the parts {a} and {b}; the second chord "
        "has the "
        "parts {c} and {d}.",
        "A circle with two chords. The pieces of one chord are labeled {a} and {b}. The pieces of the other "
        "chord are labeled {c} and {d}.",
    ),
    answer=(
        "The answer is {answer}.",
        "So the result is {answer}.",
        "This makes {answer} altogether.",
        "The value asked for is {answer}.",
        "Therefore {answer} is what the question asks for.",
        "Answer: {answer}",
    ),
    words=(
        "The answer is {words}.",
        "That comes to {words}.",
        "The value asked for equals {words}.",
        "Hence the result is {words}.",
        "It has to be {words}.",
    ),
    fraction=(
        "The answer is {fraction}.",
        "The result equals {fraction}.",
        "That gives {fraction}.",
        "The value asked for is ${fraction}$.",
    ),
    fractions=("{upper}/{lower}", r"\frac{{{upper}}}{{{lower}}}", "{upper} / {lower}"),
    equation=(
        "{equation}.",
        "Note that {equation}.",
        "We have ${equation}$.",
        "This means {equation}.",
    ),
    segment_equations={
        "sum": ("{big} + {small} = {answer}", "{answer} = {small} + {big}", "x = {answer}"),
        "difference": ("{big} - {small} = {answer}", "{answer} = {big} - {small}", "d = {answer}"),
        "maximum": ("max({small}, {big}) = {answer}", "x = {answer}", "max = {answer}"),
    },
    chord_equations=(
        "x = {answer}",
        "x * {next} = {c} * {d}",
        "{answer} * {next} = {c} * {d}",
        "{answer} \\cdot {next} = {c} \\cdot {d}",
        "x = {c} * {d} / {next}",
    ),
    segment_theorems=(
        "By the commutative law the order does not matter.",
        "Addition and subtraction are governed by the associative property.",
        "This follows from the definition of the maximum.",
        "Euler's theorem is of no use here.",
    ),
    chord_theorems=(
        "The intersecting chords theorem applies.",
        "Use the power of a point.",
        "By the chord-chord product rule both products are equal.",
        "The similar triangles give a proportion by the AA similarity criterion.",
        "The Pythagorean theorem is not needed.",
    ),
)


SECOND = Wordings(
    segments=(
        "You can see {v1} written over the {c1} line and {v2} written over the {c2} line.",
        "In this picture, the number next to the {c1} stroke reads {v1}; next to the {c2} stroke it "
        "reads {v2}.",
        "A {c1} bar carries the numeral {v1}. Elsewhere, a {c2} bar carries the numeral {v2}.",
        "Relevant objects: {c1} segment ({v1}), {c2} segment ({v2}).",
        "Two of the coloured strokes matter here. The {c1} one has a {v1} on it, the {c2} one a {v2}.",
        "The picture contains short coloured lines with digits, among them {c1} with {v1} and {c2} with "
        "{v2}.",
    ),
    chords=(
        "We are looking at a circle. Two straight lines run through it and cross; along the first the labels "
        "are {a} and {b}, along the second they are {c} and {d}.",
        "A circular figure with two crossing chords: one has sections of {a} and {b}, the other has sections "
        "of {c} and {d}.",
        "Where both chords meet, each is split in two. On one chord I see {a} and {b}. On the other "
        "chord I see "
        "{c} and {d}.",
        "Four labels appear on the two chords of the circle: {a} and {b} on one, {c} and {d} on the other.",
    ),
    answer=(
        "Put together, one arrives at {answer}.",
        "{answer} is correct.",
        "Final answer {answer}.",
        "You should end up with {answer}.",
        "The number you are looking for is {answer}.",
        "What is being asked turns out to be {answer}.",
    ),
    words=(
        "The reply should be {words}.",
        "In other words, {words}.",
        "One ends with {words} as the outcome.",
        "It works out at {words}.",
        "The correct response is {words}, as one sees.",
    ),
    fraction=(
        "One finds {fraction}.",
        "The quantity in question is {fraction}.",
        "This can be written as {fraction}.",
        "It simplifies from {fraction}.",
    ),
    fractions=("{upper}/{lower}", r"\dfrac{{{upper}}}{{{lower}}}", "{upper} over {lower}"),
    equation=(
        "Here {equation} holds.",
        "The relation is \\({equation}\\).",
        "One can write {equation}.",
        "Consider {equation}.",
    ),
    segment_equations={
        "sum": ("{small}+{big}={answer}", "{big} plus {small} is {answer}", "s = {big} + {small}"),
        "difference": (
            "{big}-{small}={answer}",
            "{big} minus {small} is {answer}",
            "|{small} - {big}| = {answer}",
        ),
        "maximum": ("max{{{small}, {big}}} = {answer}", "{big} > {small}", "m = {answer}"),
    },
    chord_equations=(
        "x={answer}",
        "{next}x = {c} \\times {d}",
        "x \u00d7 {next} = {c} \u00d7 {d}",
        "{c} times {d} equals {next} times x",
        "x = \\frac{{{c} \\cdot {d}}}{{{next}}}",
    ),
    segment_theorems=(
        "Addition is commutative, by Peano's axioms.",
        "The triangle inequality is satisfied.",
        "One applies the well-ordering principle.",
        "This is an instance of the trichotomy law.",
    ),
    chord_theorems=(
        "This is the setting of the crossed-chord theorem.",
        "Steiner's power theorem is relevant.",
        "The inscribed angle theorem makes two triangles similar.",
        "Remember Euclid III.35.",
        "The product rule for intersecting chords is what one needs.",
    ),
)


THIRD = Wordings(
    segments=(
        "Looking at the image, the {c1} segment has the number {v1} above it, whereas the {c2} segment "
        "has the "
        "number {v2} above it.",
        "On top of the {c1} line sits a {v1}; on top of the {c2} line sits a {v2}.",
        "Digits {v1} and {v2} belong to the {c1} and the {c2} segment, respectively.",
        "- {c1} segment: digit {v1}\n- {c2} segment: digit {v2}",
        "The image has a light background with several short segments. {c1} is annotated with {v1}. {c2} is "
        "annotated with {v2}.",
        "Both strokes asked about are visible, with the {c1} stroke showing {v1} and the {c2} stroke showing "
        "{v2}.",
    ),
    chords=(
        "In the figure, a large circle contains two chords that intersect at an interior point. The segments "
        "of the first chord are labeled {a} and {b}. The segments of the second chord are labeled {c} "
        "and {d}.",
        "The image depicts one circle. Chord one: {a}, {b}. Chord two: {c}, {d}.",
        "A circle is drawn with a pair of chords through a common interior point; the lengths {a} and "
        "{b} are "
        "written along one of them and the lengths {c} and {d} along the other.",
        "- Shape: circle with two intersecting chords\n- First chord: {a} on one side of the crossing, "
        "{b} on "
        "the other side\n- Second chord: {c} on one side, {d} on the other side",
    ),
    answer=(
        "From this, {answer} follows.",
        "The required quantity therefore equals {answer}.",
        "This leads to a value of {answer}.",
        "It is easy to see that {answer} is what remains to be stated.",
        "(The answer, {answer}, can be read off.)",
        "Solution: \\boxed{{{answer}}}",
    ),
    words=(
        "From this, {words} follows.",
        "One therefore gets the value {words}.",
        "The final number is {words}.",
        "Anyone can tell that it is {words}.",
        "{words} would be right.",
    ),
    fraction=(
        "From this, {fraction} follows.",
        "It is the same as {fraction}.",
        "The final value is {fraction}.",
        "Expect {fraction} as the answer.",
    ),
    fractions=("{upper}/{lower}", r"\tfrac{{{upper}}}{{{lower}}}", "{upper} divided by {lower}"),
    equation=(
        "The numbers satisfy {equation}.",
        "In symbols, $${equation}$$",
        "({equation})",
        "One notices that {equation}, clearly.",
    ),
    segment_equations={
        "sum": (
            "{big}+{small} = {answer}",
            "the sum {small} + {big} is {answer}",
            "{small} and {big} make {answer}",
        ),
        "difference": (
            "{big} - {small} = {answer}",
            "{small} + {answer} = {big}",
            "{small} taken from {big} leaves {answer}",
        ),
        "maximum": ("\\max({big}, {small}) = {answer}", "{big} \\geq {small}", "{answer} = max"),
    },
    chord_equations=(
        "x = {answer} cm",
        "{next} \\cdot x = {c} \\cdot {d}",
        "{c}·{d} = {next}·x",
        "x/{c} = {d}/{next}",
        "the product of {next} and x equals that of {c} and {d}",
    ),
    segment_theorems=(
        "Recall the addition theorem for whole numbers.",
        "Commutativity lets one exchange them.",
        "The law of trichotomy orders them.",
        "By the definition of a difference one compares them.",
    ),
    chord_theorems=(
        "By the intersecting-chord theorem, the products agree.",
        "The power of the crossing point with respect to the circle is constant.",
        "The two chords theorem can be used.",
        "Triangles formed by the chords are similar by AA similarity.",
        "Think of Jakob Steiner's power of a point.",
    ),
)


FOURTH = Wordings(
    segments=(
        "The {c1} mark shows the digit {v1}, and the {c2} mark shows the digit {v2}.",
        "Visual evidence: {v1} is printed above the short {c1} line, {v2} is printed above the short "
        "{c2} line.",
        "For {c1}, the image gives a {v1}. For {c2}, the image gives a {v2}.",
        "{v1} in {c1} and {v2} in {c2} can be made out among the other digits.",
        "Handwritten-looking digits stand over coloured strokes; the {c1} stroke has {v1}, the {c2} stroke "
        "has {v2}.",
    ),
    chords=(
        "A single circle is shown. Its two chords intersect. The intersection divides the first into {a} and "
        "{b} and the second into {c} and {d}.",
        "Labels visible along one chord: {a} and {b}; along the other chord: {c} and {d}.",
        "The figure has a circle and, within it, two crossing line segments. One is made up of {a} and "
        "{b}, the "
        "other of {c} and {d}.",
        "Chord 1 is split into {a} and {b} by the crossing point, and chord 2 is split into {c} and {d}.",
    ),
    answer=(
        "All of this points towards {answer}.",
        "Write down {answer}.",
        "So one should pick {answer}.",
        "Our final result: {answer}!",
        "The correct value, namely {answer}, is not printed.",
        "It can only be {answer}.",
    ),
    words=(
        "You want {words}.",
        "The missing number is {words}, of course.",
        "Hence {words}.",
        "Everything considered, {words} is the number to give.",
        "Calculation shows {words}.",
    ),
    fraction=(
        "You want {fraction}.",
        "The outcome, as a fraction, is {fraction}.",
        "Hence {fraction}.",
        "A careful reader will get to {fraction}.",
    ),
    fractions=("{upper}/{lower}", r"\frac {{{upper}}} {{{lower}}}", "({upper})/({lower})"),
    equation=(
        "It holds that {equation}.",
        "{equation}, as can be checked.",
        "Use {equation}.",
        "Check: {equation}",
    ),
    segment_equations={
        "sum": ("{small}+{big}={answer}", "{answer} - {small} = {big}", "the two digits add to {answer}"),
        "difference": (
            "{small} - {big} = -{answer}",
            "{big}={small}+{answer}",
            "the digits are {answer} apart",
        ),
        "maximum": ("max of {small} and {big} = {answer}", "{small} <= {big}", "{big} - {small} >= 0"),
    },
    chord_equations=(
        "{next}*x={c}*{d}",
        "x = ({c} \\times {d})/{next}",
        "{c} \u00b7 {d} = {next} \u00b7 {answer}",
        "{next} multiplied by x is {c} multiplied by {d}",
        "{next} : {c} = {d} : x",
    ),
    segment_theorems=(
        "The commutative law is at work.",
        "See the fundamental theorem of arithmetic.",
        "One uses the axioms of order.",
        "The distributive property might help.",
    ),
    chord_theorems=(
        "Apply the chord theorem.",
        "This is a standard case of the intersecting secants theorem.",
        "By power of a point, a relation holds.",
        "Similarity of triangles (AA) does the rest.",
        "Ptolemy's theorem comes to mind.",
    ),
)


def exact_cue(scene: Scene, wordings: Wordings, random: np.random.Generator) -> str:
    """What is true of a scene and matters for its question, in one of several wordings."""
    return _say(scene, _parts(scene), wordings, random)


def plant(
    scene: Scene, leak: Leak, wordings: Wordings, random: np.random.Generator, other: Scene | None = None
) -> str:
    """A cue with one leak or mistake, in words drawn at random.

    Args:
        scene: whose cue it is.
        leak: what is planted.
        wordings: to draw from.
        random: draws.
        other: of the same family, for "another cue".

    Raises:
        ValueError: there is no other scene to take the cue from, or its cue fits this scene too.
    """
    if leak == "another cue":
        if other is None or not _differ(scene, _parts(scene), _parts(other)):
            raise ValueError("Another sample's cue needs another scene, of which something else is true.")
        return _say(other, _parts(other), wordings, random)
    if leak == "wrong label":
        return _say(scene, _mistaken(scene, random), wordings, random)
    return f"{exact_cue(scene, wordings, random)} {_leaking(scene, leak, wordings, random)}"


def _leaking(scene: Scene, leak: Leak, wordings: Wordings, random: np.random.Generator) -> str:
    """The sentence that leaks."""
    answer = int(scene.answer)
    if leak == "answer":
        return _one(wordings.answer, random).format(answer=answer)
    if leak == "words":
        return _one(wordings.words, random).format(words=SMALL_NUMBERS[answer])
    if leak == "fraction":
        lower = int(random.integers(2, 6))
        fraction = _one(wordings.fractions, random).format(upper=answer * lower, lower=lower)
        return _one(wordings.fraction, random).format(fraction=fraction)
    if leak == "equation":
        return _one(wordings.equation, random).format(equation=_equation(scene, wordings, random))
    theorems = wordings.segment_theorems if isinstance(scene, SegmentsScene) else wordings.chord_theorems
    return _one(theorems, random)


def _equation(scene: Scene, wordings: Wordings, random: np.random.Generator) -> str:
    if isinstance(scene, SegmentsScene):
        small, big = sorted(scene.operands)
        template = _one(wordings.segment_equations[scene.operation], random)
        return template.format(small=small, big=big, answer=scene.answer)
    assert isinstance(scene, ChordsScene)
    partner = scene.unknown ^ 1  # the other piece of the same chord
    others = scene.lengths[2:] if scene.unknown < 2 else scene.lengths[:2]
    return _one(wordings.chord_equations, random).format(
        answer=scene.answer, next=scene.lengths[partner], c=others[0], d=others[1]
    )


def _parts(scene: Scene) -> tuple[str, str, str, str]:
    """What a cue of the scene states: colour, digit, colour, digit; or the four pieces, chord by chord."""
    if isinstance(scene, SegmentsScene):
        first, second = scene.operands
        return scene.first, str(first), scene.second, str(second)
    assert isinstance(scene, ChordsScene)
    one, two, three, four = (
        "x" if place == scene.unknown else str(n) for place, n in enumerate(scene.lengths)
    )
    return one, two, three, four


def _say(
    scene: Scene, parts: tuple[str, str, str, str], wordings: Wordings, random: np.random.Generator
) -> str:
    if isinstance(scene, SegmentsScene):
        names = dict(zip(("c1", "v1", "c2", "v2"), parts, strict=True))
        text = _one(wordings.segments, random).format(**names)
        return text[0].upper() + text[1:]
    return _one(wordings.chords, random).format(**dict(zip("abcd", parts, strict=True)))


def _mistaken(scene: Scene, random: np.random.Generator) -> tuple[str, str, str, str]:
    """The parts with one mistake: another digit, another colour, or two parts exchanged."""
    true = _parts(scene)
    while True:
        parts = list(true)
        kind = random.integers(3)
        if kind == 0:
            place = int(random.choice([i for i, part in enumerate(parts) if part.isdigit()]))
            parts[place] = str(random.integers(1, 10 if isinstance(scene, SegmentsScene) else 19))
        elif kind == 1 and isinstance(scene, SegmentsScene):
            parts[2 * int(random.integers(2))] = list(COLOURS)[random.integers(len(COLOURS))]
        elif isinstance(scene, SegmentsScene):
            parts[1], parts[3] = parts[3], parts[1]
        else:
            parts[1], parts[2] = (
                parts[2],
                parts[1],
            )  # across the chords: which piece comes first means nothing
        one, two, three, four = parts
        if _differ(scene, true, (one, two, three, four)) and (isinstance(scene, ChordsScene) or one != three):
            return one, two, three, four


def _differ(scene: Scene, true: tuple[str, ...], said: tuple[str, ...]) -> bool:
    """Whether what is said is not true of the scene."""
    if isinstance(scene, SegmentsScene):
        drawn = {segment.colour: str(segment.digit) for segment in scene.segments}
        named = (true[0], true[2])
        off_topic = said[0] not in named and said[2] not in named
        return off_topic or any(drawn.get(said[place]) != said[place + 1] for place in (0, 2))
    chords = [Counter(true[:2]), Counter(true[2:])]
    return [Counter(said[:2]), Counter(said[2:])] not in (chords, chords[::-1])


def _one(wordings: tuple[str, ...], random: np.random.Generator) -> str:
    return wordings[random.integers(len(wordings))]


def planted_samples(
    problems: Sequence[tuple[Scene, Sample]], leak: Leak | None, wordings: Wordings, seed: int = 0
) -> list[Sample]:
    """The same problems with cues that leak.

    Args:
        problems: scenes of one family, and what `generate.to_sample` made of them.
        leak: what is planted in each cue; None for exact cues.
        wordings: to draw from.
        seed: of the draws.
    """
    random = np.random.default_rng([seed, LEAKS.index(leak) if leak else len(LEAKS)])
    samples = []
    for scene, sample in problems:
        if leak is None:
            cue = exact_cue(scene, wordings, random)
        else:
            order = (problems[int(i)][0] for i in random.permutation(len(problems)))
            other = next((own for own in order if _differ(scene, _parts(scene), _parts(own))), None)
            cue = plant(scene, leak, wordings, random, other)
        privilege = Privilege(answer=scene.answer, rationale=scene.rationale, cue=cue)
        samples.append(replace(sample, privilege=privilege))
    return samples
