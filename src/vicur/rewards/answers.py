"""Finds the final answer in a response.

Responses are untrusted text: a model may repeat `\\boxed{` until it is cut off. So everything here takes time
linear in the length, which rules out the usual lazy regular expressions over pairs of tags.
"""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass
from typing import Literal

from vicur.rewards.formulas import last_formula
from vicur.rewards.notation import BRACE, closing_brace, unify
from vicur.rewards.numbers import NUMBER
from vicur.rewards.thinking import without_thoughts

_FINAL_CHANNEL = "<|channel|>final<|message|>"
_END = re.compile(
    r"<\|(?:im_end|endoftext|end|eot_id|eos|end_of_text|im_start)\|>|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>"
)
_GLM_BOX = re.compile(r"<\|(begin|end)_of_box\|>")
_TAG = re.compile(r"<(/?)(?:answer|final_answer|conclusion)>", re.IGNORECASE)
_BARE_BOX = re.compile(rf"\\(?:boxed|fbox)\s*([-+]?(?:{NUMBER})%?|[A-Z]\b)")
_TOGETHER = re.compile(
    r"[\s$\\()\[\].]*(?:[,;]|\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\}|和|或)(?:\s|and|or|[$\\()\[\]])*"
    r"(?:\\?[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)
"""Text between boxes that form one answer together: `\\boxed{3} and $y = \\boxed{4}$`."""
_CLOSEST = 40

_BE = r"(?:is|are|was|would be|should be|must be|will be|can only be)"
_PHRASE = re.compile(
    rf"(?<!this )(?<!hope the )(?<!hope my )\banswers?\b[\"'*_]*"
    rf"(?:\s+(?:to|for)\s+[^\n.:]{{1,60}}?)?[\"'*_\s]*"
    rf"(?:{_BE}\b|:|=(?!\s*[\"'\[(])|-\s|→|->)[\s:*\"'_]*"
    rf"(?:therefore|thus|hence|clearly|definitely|indeed|then|simply)?[\s:*,]*"
    rf"|\b(?:correct|right|best|proper|appropriate|final)\s+(?:option|choice|statement|response|result|value)\b"
    rf"[^\n.:;]{{0,30}}?\s*(?:{_BE}\b|[:=])[\s:*]*"
    rf"|\b(?:option|choice)(?!s?\s*[(*]*[A-J]\b)[^\n.:;]{{0,40}}?\s*(?:{_BE}\b|:)[\s:*]*"
    rf"|\b(?:the|final|only)\s+solutions?\s*{_BE}\b[\s:*]*"
    r"|\bis\s+(?:therefore\s+|thus\s+)?(?:option|choice)\s+(?=[*(]*[A-J]\b)"
    r"|\b(?:I|we)(?:'d|'ll| would| will)?\s+(?:choose|chose|pick|select|go with|opt for|conclude|say)"
    r"\s+(?:that\s+)?"
    r"(?:the\s+answer\s+is\s+)?"
    r"|\b(?:so|thus|hence|therefore),?\s+(?:it(?:'s|\s+is|\s+must be)\s+)?"
    r"(?:(?:the\s+)?(?:option|choice)\s+)?"
    r"(?=[*]*(?:\([A-J]\)|[A-J](?:[.,:]?\s*[*]*\s*$|[.]\s|\s*\()))"
    r"|^[#*\s]*(?:the\s+)?(?:final\s+|correct\s+)?answer[*#:\s]*\n\s*"
    r"|\banswer\s+(?=[*]*(?:\([A-J]\)|[A-J])[\s.:*]*$)"
    r"|^####\s*"
    r"|(?:答案|正确选项)\s*(?:应该|应当|应|就|便)?\s*(?:是|为|选|[:：])+[\s:：]*"
    r"|选(?:择|项|出)?\s*(?:答案|的是|是|为)?\s*[:：]?\s*(?=[*]*[(（\[]?[A-J])"
    r"|(?:最终|最后)?结果\s*(?:是|为)[\s:：]*",
    re.IGNORECASE | re.MULTILINE,
)
_NO_PHRASE = re.compile(r"不|非|未|错误的?|not\s+$|n't\s+$|never\s+$|cannot\s+$", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?]\s|\n")
_CONDITION = re.compile(r"\b(?:if|otherwise|unless|suppose|whether|hope)\b", re.IGNORECASE)
"""Words that make "the answer is" later in the same sentence conditional."""
_AFTERWARDS = re.compile(
    r"(?<![\w(])(?:option\s+|choice\s+|选项\s*)?[*]*[(\[]?([A-J])[)\]]?[*]*\s*"
    rf"(?:(?:{_BE})\s+(?:therefore\s+|clearly\s+|thus\s+)?(?:(?:correct|right)\b(?!\s+angle)|"
    r"the\s+(?:(?:most|only|final)\s+)*(?:(?:best|correct|right|accurate|appropriate)\s+"
    r"(?:answer|option|choice|statement|one)|answer)\b)|(?:是正确|正确|是对))"
)
_TAIL = re.compile(
    r"\$\$[^$]*\$\$|\$[^$\n]*\$|\\\((?:[^\\]|\\(?![()]))*\\\)|\\\[(?:[^\\]|\\(?![\[\]]))*\\\]"
    r"|(?P<end>[.!](?=[*\"')]*(?:\s|$))|\n|[。！；]|\"\s*[,}]|,?\s(?:because|since)\b|,\s+(?:as|which|where|so)\s"
    r"|\s[-–—]\s+(?=[A-Za-z]{2})|\s?\((?:since|because|as|i\.e\.|that is|given|from|using|by|see)\b)",
    re.IGNORECASE,
)
_LONGEST_TAIL = 1000
_MOST_PHRASES = 20
"""Maximum number of phrases that are read, the last ones: a response may repeat one very often."""

_MARKED = re.compile(r"\(([A-J])\)|\b(?:option|choice)\s+([A-J])\b", re.IGNORECASE)
_OPTION_LINE = re.compile(
    r"[\s*]*(?:option\s+|choice\s+)?(?:[(\[]([A-J])[)\]]|([A-J])(?:[.):]|\b(?=[\s*]*$)))", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|impossible to|not possible to)"
    r"\s+(?:be\s+)?(?:\w+ly\s+)?"
    r"(?:be\s+)?(?:determine|answer|provide|identify|calculate|select|choose|solve|tell|give|see|view)|"
    r"\bnot?\s+(?:provided|listed|given|available|enough|sufficient|"
    r"an option|in the options|among the|any of the)\b|"
    r"\bnone\b(?:\s+of\s+(?:the|these)|\s*$)|无法|不能确定",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"^\s*(?:print\(.*\)|import \w+|from \w+ import .*|def \w+\(.*\):)\s*$", re.MULTILINE)
