"""Hint leakage: does the student mention a hint that it was never shown?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HINT = re.compile(r"\bhint\b", re.IGNORECASE)


@dataclass(frozen=True)
class HintLeakage:
    """Counts over student rollouts (ViCuR appendix D).

    Attributes:
        samples: responses with the whole word "hint", in any case.
        occurrences: number of occurrences in all of them.
    """

    samples: int = 0
    occurrences: int = 0

    def __add__(self, other: HintLeakage) -> HintLeakage:
        return HintLeakage(self.samples + other.samples, self.occurrences + other.occurrences)


def hint_leakage(texts: Iterable[str]) -> HintLeakage:
    """Count the whole word "hint" in responses."""
    counts = [len(_HINT.findall(text)) for text in texts]
    return HintLeakage(sum(count > 0 for count in counts), sum(counts))
