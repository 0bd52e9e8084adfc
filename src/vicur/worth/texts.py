"""The text that a teacher is shown for a problem: its own, another problem's, or an alternative."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from vicur.data.sample import Privilege, Sample, TextKind
from vicur.data.sources import FileSource
from vicur.data.views import privileged_texts
from vicur.data.written import parse_if_written


def with_text(sample: Sample, kind: TextKind, text: str) -> Sample:
    """The problem with this text as its only privilege."""
    texts: dict[str, Any] = {kind: text}
    return replace(sample, privilege=Privilege(**texts))


def outline(samples: Sequence[Sample], index: int) -> Sample:
    """A problem to read texts from; a file's media are not decoded."""
    return samples.outline(index) if isinstance(samples, FileSource) else samples[index]


def text_of(sample: Sample, kind: TextKind) -> str | None:
    """The sample's own text of a kind; None if it is missing or empty."""
    text = privileged_texts(sample).get(kind, "").strip()
    return text or None


def several_texts(sample: Sample, kind: TextKind) -> tuple[str, ...]:
    """A problem's alternative texts of one kind, from its column `cues`, `rationales` or `answers`.

    The column holds a list of texts, or such a list as JSON. Equal texts are kept: draws of z may repeat,
    and an estimate without the repeats would be about another distribution.

    Raises:
        ValueError: the column holds anything else.
    """
    listed = sample.meta.get(f"{kind}s")
    if listed is None:
        return ()
    listed = parse_if_written(listed)
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) for text in listed):
        raise ValueError(
            f"Sample {sample.id}: {kind}s must be a list of texts (or that list as JSON) to estimate "
            "information from."
        )
    return tuple(text for text in listed if text.strip())


def others(keys: Sequence[str], texts: Sequence[str], seed: int) -> list[int]:
    """For every text, the index of a different text: a derangement that does not depend on their order.

    Equal texts (up to spaces) form a group; groups and their members are ordered by seed, texts and keys
    alone. Each problem gets the text as many positions later as the largest group has members, so never its
    own or an equal text, and each text is used once. If more than half of the texts are equal, there is no
    such permutation, and the problems with these share the other texts in turn.

    Args:
        keys: ids, all different.
        texts: one for each key.
        seed: seed of the derangement.

    Returns:
        for each text an index into `texts`.

    Raises:
        ValueError: all texts are equal.
    """
    plain = [" ".join(text.split()) for text in texts]
    order = sorted(
        range(len(texts)), key=lambda i: (_rank(seed, "text", plain[i]), plain[i], _rank(seed, "id", keys[i]))
    )
    groups = [list(group) for _, group in groupby(order, key=lambda i: plain[i])]
    if len(groups) < 2:
        raise ValueError(
            f"All {len(texts)} texts are the same, so no problem has a different text to show. Leave "
            "out the shuffled control, or measure more problems."
        )
    largest = max(groups, key=len)
    partners = [0] * len(texts)
    if 2 * len(largest) <= len(order):
        for place, i in enumerate(order):
            partners[i] = order[(place + len(largest)) % len(order)]
        return partners
    rest = [i for i in order if plain[i] != plain[largest[0]]]
    for place, i in enumerate(largest):
        partners[i] = rest[place % len(rest)]
    for place, i in enumerate(rest):
        partners[i] = largest[place]
    return partners


def _rank(seed: int, what: str, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{what}/{text}".encode(), digest_size=8).digest()
