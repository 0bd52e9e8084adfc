"""The thinking of reasoning models, between tags such as `<think>` and `</think>`.

Some chat templates end the prompt with the opening tag. The response then holds only the closing tag, or no
tag if it was cut off before.
"""

from __future__ import annotations

import re

_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reason|reasoning|analysis)[>▷]"
_TAG = re.compile(rf"[<◁](/?){_NAME}", re.IGNORECASE)
_OPENED = re.compile(rf"[<◁]{_NAME}\s*\Z", re.IGNORECASE)


def opened_thought(prompt: str) -> str:
    """The opening tag at the end of a rendered prompt, with the space after it; "" if there is none.

    Put before the response, it completes the model's turn.
    """
    opening = _OPENED.search(prompt)
    return "" if opening is None else opening[0]


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text after a model's thinking, and whether the text ends inside its thinking.

    Everything up to the last closing tag is thinking, whether or not there is an opening tag.
    """
    start, opened = 0, False
    for tag in _TAG.finditer(text):
        opened = not tag[1]
        if not opened:
            start = tag.end()
    return ("", True) if opened else (text[start:], False)
