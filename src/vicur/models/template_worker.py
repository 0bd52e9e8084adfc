"""Renders a chat template on a few chats: a script that runs in a process that may be killed.

Run as `python template_worker.py`, it reads one line of JSON and writes one:

    {"template": "...", "chats": [[{"role": "user", ...}]], "variables": {}, "placeholder": "<|image_pad|>",
     "seconds": 10, "memory": 2147483648, "characters": 1000000}
    {"fault": null}

The sandbox of transformers keeps a template from files and code, but not from loops of hours or texts of
gigabytes, also in C code, where no Python handler runs. So the limit in time is a timer whose signal keeps
its default action and ends the process. It imports nothing from this package, which would load torch.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Any


def main() -> None:
    """Answer the one question."""
    question = json.loads(sys.stdin.readline())
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit(question["seconds"], question["memory"])
    sys.stdout.write(json.dumps({"fault": fault(render_jinja_template, question)}) + "\n")


def fault(render: Any, question: dict[str, Any]) -> str | None:
    """What is wrong with a template, in words that follow its name; None if it renders every chat.

    Only the first chat has to be rendered without an error: a template may refuse a system prompt.
    """
    for number, chat in enumerate(question["chats"]):
        try:
            texts, _ = render(
                conversations=[chat],
                chat_template=question["template"],
                add_generation_prompt=True,
                **question["variables"],
            )
        except MemoryError:
            return f"takes more than {question['memory'] / 2**30:g} GiB of memory for a short chat"
        except Exception as error:  # a template may raise anything
            if number == 0:
                return f"fails on a question with an image: {type(error).__name__}: {str(error)[:300]}"
            continue
        if len(texts[0]) > question["characters"]:
            return f"makes {len(texts[0]):,} characters of a short chat"
        if number == 0 and texts[0].count(question["placeholder"]) != 1:
            count = texts[0].count(question["placeholder"])
            return f"puts {question['placeholder']} {count} times for the one image of a question"
    return None


def _limit(seconds: float, memory: int) -> None:
    """End this process after some seconds, and refuse it more memory than this."""
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(AttributeError):
        # An inherited handler or mask would turn the timer off.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
