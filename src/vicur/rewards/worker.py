"""Compares LaTeX answers with math-verify: a script that runs in a process that may be killed.

Run as `python worker.py '{"start_limit": 60, "memory": 4294967296}'`, it answers each line of JSON on
its input with a line on its output, and ends when its input ends. It imports nothing from this package,
which would load torch, and uses no multiprocessing, which would import the user's main script again.

    {"ready": true}                                             first, or {"error": "..."}
    {"gold": "\\frac{1}{2}", "answer": "0.5", "tolerance": 1e-6, "limit": 5}
    {"equal": true}

A comparison may take forever in C code (`9^{9^{9^9}}`), where no Python handler runs. So the limit is a
timer whose signal keeps its default action and ends the process. It works without the parent, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from typing import IO, Any


def main() -> None:
    """Answer questions until the input ends."""
    settings = json.loads(sys.argv[1])
    # The output of sympy or antlr must not end up among the replies.
    replies, questions = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0), "r")
    null_device = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null_device, descriptor)
    # An inherited handler or mask would turn the timer off.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, settings["start_limit"])
    _limit_memory(settings["memory"])
    try:
        # The first question of a kind loads parts of sympy and antlr, which is part of starting up.
        for gold, candidate in (("\\frac{1}{2}", "\\sqrt{4}"), ("[1,x)", "\\{2,y\\}")):
            answer({"gold": gold, "answer": candidate, "tolerance": 0.0})
    except ImportError as error:
        _reply(replies, {"error": str(error)})
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    _reply(replies, {"ready": True})
    for line in questions:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["limit"])
        reply = answer(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, reply)


def answer(question: dict[str, Any]) -> dict[str, bool]:
    """The reply to a question as in the module's docstring; the limit is not applied here."""
    from math_verify import verify

    gold = _parse(question["gold"])
    candidate = _parse(question["answer"])
    if gold is None or candidate is None:
        return {"equal": False}
    close = _close(gold, candidate, question["tolerance"])
    if close is None:
        # 0 means no timeout: math-verify's needs a Python handler and would replace the timer set here.
        close = verify(gold, candidate, allow_set_relation_comp=True, timeout_seconds=0)
    return {"equal": bool(close)}


def _parse(text: str) -> Any:
    """The whole formula as math-verify parses it; None if it cannot.

    Unlike with its defaults, units are not removed (`h` in `\\pi r^2 h` is not one, and real ones were read
    before), and R and r are two variables.
    """
    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )

    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    degrees = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text) is not None
    try:
        return latex2sympy(
            normalize_latex(as_maths(text), normalization),
            is_real=not should_be_complex(text),
            convert_degrees=degrees,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except ImportError:
        raise
    except Exception:  # the parser raises plain Exceptions
        return None


def should_be_complex(text: str) -> bool:
    """Whether math-verify would read a formula over the complex numbers."""
    from math_verify.grader import should_treat_as_complex

    return bool(should_treat_as_complex(text))


def as_maths(text: str) -> str:
    """Remove dollar signs, and turn upright single letters such as `\\mathrm{e}` into plain ones."""
    text = re.sub(r"\\?\$|\\[()\[\]]", "", text)
    text = re.sub(r"\\(?:mathrm|text|rm|operatorname|mathit|mathbf)\s*\{\s*([A-Za-z])\s*\}", r"{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(arc)?(sin|cos|tan|cot|sec|csc|log|ln|exp)(?![A-Za-z])", r"\\\1\2", text)
    return re.sub(r"_\s*(?![{\\])(\w)", r"_{\1}", text)


def _close(gold: Any, candidate: Any, tolerance: float) -> bool | None:
    """Whether two numbers are equal up to rounding; None if one is not a finite number.

    math-verify rounds to 6 decimals, which makes all numbers below a millionth equal.
    """
    from sympy import Abs

    try:
        if not (gold.is_number and candidate.is_number):
            return None
        if gold.is_finite is False or candidate.is_finite is False:
            return None
        gold, candidate = gold.doit(), candidate.doit()
        limit = max(tolerance, 1e-12)
        if gold.is_zero or gold.evalf(15) == 0:
            return bool(Abs(candidate.evalf(15)) <= limit)
        # The quotient does not underflow, as 10^{-400} would as a float.
        return bool(Abs((candidate / gold).evalf(20) - 1) <= limit)
    except Exception:  # sympy raises many kinds; math-verify catches all of them and returns False
        return None


def _limit_memory(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):  # some systems have the call but not the limit
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def _reply(replies: IO[str], content: dict[str, Any]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
