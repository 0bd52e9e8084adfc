"""Audit of cues: leaks, claims that the image contradicts, and junk.

report = audit_cues(source)
gone = drop(report)
"""

from vicur.audit.findings import Audit, Category, Flag, Severity, drop
from vicur.audit.givens import Givens, default_givens, listed_givens, question_givens
from vicur.audit.grounding import Verifier, split_claims
from vicur.audit.judge import Judge, Verdict
from vicur.audit.rows import CueRow, cue_rows
from vicur.audit.run import audit_cues

__all__ = [
    "Audit",
    "Category",
    "CueRow",
    "Flag",
    "Givens",
    "Judge",
    "Severity",
    "Verdict",
    "Verifier",
    "audit_cues",
    "cue_rows",
    "default_givens",
    "drop",
    "listed_givens",
    "question_givens",
    "split_claims",
]
