"""Results of an audit: flags, and the rates that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Category = Literal["answer", "reasoning", "grounding", "degenerate", "duplicate", "length"]
"""`answer`: the gold answer is stated. `reasoning`: a step of the solution. `grounding`: a claim that the
image does not support. `degenerate`: text that is not a cue. `duplicate`: the same words about another
image. `length`: too long."""
CATEGORIES: tuple[Category, ...] = ("answer", "reasoning", "grounding", "degenerate", "duplicate", "length")

Severity = Literal["possible", "definite"]
"""`definite`: the cue should be dropped. `possible`: to be checked, or decided by more knowledge (givens, a
verifier)."""


@dataclass(frozen=True)
class Finding:
    """A fault found in a text, before it is assigned to a cue.

    Attributes:
        category, severity: as in `Flag`.
        rule: the broken rule, in a word or two.
        start, end: position of the offending words in the cue, in characters; the whole cue if no
            words in particular are.
        reason: the reason in words.
    """

    category: Category
    severity: Severity
    rule: str
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Flag:
    """One fault of one cue.

    Attributes:
        id: the sample's id.
        category: the kind of fault.
        severity: how definite the fault is.
        start, end: position of the offending words in the cue, in characters.
        excerpt: the offending words.
        reason: the reason in words.
        rule: the rule within its category.
    """

    id: str
    category: Category
    severity: Severity
    start: int
    end: int
    excerpt: str
    reason: str
    rule: str = ""


@dataclass(frozen=True)
class Audit:
    """The flags of all cues.

    Attributes:
        kind: the audited kind of text: "cue", or for comparison "rationale" or "answer".
        samples: number of samples.
        cues: number of samples with that text.
        flags: the flags in the order of the samples.
        claims: number of claims (with a verifier) or cues (with a judge) that were accepted, rejected and
            undecided; empty without either.
    """

    kind: str
    samples: int
    cues: int
    flags: tuple[Flag, ...] = ()
    claims: Mapping[str, int] = field(default_factory=dict)

    def count(self, category: Category | None = None, severity: Severity | None = None) -> int:
        """Number of cues with a flag of this category and severity; None for any."""
        return len(
            {
                flag.id
                for flag in self.flags
                if category in (None, flag.category) and severity in (None, flag.severity)
            }
        )

    def rate(self, category: Category | None = None, severity: Severity | None = None) -> float:
        """`count` as a share of the cues, 0-1; 0 if there are none."""
        return self.count(category, severity) / self.cues if self.cues else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts and rates for JSON, without the flags."""
        rules = Counter(f"{category}/{rule}" for _, category, rule in self._broken())
        return {
            "kind": self.kind,
            "samples": self.samples,
            "cues": self.cues,
            "flagged": self.count(),
            "flagged_definite": self.count(severity="definite"),
            "rate": self.rate(),
            "rate_certain": self.rate(severity="definite"),
            "categories": {
                category: {
                    "cues": self.count(category),
                    "rate": self.rate(category),
                    "definite": self.count(category, "definite"),
                    "rate_certain": self.rate(category, "definite"),
                }
                for category in CATEGORIES
            },
            "rules": dict(sorted(rules.items())),
            "claims": dict(self.claims),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per flag, for writing."""
        return [asdict(flag) for flag in self.flags]

    def table(self) -> str:
        """The rates by category, as markdown."""
        lines = ["| category | flagged | rate | definite | rate |", "|---|---:|---:|---:|---:|"]
        named: list[tuple[str, Category | None]] = [(name, name) for name in CATEGORIES]
        for name, category in [*named, ("any", None)]:
            numbers = [self.count(category), self.rate(category)]
            numbers += [self.count(category, "definite"), self.rate(category, "definite")]
            lines.append("| {} | {} | {:.2%} | {} | {:.2%} |".format(name, *numbers))
        return "\n".join(lines)

    def _broken(self) -> set[tuple[str, str, str]]:
        """Each broken rule once per cue: a text that breaks one ten times is one bad cue."""
        return {(flag.id, flag.category, flag.rule) for flag in self.flags}


def drop(audit: Audit, *, possible: bool = False) -> frozenset[str]:
    """The ids of the samples that should lose their cue.

    Args:
        audit: the audit of the cues.
        possible: also drop cues that only have possible faults.
    """
    return frozenset(flag.id for flag in audit.flags if possible or flag.severity == "definite")
