"""Steps of a solution in a cue: theorems, equations and arithmetic, phrases of a derivation."""

from __future__ import annotations

import re

from vicur.audit.findings import Finding, Severity

# Each line: names that only a solution uses, as regular expressions.
_THEOREMS = (
    r"""
pythagor\w+
theorems?|lemmas?|corollar(?:y|ies)|postulates?|axioms?
(?:laws?|rules?) of (?:the )?(?:co)?sines?
(?:co)?sine (?:law|rule)|tangent (?:law|rule)
power of (?:a|the) (?:\w+ )?point
(?:intersecting|crossing|crossed)[ -](?:chords?|secants?)[ -](?:rule|law|property|relation|formula|principle)
chords?[ -](?:chord|product|power)[ -](?:rule|law|property|relation|formula|principle)
(?:inscribed|central|exterior|interior)[ -]angles? (?:rule|law|property|relation|sum|formula|principle)
angle[ -]sum (?:rule|law|property|formula)
thales|ptolemy|heron'?s|ceva|menelaus|vieta|stewart's|brahmagupta\w*|euler|fermat|bayes\S*|euclid\w*|peano\S*
gauss\w*|archimedes|descartes|steiner|cauchy|pascal's|de moivre|apollonius|cramer's|simson|varignon|viviani
commutativ\w+|associativ\w+|distributiv\w+|transitiv\w+|trichotomy
triangle inequality
(?:quadratic|distance|midpoint|slope|area|volume|circumference|shoelace|binomial|heron'?s|euler'?s) formula
(?:sss|sas|asa|aas|hl|aa) (?:congruence|similarity|criterion|rule)
(?:congruence|similarity) criteri(?:on|a)
difference of (?:two )?squares|(?:aa|sss|sas|asa) similarity|similar by
similarity of (?:the )?(?:two )?triangles
ohm's law|newton's \w+ law|hooke's law|snell's law|kirchhoff\S* \w+|conservation of \w+
(?:properties|property|definition|rules?|laws?|principle) of (?:the |an? )?(?:addition|subtraction|\
multiplication|\
similar \w+|congruent \w+|parallel \w+|parallelograms?|isosceles \w+|equality|maxim\w+|minim\w+|differences?|\
sums?|absolute values?|chords?|exponents|logarithms)
""".strip()
    .replace("\\\n", "")
    .splitlines()
)
_THEOREM = re.compile(rf"\b(?:{'|'.join(_THEOREMS)})", re.IGNORECASE)

_OPERATIONS = (
    r"add(?:ing)?|subtract(?:ing)?|multiply(?:ing)?|divid(?:e|ing)|solv(?:e|ing)|substitut(?:e|ing)|"
    r"comput(?:e|ing)|calculat(?:e|ing)|evaluat(?:e|ing)|simplif(?:y|ying)|rearrang(?:e|ing)|factor(?:ing)?|"
    r"squar(?:e|ing) both|tak(?:e|ing) (?:the )?(?:square root|difference|sum|product|larger|smaller)|"
    r"cross[- ]multiply(?:ing)?|plug(?:ging)? in|work(?:ing)? out|sum(?:ming)? up|set(?:ting)? up"
)
_DERIVATIONS = rf"""
therefore|hence|thus|consequently|it follows|implies|implying|wherefore
which (?:gives|yields|means|makes|leads|implies)|giving us|so that gives
we (?:get|have|obtain|find|see that|know|can|need|conclude|deduce|derive|solve)|one (?:gets|obtains|finds)
so (?:x|y|z|n|we|it|this|that)\b
so the (?:answer|result|sum|value|length|unknown|total|difference|maximum|missing)\b
(?:to|by|then|first|next|finally|after|when|and|now|must|should|simply|just|,) (?:{_OPERATIONS})
by (?:the|using|applying|virtue of)\b(?= \w+ (?:rule|law|theorem|property|formula|relation))
(?:using|applying|apply|recall|invoke|via) the (?:\w+ ){{0,3}}(?:rule|law|formula|property|relation|fact)
(?:products?|sums?|ratios?) (?:of|are|is|on|from) (?:[\w,]+ ){{0,8}}(?:equal|the same|match|agree|coincide)
(?:the same|equal) (?:products?|ratios?)
must (?:equal|be equal|satisfy|add|multiply)
(?:added|multiplied|divided|subtracted|summed) (?:together|by|from|to|gives?|up)
(?:the )?(?:final )?(?:answer|solution|result) (?:is|to|equals|comes|will|must|can|has|would)
let (?:x|y|n|us) (?:be|denote|=)|solve for|solving|q\.?e\.?d
""".strip().splitlines()
# Signs and rulers are drawn, too: these words alone are no proof.
_RULE = re.compile(
    r"\b\w+[ -](?:laws?|principles?|rules?|identit(?:y|ies)|inequalit(?:y|ies)|propositions?|criteri(?:on|a)|"
    r"formulas?|formulae|propert(?:y|ies))\b|\b(?:law|principle|rule|identity|inequality|proposition|criterion|"
    r"formula|property) (?:of|for|that|says|states|tells|about)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?:[\w'-]+[ -]){1,3}$")
