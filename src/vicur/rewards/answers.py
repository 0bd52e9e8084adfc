"""Extract the final answer from a response and compare it with the gold answer."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def extract_answer(response: str) -> str | None:
    """The final answer that a response states, or None.

    Looked for after the last `</think>` or `</reason>`, in this order: `<answer>...</answer>`; the
    last balanced `\\boxed{...}`; what follows the last "answer is", up to the end of its sentence; the
    last number. A `\\boxed` inside `<answer>` is opened too.
    """
    for tag in ("</think>", "</reason>"):
        response = response.rpartition(tag)[2]
    tagged = re.findall(r"<answer>(.*?)</answer>", response, flags=re.DOTALL)
    if tagged:
        inside = str(tagged[-1])
        boxed = _last_boxed(inside)
        return (inside if boxed is None else boxed).strip()
    boxed = _last_boxed(response)
    if boxed is not None:
        return boxed.strip()
    stated = re.split(r"answer is:?", response, flags=re.IGNORECASE)
    if len(stated) > 1:
        sentence = re.split(r"\.\s|\n", stated[-1].strip())[0]
        return sentence.strip(" *.") or None
    numbers = _NUMBER.findall(response)
    return numbers[-1] if numbers else None


def is_correct(response: str, gold: str | None) -> bool | None:
    """Whether a response states the gold answer; None where there is no gold answer.

    Numbers are compared by value, anything else as text without spaces, dollar signs, case and a full
    stop at the end.
    """
    if gold is None or not gold.strip():
        return None
    found = extract_answer(response)
    if found is None:
        return False
    found_number, gold_number = _as_number(found), _as_number(gold)
    if found_number is not None and gold_number is not None:
        return abs(found_number - gold_number) <= 1e-6 * max(1.0, abs(gold_number))
    return _normalise(found) == _normalise(gold)


def _last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}` whose braces balance."""
    for match in reversed(list(re.finditer(r"\\boxed\{", text))):
        depth = 0
        for i in range(match.end() - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[match.end() : i]
    return None


def _as_number(text: str) -> float | None:
    stripped = text.strip().strip("$").strip()
    return float(stripped.replace(",", "")) if _NUMBER.fullmatch(stripped) else None


def _normalise(text: str) -> str:
    return re.sub(r"[\s$]", "", text).rstrip(".").casefold()