_FENCED = re.compile(r"```[^`]*(?:```|$)")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_LONGEST_WORDS = 60
_LONGEST_REFUSAL = 200


@dataclass(frozen=True)
class Statement:
    """A place where a response states its answer.

    Attributes:
        kind: how the answer is marked.
        text: the stated answer.
        start: position in the text.
    """

    kind: Literal["box", "phrase"]
    text: str
    start: int


@dataclass(frozen=True)
class Response:
    """The part of a response that may state its answer.

    Attributes:
        text: the response without thinking, end tokens and text outside `<answer>`; Unicode as LaTeX.
        statements: the statements in order.
        tagged: whether the text was in `<answer>`.
    """

    text: str
    statements: tuple[Statement, ...]
    tagged: bool


def read_response(response: str) -> Response:
    """Cut a response to the part that may state its answer, and find the statements in it."""
    text = _GLM_BOX.sub(lambda match: "\\boxed{" if match[1] == "begin" else "}", _after_thinking(response))
    tagged = _tagged(text)
    text = unify(tagged or text).strip()
    boxes, phrases = _boxes(text), _phrases(text)
    statements = sorted([*boxes, *phrases], key=lambda statement: statement.start)
    return Response(text, tuple(statements), bool(tagged))


def extract_answer(response: str, lenient: bool = True) -> str | None:
    """The final answer that a response states; None if it states none.

    The answer is searched for after the last `</think>` or `</reason>`, in this order:
    `<answer>...</answer>`; the last balanced `\\boxed{...}` (also `\\fbox{...}` and `\\boxed 5`), with
    adjacent ones joined by a comma or "and"; the text after the last "answer is", "answer:" or "答案是", up
    to the end of the sentence. Empty ones are skipped. A box or an "answer is" inside `<answer>` is unwrapped
    too. A response that ends inside its thinking states nothing.

    Args:
        response: any text.
        lenient: if none of these is found, take the last line if it is an option ("B", "(B) 12"), the
            response if it is a few words, the only bold formula, or else the last whole formula or marked
            option letter ("(B)", "option B").
    """
    read = read_response(response)
    return stated(read) or (fallback(read.text) if lenient else None)


