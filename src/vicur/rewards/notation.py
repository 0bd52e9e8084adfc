"""Normalises the notation of answers: Unicode becomes LaTeX, and formatting is removed.

Everything here takes time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙ", "0123456789+-=()aeoxn")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙ]+")
_RAISED_ZERO = re.compile(r"(?<=[0-9])⁰(?![⁰¹²³⁴⁵⁶⁷⁸⁹])")  # 45⁰ is 45°
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒―", "-"),
        **dict.fromkeys("‘’′", "'"),
        **dict.fromkeys("“”″", '"'),
        **dict.fromkeys("°º˚◦", r"^\circ "),
        "掳": r"^\circ ",  # a degree sign read as GBK, in golds of MathVerse
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "÷": "/",
        "⁄": "/",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "≅": r"\cong ",
        "∼": r"\sim ",
        "±": r"\pm ",
        "∞": r"\infty ",
        "∠": r"\angle ",
        "△": r"\triangle ",
        "Δ": r"\Delta ",
        "∥": r"\parallel ",
        "⊥": r"\perp ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "→": r"\to ",
        "…": r"\ldots ",
        "、": ",",
        "∣": "|",
        "∶": ":",
        "\x0c": r"\f",  # "\frac" and "\boxed" that were unescaped when the data were made
        "\x08": r"\b",
    }
)
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma "
    "tau upsilon phi chi psi omega"
)
_GREEK = {ord("α") + place: rf"\{name} " for place, name in enumerate(_GREEK_NAMES.split())}
_GREEK |= {ord(capital): rf"\{name} " for capital, name in zip("ΓΘΛΞΠΣΦΨΩ", (
    "Gamma", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"), strict=True)}  # fmt: skip

_ROOT_OR_BRACKET = re.compile(r"(?:([√∛∜])|\\?(?<![A-Za-z])sqrt)\s*\(|[()]")
_ROOT = re.compile(r"([√∛∜])\s*(\{|[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[A-Za-z])")
_ROOTS = {"√": r"\sqrt{", "∛": r"\sqrt[3]{", "∜": r"\sqrt[4]{"}

TEXT_COMMAND = (
    r"\\(?:text|textbf|textrm|textit|textsf|texttt|textnormal|mathrm|mathbf|mathsf|mathit|mathbb|mathcal|mbox|"
    r"boldsymbol|bm|operatorname|unit|rm|bf)"
)
TEXT_GROUP = re.compile(TEXT_COMMAND + r"\s*\{([^{}]*)\}")
_FORMATTING: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\\\(?=[A-Za-z])"), r"\\"),  # a formula as a string literal would have it
    (re.compile(r"\{,\}"), ","),  # 1{,}000
    (re.compile(r",?\s*\\!\s*"), lambda match: "," if match.group().startswith(",") else ""),
    (re.compile(r",\\,(?=\s*[0-9])"), ","),  # 41,\,275
    (re.compile(r"\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\ "), " "),
    (
        re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\(?:display|text)style(?![A-Za-z])"),
        "",
    ),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\*?\s*\\degree(?![A-Za-z])\s*"), r"^\\circ "),
    (re.compile(r"(?:\{\s*\})?\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*o\s*\})\s*"), r"^\\circ "),
    (re.compile(r"\\leqs?lant(?![A-Za-z])|\\leq(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\geqs?lant(?![A-Za-z])|\\geq(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"\\(?:simeq|thickapprox)(?![A-Za-z])"), r"\\approx "),
    (re.compile(r"\\(?:mid|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:dots|cdots|dotsc|dotsb)(?![A-Za-z])|(?<!\.)\.\.\.(?!\.)"), r"\\ldots "),
    (re.compile(r"\\tg(?![A-Za-z])"), r"\\tan "),
    (re.compile(r"(?<![A-Za-z\\])(?:the )?angle (?=[A-Z0-9])"), r"\\angle "),
    (re.compile(r"(?<![A-Za-z\\])triangle (?=[A-Z]{3}\b)"), r"\\triangle "),
    (re.compile(r"\*\*|__"), ""),
]
_PAIRS = [
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
]
_WRAPPING = re.compile(rf"(?:{TEXT_COMMAND}|\\boxed|\\fbox)?\s*(?=\{{)")
# One or two backslashes: some models escape the backslash of a box. `\\.` skips `\{` and `\}`.
BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DOLLAR = re.compile(r"(?<!\\)\$")
_SINGLE = re.compile(r"([_^])\s*\{\s*(\w|-?[0-9]+)\s*\}")
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\w)", re.IGNORECASE)


def unify(text: str) -> str:
    """Write Unicode as LaTeX: `2√3` as `2\\sqrt{3}`, `½` as `\\frac{1}{2}`, `x²` as `x^{2}`."""
    text = text.replace("\ufe0f", "").translate(_INVISIBLE)
    if text.isascii():
        return _roots(text)
    text = _RAISED_ZERO.sub("°", text)
    text = text.replace("º", "°").replace("˚", "°")
    text = _RAISED.sub(lambda match: "^{" + match.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match.group().translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(_fraction, text)
    text = unicodedata.normalize("NFKC", text)
    return _roots(text).translate(_SYMBOLS).translate(_GREEK)


def tidy(text: str) -> str:
    """Remove everything that only formats an answer: dollar signs, bold face, `\\text{}`, spacing, a full
    stop."""
    text = unify(text)
    for pattern, replacement in _FORMATTING:
        text = pattern.sub(replacement, text)
    before = None
    while text != before:
        before = text
        text = _without_wrapping(text)
        if len(_DOLLAR.findall(text)) in (2, 4, 6, 8):  # "Area $=5$": around a formula in words
            text = _DOLLAR.sub(" ", text)
    return text


def key(text: str) -> str:
    """A key that is the same for texts that differ only in spaces, dollar signs and `\\text{}`."""
    text = TEXT_GROUP.sub(r"\1", text)
    # "3 1/2" is not "31/2".
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", "~", text)
    return _SINGLE.sub(r"\1\2", re.sub(r"[\s$]", "", text))


def words_key(text: str) -> str:
    """A key for words that ignores case, articles and punctuation at the ends."""
    bare = TEXT_GROUP.sub(r"\1", text).strip(" \t\n.;:,!?\"'`*")
    bare = _ARTICLE.sub("", bare)
    return key(bare).casefold()


def closing_brace(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at `opening`; None if there is none."""
    depth = 0
    for match in BRACE.finditer(text, opening):
        depth += 1 if match.group().endswith("{") and match.group() != "\\{" else 0
        depth -= match.group() == "}"
        if depth == 0:
            return match.start()
    return None


