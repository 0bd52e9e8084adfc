"""Does a cue say more than what can be seen? Leaks, claims that the image does not bear out, and junk.

report = audit_cues(source, AuditConfig())
gone = drop(report)
"""

from vicur.audit.findings import Audit, Category, Flag, Severity, drop
from vicur.audit.givens import AskedGivens, BoxGivens, FirstOf, Givens, QuestionGivens, RelatedGivens
from vicur.audit.grounding import Ask, ModelVerifier, Verifier, split_claims
from vicur.audit.repair import Repair, correction, repair
from vicur.audit.rows import CueRow, cue_rows
from vicur.audit.run import AuditConfig, audit_cues

__all__ = [
    "Ask",
    "AskedGivens",
    "Audit",
    "AuditConfig",
    "BoxGivens",
    "Category",
    "CueRow",
    "FirstOf",
    "Flag",
    "Givens",
    "ModelVerifier",
    "QuestionGivens",
    "RelatedGivens",
    "Repair",
    "Severity",
    "Verifier",
    "audit_cues",
    "correction",
    "cue_rows",
    "drop",
    "repair",
    "split_claims",
]
