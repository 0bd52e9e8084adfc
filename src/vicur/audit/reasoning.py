"""Steps of a solution in a cue: theorems, equations, arithmetic, and obvious words of a derivation."""

from __future__ import annotations

import re
from importlib import resources

from vicur.audit.findings import Finding, Severity
from vicur.rewards.numbers import SMALL_WORDS

_THEOREMS = (resources.files("vicur.audit") / "theorems.txt").read_text(encoding="utf-8").split("\n")
_THEOREM = re.compile(rf"\b(?:{'|'.join(filter(None, _THEOREMS))})", re.IGNORECASE)
"""Names that only a solution uses: a regular expression per line of the file."""

_OPERATION = "add|subtract|multiply|divide|solve|substitute|compute|calculate|evaluate|simplify"
_DERIVATION = re.compile(
    r"\b(?:therefore|hence|thus|consequently|it follows|implies|implying|so (?:x|y|we|it|this|that)|"
    r"adding|subtracting|multiplying|dividing|solving|substituting|computing|calculating|simplifying)\b"
    r"|\b(?:products?|sums?|ratios?) (?:of|are|on|from) [^.;\n]{0,60}?(?:equal|the same|match|agree)"
    rf"|(?:(?:^|[.;:!?]\s+)|\b(?:then|and|first|must|to) )(?P<command>{_OPERATION})\b",
    re.IGNORECASE,
)
_TERM = (
    r"(?:[-\u2212]?[0-9]+(?:\.[0-9]+)?(?:°|\\circ|%)?[A-Za-z]?(?![A-Za-z])|\\[a-z]+\s*\{[^{}]*\}(?:\{[^{}]*\})?|"
    r"(?<![A-Za-z])(?:[a-z]|[A-Z]{1,3})(?![A-Za-z'])|\([^()\n]{1,40}\)|√\s*\w+|(?:sin|cos|tan|max|min|sqrt)\s*"
    r"(?:\([^()\n]{1,40}\)|\w{1,5}))(?:\s*\^\s*\{?\w+\}?|[²³])?"
)
_OPERATOR = (
    r"(?:\s*[+*·\u00d7÷∙]\s*|\s+[-\u2212/x:]\s+|\s*\\(?:times|cdot|div|pm)\s*|\s+(?:plus|minus|times)\s+|/)"
)
_SUM = rf"{_TERM}(?:{_OPERATOR}{_TERM})*"
_EQUATION = re.compile(
    rf"(?P<left>{_SUM})\s*(?P<sign>[=<>≈≤≥]|\\(?:approx|leq?|geq?)|equals|is equal to)\s*(?P<right>{_SUM})"
)
_ARITHMETIC = re.compile(
    r"(?<![\w.])[0-9]+(?:\.[0-9]+)?(?:\s*[+*·\u00d7÷∙]\s*|\s+[-\u2212]\s+|\s*\\(?:times|cdot|div)\s*)"
    r"(?:[0-9]+(?:\.[0-9]+)?|[a-z])(?![\w.]\w)"
)
_OPERAND = rf"(?:[0-9]+|[a-z]|{'|'.join(SMALL_WORDS)})"
_SPOKEN = re.compile(
    rf"\b{_OPERAND}\s+(?:plus|minus|times|multiplied by|divided by|added to|subtracted from|less)"
    rf"\s+{_OPERAND}\b",
    re.IGNORECASE,
)
_POWERS = re.compile(r"(?<![A-Za-z])[a-zA-Z](?:\^\{?2\}?|²)\s*[-+]\s*[a-zA-Z](?:\^\{?2\}?|²)")
_HAS_OPERATOR = re.compile(
    r"[+*·\u00d7÷∙²³^√]|\s[-\u2212/x:]\s|[0-9a-z]\s*/\s*[0-9a-z]|\\|\b(?:plus|minus|times)\b"
)
_QUOTED = re.compile(
    r"(?:label(?:l?ed|s)?|marked|written|reads?|shows?|printed|says?|titled|inscribed|expression|function|line|"
    r"graph|curve|equation|given)(?:\s+(?:as|with|is|the|of|by|equation|expression|line|function|label))*"
    r"[\s:\"'`$(]*$",
    re.IGNORECASE,
)


def reasoning_findings(text: str, question: str) -> list[Finding]:
    """The steps of a solution that a cue takes: theorems by name, equations, arithmetic,
    and obvious words of a derivation.

    Words of the question itself do not count. A formula that the cue reports as written in the image
    ("labeled 2x + 5 = y") is only a possible leak. Other words of a derivation are left to a judge.

    Args:
        text: the cue.
        question: the question of the cue's problem.
    """
    asked = _squeezed(question)
    theorems = [
        Finding("reasoning", "definite", "theorem", *match.span(), "It names a theorem or a rule.")
        for match in _THEOREM.finditer(text)
        if _squeezed(match.group()) not in asked
    ]
    derivations = [
        Finding("reasoning", "definite", "derivation", *span, "It takes a step of the solution.")
        for match in _DERIVATION.finditer(text)
        for span in [match.span("command") if match["command"] else match.span()]
        if _squeezed(text[slice(*span)]) not in asked
    ]
    return theorems + derivations + _formulas(text, asked)


def _formulas(text: str, asked: str) -> list[Finding]:
    findings: list[Finding] = []
    for match in _EQUATION.finditer(text):
        start, end = match.span()
        # `AB = 12` reads a label; a solution step has something to compute on one side.
        sides = (match["left"], match["right"])
        compares = match["sign"] in "<>" and all(re.search("[0-9]", side) for side in sides)
        if not (compares or _HAS_OPERATOR.search(match.group())) or _squeezed(match.group()) in asked:
            continue
        severity: Severity = "possible" if _QUOTED.search(text, max(0, start - 60), start) else "definite"
        findings.append(Finding("reasoning", severity, "equation", start, end, "It states an equation."))
    for pattern in (_ARITHMETIC, _SPOKEN, _POWERS):
        for match in pattern.finditer(text):
            start, end = match.span()
            inside = any(finding.start <= start < finding.end for finding in findings)
            if inside or _squeezed(match.group()) in asked:
                continue
            severity = "possible" if _QUOTED.search(text, max(0, start - 60), start) else "definite"
            findings.append(Finding("reasoning", severity, "arithmetic", start, end, "It does arithmetic."))
    return findings


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", text).casefold()
