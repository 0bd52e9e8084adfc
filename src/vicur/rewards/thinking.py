"""Thoughts of thinking models, between tags such as `<think>` and `</think>`.

Some chat templates end the prompt with the opening tag, so that a response holds the closing tag alone, or
none where the response was cut off before.
"""

from __future__ import annotations

import re

_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reason|reasoning|analysis)[>▷]"
_TAG = re.compile(rf"[<◁](/?){_NAME}", re.IGNORECASE)
_OPENED = re.compile(rf"[<◁]{_NAME}\s*\Z", re.IGNORECASE)


def opened_thought(prompt: str) -> str:
    """The opening tag that a rendered prompt ends with, and the space after it; "" if it ends otherwise.

    Put before the response, it makes the model's turn whole.
    """
    opening = _OPENED.search(prompt)
    return "" if opening is None else opening[0]


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text beside a model's thoughts, and whether the text ends inside of a thought.

    Everything up to the last closing tag is thought, whether there is an opening tag or not.
    """
    start, opened = 0, False
    for tag in _TAG.finditer(text):
        opened = not tag[1]
        if not opened:
            start = tag.end()
    return ("", True) if opened else (text[start:], False)
