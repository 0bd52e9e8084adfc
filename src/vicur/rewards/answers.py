"""Find the final answer in a response.

Responses are hostile text: a model may repeat `\\boxed{` until it is stopped. So everything here takes
time linear in the length, which rules out the usual lazy regular expressions over pairs of tags.
"""

from __future__ import annotations

import re

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
"""Digits without a sign, with commas between thousands or without."""

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
# One or two backslashes: some models write a box as a string literal would. `\\.` skips `\{` and `\}`.
_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(rf"\\(?:boxed|fbox)\s*([-+]?(?:{NUMBER})%?|[A-Z]\b)")
_STATED = re.compile(r"\banswer\**\s*(?::|is\b)[\s:*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|,?\s(?:because|since)\b", re.IGNORECASE)
# A minus directly after a word or a bracket subtracts. `1/2` is one number, not a 1 and a 2.
_SIGNED = re.compile(rf"(?:(?<![\w)\]}}])[-+\u2212])?(?:{NUMBER})(?:/[0-9]+)?")
_LETTER = re.compile(r"\(([A-J])\)|\b(?:option|choice)\s+([A-J])\b", re.IGNORECASE)
_LETTER_LINE = re.compile(
    r"[\s*]*(?:option\s+|choice\s+)?(?:\(([A-J])\)|([A-J])(?:[.):]|\b(?=[\s*]*$)))", re.I
)


def extract_answer(response: str, lenient: bool = True) -> str | None:
    """The final answer that a response states, or None.

    Looked for after the last `</think>` or `</reason>`, in this order: `<answer>...</answer>`; the
    last balanced `\\boxed{...}` (also `\\fbox{...}` and `\\boxed 5`); what follows the last "answer is"
    or "answer:", up to the end of its sentence. What stands empty is passed over. Inside `<answer>` a
    box or an "answer is" is opened too.

    Args:
        response: any text.
        lenient: where none of these is found, take the last line if it is an option ("B", "(B) 12"), or
            else the last number or marked option letter ("(B)", "option B").
    """
    start = max(
        (i + len(tag) for tag in ("</think>", "</reason>") if (i := response.rfind(tag)) >= 0), default=0
    )
    response = response[start:]
    tagged = _tagged(response)
    if tagged:
        return _boxed(tagged) or _stated(tagged) or tagged
    return _boxed(response) or _stated(response) or (_last_resort(response) if lenient else None)


def unwrap_gold(text: str) -> str:
    """A gold answer that is wholly one `\\boxed{...}` or `<answer>...</answer>`, without that wrapping.

    Any other text comes back as it is.
    """
    stripped = text.strip()
    tags = list(_TAG.finditer(stripped))
    if len(tags) == 2 and tags[0].start() == 0 and tags[1].end() == len(stripped) and tags[1].group(1):
        return text if tags[0].group(1) else stripped[tags[0].end() : tags[1].start()]
    opening = re.match(r"\\boxed\s*\{", stripped)
    if opening and closing_brace(stripped, opening.end() - 1) == len(stripped) - 1:
        return stripped[opening.end() : -1]
    return text


def closing_brace(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at `opening`, if there is one."""
    depth = 0
    for match in _BRACE.finditer(text, opening):
        depth += 1 if match.group().endswith("{") and match.group() != "\\{" else 0
        depth -= match.group() == "}"
        if depth == 0:
            return match.start()
    return None


def _tagged(text: str) -> str:
    """What stands in the last `<answer>...</answer>` that is not empty."""
    opened: int | None = None
    inside = ""
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            opened = tag.end()
        elif opened is not None:
            inside = text[opened : tag.start()].strip() or inside
            opened = None
    return inside


def _boxed(text: str) -> str | None:
    """What stands in the last box that is closed and not empty; of nested ones, in the innermost."""
    start, found = -1, None
    stack: list[int | None] = []  # of open braces: where the content of a box starts, None for others
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            stack.append(None)
        elif token.endswith("{") and token != "\\{":
            stack.append(match.end())
        elif token == "}" and stack:
            opened = stack.pop()
            # Outer boxes close later but start earlier. They are not sliced, or nesting would cost n^2.
            if opened is not None and opened > start and (content := text[opened : match.start()].strip()):
                start, found = opened, content
    for match in _BARE_BOX.finditer(text, max(start, 0)):
        found = match.group(1)
    return found


def _stated(text: str) -> str | None:
    """What follows the last "answer is" or "answer:", up to the end of its sentence."""
    last = _last(_STATED, text)
    if last is None:
        return None
    end = _SENTENCE_END.search(text, last.end())
    return text[last.end() : end.start() if end else len(text)].strip(" \t*.") or None


def _last_resort(text: str) -> str | None:
    line = text.rstrip().rpartition("\n")[2]
    if _LETTER_LINE.match(line):
        return line.strip(" \t*")
    number, letter = _last(_SIGNED, text), _last(_LETTER, text)
    if letter is not None and (number is None or letter.start() > number.start()):
        return letter.group(1) or letter.group(2)
    return None if number is None else number.group()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=re.Match.start, default=None)