def stated(read: Response) -> str | None:
    """The answer that a response marks: the last box, otherwise the text after the last phrase."""
    for kind in ("box", "phrase"):
        texts = [statement.text for statement in read.statements if statement.kind == kind]
        if texts:
            return texts[-1]
    return read.text if read.tagged else None


def fallback(text: str) -> str | None:
    """The answer of a response that marks none; None if it has none."""
    text = _FENCED.sub("\n", text).strip() or text
    if is_program(text) or is_refusal(text[-_LONGEST_REFUSAL:]):
        return None
    line = text.rpartition("\n")[2]
    if _OPTION_LINE.match(line):
        return line.strip(" \t*")
    if is_bare(text):
        return text.strip(" \t*")
    bold = {match[1].strip() for match in _BOLD.finditer(text)}
    if len(bold) == 1 and (formula := last_formula(bold.pop())):
        return formula[1]
    formula, letter = last_formula(text), _last(_MARKED, text)
    if letter is not None and (formula is None or letter.start() > formula[0]):
        return letter.group(1) or letter.group(2)
    return None if formula is None else formula[1]


def is_refusal(text: str) -> bool:
    """Whether a text says that there is no answer."""
    return _REFUSAL.search(text) is not None


def is_program(text: str) -> bool:
    """Whether a text is code, whose numbers are not answers."""
    return _PROGRAM.search(text) is not None


def is_bare(text: str) -> bool:
    """Whether a response is only an answer in words: "left", "a red ball"."""
    return (
        0 < len(text) <= _LONGEST_WORDS
        and "\n" not in text
        and len(text.split()) <= 5
        and re.search(r"[0-9=\\]|\b(?:is|are|was|it|i|we|option|choice)\b", text, re.IGNORECASE) is None
        and re.search(r"[^\W_]", text) is not None
    )


def first_line(text: str) -> str:
    """The first line of a response."""
    return text.lstrip().partition("\n")[0].strip()


def last_line(text: str) -> str:
    """The last line of a response."""
    return text.rstrip().rpartition("\n")[2].strip()


def unwrap_gold(text: str) -> str:
    """A gold answer without the `\\boxed{...}` or `<answer>...</answer>` around it, or the text after its
    `####`. Any other text is returned unchanged."""
    stripped = text.strip()
    _, mark, last = stripped.rpartition("\n#### ")
    if mark or stripped.startswith("#### "):
        return last.strip() if mark else stripped.removeprefix("#### ").strip()
    tags = list(_TAG.finditer(stripped))
    if len(tags) == 2 and tags[0].start() == 0 and tags[1].end() == len(stripped) and tags[1].group(1):
        return text if tags[0].group(1) else stripped[tags[0].end() : tags[1].start()]
    opening = re.match(r"\$?\\boxed\s*\{", stripped)
    if opening:
        end = closing_brace(stripped, opening.end() - 1)
        if end is not None and stripped[end + 1 :] == ("$" if stripped.startswith("$") else ""):
            return stripped[opening.end() : end]
    return text


