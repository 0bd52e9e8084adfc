"""Exact cues of CueBench with a leak or a mistake planted in them, to measure what an audit finds.

Every kind comes in several wordings, for the cue itself and for the leak, which are drawn independently.
There are five sets of wordings, a YAML file each. The audit's rules were first developed on `first`. Each of
`second`, `third` and `fourth` was written after the rules, which were then improved on it; the result before
that improvement shows how well the audit does on unseen wordings. After `fifth` was written, rules were only
removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from vicur.cuebench.scenes import COLOURS, ChordsScene, Scene, SegmentsScene
from vicur.data.sample import Privilege, Sample
from vicur.rewards.numbers import ONES

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


@dataclass(frozen=True)
class Wordings:
    """The wordings of cues and leaks.

    Attributes:
        segments: exact cues, with the names {c1} {c2} and digits {v1} {v2} of both segments.
        chords: exact cues, with the pieces {a} {b} of one chord and {c} {d} of the other.
        answer: sentences that state the answer as {answer}.
        words: sentences that state the answer in words, as {words}.
        fraction: sentences that state the answer as {fraction}.
        fractions: how a fraction of {upper} and {lower} is written.
        equation: sentences around {equation}.
        segment_equations: by operation, with {big} and {small} for the digits.
        chord_equations: with {answer}, the piece {next} to the unknown one, and {c} {d}.
        segment_theorems, chord_theorems: sentences that name a theorem or rule.
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


SETS = ("first", "second", "third", "fourth", "fifth")


def load_wordings(name: str) -> Wordings:
    """The set of wordings of this name, from its YAML file."""
    text = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = yaml.safe_load(text)
    by_operation = {key: tuple(each) for key, each in lists.pop("segment_equations").items()}
    return Wordings(segment_equations=by_operation, **{key: tuple(each) for key, each in lists.items()})


def exact_cue(scene: Scene, wordings: Wordings, random: np.random.Generator) -> str:
    """A correct cue of a scene, in a wording drawn at random."""
    return _say(scene, _parts(scene), wordings, random)


def plant(
    scene: Scene, leak: Leak, wordings: Wordings, random: np.random.Generator, other: Scene | None = None
) -> str:
    """A cue with one leak or mistake, in wordings drawn at random.

    Args:
        scene: the scene of the cue.
        leak: what is planted.
        wordings: wordings to draw from.
        random: random number generator.
        other: another scene of the same family, for "another cue".

    Raises:
        ValueError: there is no other scene, or its cue fits this scene too.
    """
    if leak == "another cue":
        if other is None or not _differ(scene, _parts(scene), _parts(other)):
            raise ValueError("Another sample's cue needs another scene whose cue does not fit this one.")
        return _say(other, _parts(other), wordings, random)
    if leak == "wrong label":
        return _say(scene, _mistaken(scene, random), wordings, random)
    return f"{exact_cue(scene, wordings, random)} {_leaking(scene, leak, wordings, random)}"


def _leaking(scene: Scene, leak: Leak, wordings: Wordings, random: np.random.Generator) -> str:
    """The sentence that leaks."""
    answer = int(scene.answer)
    if leak == "answer":
        return _choose(wordings.answer, random).format(answer=answer)
    if leak == "words":
        return _choose(wordings.words, random).format(words=ONES[answer])
    if leak == "fraction":
        lower = int(random.integers(2, 6))
        fraction = _choose(wordings.fractions, random).format(upper=answer * lower, lower=lower)
        return _choose(wordings.fraction, random).format(fraction=fraction)
    if leak == "equation":
        return _choose(wordings.equation, random).format(equation=_equation(scene, wordings, random))
    theorems = wordings.segment_theorems if isinstance(scene, SegmentsScene) else wordings.chord_theorems
    return _choose(theorems, random)


def _equation(scene: Scene, wordings: Wordings, random: np.random.Generator) -> str:
    if isinstance(scene, SegmentsScene):
        small, big = sorted(scene.operands)
        template = _choose(wordings.segment_equations[scene.operation], random)
        return template.format(small=small, big=big, answer=scene.answer)
    assert isinstance(scene, ChordsScene)
    partner = scene.unknown ^ 1  # the other piece of the same chord
    others = scene.lengths[2:] if scene.unknown < 2 else scene.lengths[:2]
    return _choose(wordings.chord_equations, random).format(
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
        text = _choose(wordings.segments, random).format(**names)
        return text[0].upper() + text[1:]
    return _choose(wordings.chords, random).format(**dict(zip("abcd", parts, strict=True)))


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
            )  # across the chords: the order within a chord means nothing
        one, two, three, four = parts
        if _differ(scene, true, (one, two, three, four)) and (isinstance(scene, ChordsScene) or one != three):
            return one, two, three, four


def _differ(scene: Scene, true: tuple[str, ...], stated: tuple[str, ...]) -> bool:
    """Whether the stated parts do not fit the scene."""
    if isinstance(scene, SegmentsScene):
        drawn = {segment.colour: str(segment.digit) for segment in scene.segments}
        named = (true[0], true[2])
        off_topic = stated[0] not in named and stated[2] not in named
        return off_topic or any(drawn.get(stated[place]) != stated[place + 1] for place in (0, 2))
    chords = [Counter(true[:2]), Counter(true[2:])]
    return [Counter(stated[:2]), Counter(stated[2:])] not in (chords, chords[::-1])


def _choose(wordings: tuple[str, ...], random: np.random.Generator) -> str:
    return wordings[random.integers(len(wordings))]


def planted_samples(
    problems: Sequence[tuple[Scene, Sample]], leak: Leak | None, wordings: Wordings, seed: int = 0
) -> list[Sample]:
    """The same problems with cues that leak.

    Args:
        problems: scenes of one family, with their samples from `generate.to_sample`.
        leak: what is planted in each cue; None for exact cues.
        wordings: wordings to draw from.
        seed: seed of the draws.
    """
    random = np.random.default_rng([seed, LEAKS.index(leak) if leak else len(LEAKS)])
    samples = []
    for scene, sample in problems:
        if leak is None:
            cue = exact_cue(scene, wordings, random)
        else:
            order = (problems[int(i)][0] for i in random.permutation(len(problems)))
            other = next((each for each in order if _differ(scene, _parts(scene), _parts(each))), None)
            cue = plant(scene, leak, wordings, random, other)
        privilege = Privilege(answer=scene.answer, rationale=scene.rationale, cue=cue)
        samples.append(replace(sample, privilege=privilege))
    return samples
