"""Finds a gold answer in a response that is part of the data."""

from __future__ import annotations

from vicur.rewards.answers import extract_answer

SHORT = 3
"""Maximum number of words in a response that is taken as the answer itself."""


def answer_in_response(response: str) -> str | None:
    """The final answer of a response: boxed, tagged, after "answer is", or the response itself if short.

    Args:
        response: e.g. the last assistant turn of a chat for supervised training.
    """
    answer = extract_answer(response, lenient=False)
    if answer is not None and answer.strip():
        return answer.strip()
    words = response.split()
    is_sentence = len(words) > 1 and response.rstrip().endswith(".")
    return response.strip().rstrip(".") or None if 0 < len(words) <= SHORT and not is_sentence else None