def _after_thinking(response: str) -> str:
    """The text after the thinking, up to an end token; empty if the thinking is not closed."""
    _, channel, last = response.rpartition(_FINAL_CHANNEL)
    response = last if channel else response
    rest, _ = without_thoughts(response)
    end = _END.search(rest)
    return rest[: end.start() if end else len(rest)]


def _tagged(text: str) -> str:
    """The content of the last `<answer>...</answer>` that is not empty; the closing tag may be missing."""
    opened: int | None = None
    inside = ""
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            opened = tag.end()
        elif opened is not None:
            inside = text[opened : tag.start()].strip() or inside
            opened = None
    if opened is not None and not inside:
        inside = text[opened:].strip()
    return inside


def _boxes(text: str) -> list[Statement]:
    """Groups of boxes that are closed and not empty; only the innermost of nested boxes."""
    boxes: list[tuple[int, int, str]] = []  # start and end of the content, and the content
    stack: list[
        int | None
    ] = []  # for each open brace, where the content of its box starts; None if it is not a box
    last = -1
    for match in BRACE.finditer(text):
        token = match.group()
        if token == "{":
            stack.append(None)
        elif token.endswith("{") and token != "\\{":
            stack.append(match.end())
        elif token == "}" and stack:
            opened = stack.pop()
            # Outer boxes close later but start earlier. They are skipped, or nesting would cost n^2.
            if opened is not None and opened > last and (content := text[opened : match.start()].strip()):
                last = opened
                boxes.append((opened, match.end(), content))
    boxes += [(match.start(1), match.end(), match.group(1)) for match in _BARE_BOX.finditer(text)]
    return _grouped(text, sorted(boxes))


def _grouped(text: str, boxes: list[tuple[int, int, str]]) -> list[Statement]:
    groups: list[tuple[int, list[str]]] = []
    before = 0
    for start, end, content in boxes:
        opening = text.rfind("\\", max(0, start - 12), start)
        between = text[before:opening].replace("\\boxed", "").rstrip("\\")
        if groups and len(between) <= _CLOSEST and _TOGETHER.fullmatch(between):
            if content not in groups[-1][1]:
                groups[-1][1].append(content)
        else:
            groups.append((start, [content]))
        before = end
    return [Statement("box", ", ".join(contents), start) for start, contents in groups[-_MOST_PHRASES:]]


def _phrases(text: str) -> list[Statement]:
    """The texts after phrases such as "the answer is", and the letters before "is correct"."""
    statements = []
    for match in collections.deque(_PHRASE.finditer(text), _MOST_PHRASES):
        before = _SENTENCE.split(text[max(0, match.start() - 300) : match.start()])[-1]
        if _NO_PHRASE.search(before[-8:]) or _CONDITION.search(before):
            continue
        if tail := _sentence(text, match.end()):
            statements.append(Statement("phrase", tail, match.start()))
    statements += [
        Statement("phrase", match.group(1), match.start())
        for match in collections.deque(_AFTERWARDS.finditer(text), _MOST_PHRASES)
        if not _NO_PHRASE.search(match.group())
    ]
    return statements


def _sentence(text: str, start: int) -> str:
    """The text from `start` to the end of the sentence, which a full stop in a formula does not end."""
    tail = text[start : start + _LONGEST_TAIL]
    tail = tail.lstrip(" \t\n:*")
    end = next((match.start() for match in _TAIL.finditer(tail) if match["end"] is not None), len(tail))
    return tail[:end].strip(" \t*.\n,")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=re.Match.start, default=None)
