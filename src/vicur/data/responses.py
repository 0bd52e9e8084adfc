"""The gold answer inside a response that the data bring along."""

from __future__ import annotations

from vicur.rewards.answers import extract_answer

SHORT = 3
"""Maximum number of words in a response that is itself the answer."""


def answer_in_response(response: str) -> str | None:
    """The answer that a response ends in: boxed, tagged, after "answer is", or the response itself if short.

    Args:
        response: e.g. the last assistant turn of a chat for supervised training.
    """
    answer = extract_answer(response, lenient=False)
    if answer is not None and answer.strip():
        return answer.strip()
    words = response.split()
    is_sentence = len(words) > 1 and response.rstrip().endswith(".")
    return response.strip().rstrip(".") or None if 0 < len(words) <= SHORT and not is_sentence else None