def is_balanced(text: str) -> bool:
    """Whether every brace is closed."""
    depth = 0
    for match in BRACE.finditer(text):
        depth += 1 if match.group().endswith("{") and match.group() != "\\{" else 0
        depth -= match.group() == "}"
        if depth < 0:
            return False
    return depth == 0


def _without_wrapping(text: str) -> str:
    text = text.strip()
    if not text.endswith("\\"):
        text = text.rstrip(" .;,\n")
    for left, right in _PAIRS:
        inside = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            text = inside if left not in inside and right not in inside else text
    opening = _WRAPPING.match(text)
    if opening and closing_brace(text, opening.end()) == len(text) - 1:
        text = text[opening.end() + 1 : -1]
    return text


def _fraction(match: re.Match[str]) -> str:
    upper, _, lower = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return rf"\frac{{{upper}}}{{{lower}}}"


def _roots(text: str) -> str:
    """Write `√(x)`, `√x`, `√{x}` and `sqrt(x)` as `\\sqrt{x}`."""
    if "√" not in text and "sqrt" not in text and "∛" not in text and "∜" not in text:
        return text
    pieces: list[str] = []
    opened: list[
        int | None
    ] = []  # for each open bracket, the piece that opens its root; None if it has no root
    last = 0
    for match in _ROOT_OR_BRACKET.finditer(text):
        pieces += [text[last : match.start()], match.group()]
        last = match.end()
        if match.group() == ")":
            place = opened.pop() if opened else None
            if place is not None:
                pieces[place] = _ROOTS.get(pieces[place][0], r"\sqrt{")
                pieces[-1] = "}"
        else:
            opened.append(None if match.group() == "(" else len(pieces) - 1)
    text = "".join([*pieces, text[last:]])
    return _ROOT.sub(lambda m: _ROOTS[m[1]] + ("" if m[2] == "{" else m[2] + "}"), text)
