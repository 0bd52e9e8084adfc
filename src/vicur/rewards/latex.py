"""Compares LaTeX answers with math-verify, in a process that is killed at its limits."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from vicur.isolated import isolated_command

_SCRIPT = Path(__file__).with_name("worker.py")
_START_LIMIT = 120.0
"""Time limit in seconds for importing sympy: half a second, but much longer from a cold network disk."""
_GRACE = 1.0
"""Seconds after the time limit until the parent kills a worker that did not end by itself."""
_MEMORY = 4 * 2**30
"""Maximum address space in bytes."""
_CACHE_SIZE = 10_000
"""Maximum size of the cache of comparisons, which is then cleared; responses often give the same answer."""


class _WorkerEnded(Exception):
    """The worker ended without a reply.

    Args:
        limited: whether a limit ended it.
    """

    def __init__(self, limited: bool) -> None:
        super().__init__(limited)
        self.limited = limited


class LatexComparer:
    """Compares answers in a worker process, which is started for the first comparison and after it died.

    The worker ends with this object, with this process, and when it exceeds a limit. Threads take turns.
    After a fork the child process starts its own worker.

    Args:
        tolerance: relative tolerance for numbers.
        time_limit: time limit for one comparison, in seconds.

    Attributes:
        timeouts: number of comparisons that hit a limit.
    """

    def __init__(self, tolerance: float, time_limit: float) -> None:
        self.tolerance, self.time_limit = tolerance, time_limit
        self.timeouts = 0
        self._replies: dict[tuple[str, str, float], dict[str, bool] | None] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., LatexComparer] | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None if none was started."""
        return None if self._process is None else self._process.pid

    def equal(self, gold: str, answer: str, tolerance: float | None = None) -> bool:
        """Whether two answers are equal; False also if the comparison hit a limit.

        Args:
            gold: the gold answer.
            answer: answer of a response.
            tolerance: relative tolerance for numbers; by default the comparer's.

        Raises:
            ValueError: the worker cannot start.
        """
        reply = self._ask(gold, answer, self.tolerance if tolerance is None else tolerance)
        return reply is not None and reply["equal"]

    def close(self) -> None:
        """End the worker. The next comparison starts another."""
        with self._lock:
            self._end()

    def _ask(self, gold: str, answer: str, tolerance: float) -> dict[str, bool] | None:
        if os.getpid() != self._owner:
            self._disown()
        with self._lock:
            key = (gold, answer, tolerance)
            if key not in self._replies:
                if len(self._replies) >= _CACHE_SIZE:
                    self._replies.clear()
                # Comparisons that hit the limit are cached too: a policy that learnt to write `9^{9^{9^9}}`
                # would otherwise cost the whole limit for each of its responses.
                self._replies[key] = self._ask_worker(gold, answer, tolerance)
            return self._replies[key]

    def _ask_worker(self, gold: str, answer: str, tolerance: float) -> dict[str, bool] | None:
        question = {"gold": gold, "answer": answer, "limit": self.time_limit, "tolerance": tolerance}
        # If something else killed the worker, that says nothing about the question, so it is asked again.
        for _ in range(2):
            process = self._process
            if process is None or process.poll() is not None:
                self._end()
                process = self._start()
            try:
                return self._exchange(process, question, self.time_limit + _GRACE)
            except _WorkerEnded as ended:
                if ended.limited:
                    break
        self.timeouts += 1
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        settings = json.dumps({"start_limit": _START_LIMIT, "memory": _MEMORY})
        process = subprocess.Popen(
            isolated_command(_SCRIPT, settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # so that Ctrl-C reaches only this process
        )
        self._process = process
        self._finalizer = weakref.finalize(self, _kill, process, os.getpid())  # also at exit
        try:
            reply = self._exchange(process, None, _START_LIMIT + _GRACE)
        except _WorkerEnded as ended:
            why = "took too long" if ended.limited else f"ended with code {process.returncode}"
            raise ValueError(f"The process that compares LaTeX answers did not start: it {why}.") from None
        if "error" in reply:
            self._end()
            raise ValueError(
                f"LaTeX answers are compared by math-verify, which {sys.executable} cannot import "
                f"({reply['error']}); install 'math-verify>=0.9'."
            )
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], question: dict[str, Any] | None, limit: float
    ) -> dict[str, Any]:
        """Send a question, if there is one, and wait for a line."""
        assert process.stdin is not None and process.stdout is not None
        try:
            if question is not None:
                process.stdin.write(json.dumps(question).encode() + b"\n")
            line = _read_line(process.stdout.fileno(), limit)
        except BrokenPipeError:
            line = b""
        except BaseException:  # after a Ctrl-C, this reply would be read as the reply to the next question
            self._end()
            raise
        if line is not None and line.endswith(b"\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        if line is not None:  # the pipe closed, so the worker is about to exit; its exit code says why
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        self._end()
        raise _WorkerEnded(limited=line is None or process.returncode == -signal.SIGALRM)

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _disown(self) -> None:
        """In a forked child, leave the worker to the parent.

        The lock may be held by a thread that does not exist here. The pipe is closed, or the worker would not
        see the end of its input when the parent ends.
        """
        self._lock, self._owner = threading.Lock(), os.getpid()
        process = self._process
        self._process = self._finalizer = None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not a child of this process; Popen would warn that it still runs


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked child that ends
        return
    assert process.stdin is not None and process.stdout is not None
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _read_line(descriptor: int, limit: float) -> bytes | None:
    """A line, or part of one if the pipe was closed; None after `limit` seconds."""
    line = b""
    end = time.monotonic() + limit
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            part = os.read(descriptor, 4096)
            if not part:
                break
            line += part
    return line