_DERIVATION = re.compile(rf"(?<![\w-])(?:{'|'.join(_DERIVATIONS)})", re.IGNORECASE)
# A sentence that starts with an operation tells what to do.
_COMMAND = re.compile(rf"(?:^|[.;:!?]\s+)(?P<what>{_OPERATIONS})\b", re.IGNORECASE)

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
_SPOKEN = re.compile(
    r"\b(?:[0-9]+|[a-z]|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty)"
    r"\s+(?:plus|minus|times|multiplied by|divided by|added to|subtracted from|less)"
    r"\s+(?:[0-9]+|[a-z]|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty)\b",
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
    """The steps of a solution that a cue takes.

    What the question says itself is no step. A formula that the cue reports as written in the image
    ("labeled 2x + 5 = y") is a possible leak only.

    Args:
        text: the cue.
        question: of its sample.
    """
    asked = _squeezed(question)
    found = [
        Finding("reasoning", "certain", "theorem", *_named(text, m), "It names a theorem or a rule.")
        for m in _THEOREM.finditer(text)
        if _squeezed(m.group()) not in asked
    ]
    found += [
        Finding("reasoning", "possible", "rule", *m.span(), "It may name a rule.")
        for m in _RULE.finditer(text)
        if _squeezed(m.group()) not in asked
        and not any(one.start <= m.end() and m.start() <= one.end for one in found)
    ]
    found += _formulas(text, asked)
    for match in (*_DERIVATION.finditer(text), *_COMMAND.finditer(text)):
        start, end = match.span("what") if "what" in match.groupdict() else match.span()
        if _squeezed(text[start:end]) not in asked:
            found.append(
                Finding("reasoning", "certain", "derivation", start, end, "It takes a step of the solution.")
            )
    return found


def _named(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Where a theorem's name stands: its own words come before the word "theorem"."""
    name = _NAME.search(text, max(0, match.start() - 40), match.start())
    bare = name is not None and re.match(
        "theorem|lemma|corollar|postulate|axiom", match.group(), re.IGNORECASE
    )
    return (name.start() if name is not None and bare else match.start()), match.end()


def _formulas(text: str, asked: str) -> list[Finding]:
    found: list[Finding] = []
    for match in _EQUATION.finditer(text):
        start, end = match.span()
        # `AB = 12` reads a label; a step has something to work out on one side.
        sides = (match["left"], match["right"])
        compares = match["sign"] in "<>" and all(re.search("[0-9]", side) for side in sides)
        if not (compares or _HAS_OPERATOR.search(match.group())) or _squeezed(match.group()) in asked:
            continue
        severity: Severity = "possible" if _QUOTED.search(text, max(0, start - 60), start) else "certain"
        found.append(Finding("reasoning", severity, "equation", start, end, "It states an equation."))
    for pattern in (_ARITHMETIC, _SPOKEN, _POWERS):
        for match in pattern.finditer(text):
            start, end = match.span()
            inside = any(one.start <= start < one.end for one in found)
            if inside or _squeezed(match.group()) in asked:
                continue
            severity = "possible" if _QUOTED.search(text, max(0, start - 60), start) else "certain"
            found.append(Finding("reasoning", severity, "arithmetic", start, end, "It does arithmetic."))
    return found


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", text).casefold()
