from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from vicur.rewards import latex, worker
from vicur.rewards.latex import LatexComparer

SCRIPT = Path(worker.__file__)
ENDLESS = ["9^{9^{9^{9}}}", "(9999999999!)!"]


@pytest.fixture(scope="module")
def comparer():
    comparer = LatexComparer(1e-6, 20.0)
    yield comparer
    comparer.close()


@pytest.fixture
def short():
    """A comparer with a short time limit, for endless comparisons and tests of the worker."""
    comparer = LatexComparer(1e-6, 1.0)
    yield comparer
    comparer.close()


@pytest.mark.parametrize(
    "gold, candidate, equal",
    [
        ("2 \\sqrt { 221 }", "2\\sqrt{221}", True),
        ("2 \\sqrt { 221 }", "221", False),
        ("2 \\sqrt { 221 }", "29.7321375", True),
        ("2 \\sqrt { 221 }", "29.7", False),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("10\\sqrt{3}+\\frac{5}{2}", "\\frac{5+20\\sqrt3}{2}", True),
        ("5\\pi", "5 \\pi", True),
        ("16", "4^2", True),
        ("10^{-7}", "0.0000002", False),
        ("45^\\circ", "\\frac{\\pi}{4}", False),
        ("x^2+1", "1+x^2", True),
        ("12x", "12", False),
        ("12", "12x", False),
        ("[1,2)", "[1, 2)", True),
        ("[1,2)", "[1,2]", False),
        ("[1,3)", "1 \\le x < 3", True),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("\\{1,2\\}", "\\{1,3\\}", False),
        ("2, 3", "3 \\text{ and } 2", True),
        ("$2$ and $3$", "2, 3", True),
        ("(1,2)", "(1,2)", True),
        ("(1,2)", "(2,1)", False),
        ("x > 5", "5 < x", True),
        ("x = 3", "3", True),
        ("x = 3", "y = 3", False),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}", True),
        ("x", "\\sqrt{", False),
        ("x", "", False),
    ],
)
def test_equality(comparer, gold, candidate, equal):
    assert comparer.equal(gold, gold)
    assert comparer.equal(gold, candidate) is equal


@pytest.mark.parametrize("gold", ["\\sqrt{", "\\foo{", "\\frac{1}{", "x^", "", "$", ")("])
def test_what_does_not_parse(comparer, gold):
    assert not comparer.equal(gold, gold)


@pytest.mark.parametrize("candidate", ENDLESS)
def test_an_endless_comparison_is_given_up_and_the_next_one_answered(short, candidate):
    assert not short.equal("5", candidate)
    assert short.timeouts == 1
    assert short.equal("5", "\\frac{10}{2}")
    assert not short.equal("5", candidate)  # remembered
    assert short.timeouts == 1


def test_the_worker_ends_itself_at_the_limit():
    """Also without a parent: here the test is the parent and does nothing."""
    settings = json.dumps({"start_limit": 100.0, "memory": 2**32})
    question = json.dumps({"gold": "5", "answer": ENDLESS[0], "tolerance": 0.0, "limit": 0.2})
    process = subprocess.run(
        [sys.executable, "-I", SCRIPT, settings],
        input=question + "\n",
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert process.returncode == -signal.SIGALRM
    assert process.stdout == '{"ready": true}\n'


def test_the_worker_is_killed_where_it_cannot_end_itself(short, monkeypatch):
    monkeypatch.setattr(latex, "_GRACE", 0.1)
    assert short.equal("x", "x")
    first = short.pid
    os.kill(first, signal.SIGSTOP)  # its timer cannot end it now
    assert not short.equal("x", "x + 1")
    assert short.timeouts == 1
    assert short.equal("2x", "5x - 3x")
    assert short.pid != first


def test_a_worker_killed_by_someone_else_is_replaced(short):
    assert short.equal("x", "x")
    first = short.pid
    os.kill(first, signal.SIGKILL)
    assert short.equal("2x", "5x - 3x")
    assert short.pid != first
    assert short.timeouts == 0


def test_nothing_starts_before_it_is_needed_and_equal_questions_are_asked_once(short):
    assert short.pid is None
    assert short.equal("x", "x")
    short.close()
    assert short.equal("x", "x")
    assert short.pid is None


def test_the_worker_has_a_memory_limit(comparer):
    comparer.equal("y", "y")
    assert resource.prlimit(comparer.pid, resource.RLIMIT_AS)[0] == 4 * 2**30


def test_the_worker_ends_with_its_owner():
    comparer = LatexComparer(1e-6, 20.0)
    assert comparer.equal("x", "x")
    pid = comparer.pid
    del comparer
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_worker_ends_with_the_process_and_leaves_an_unguarded_script_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib.util, sys\n"
        "print('started')\n"
        f"spec = importlib.util.spec_from_file_location('latex', {latex.__file__!r})\n"
        "latex = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(latex)\n"
        "comparer = latex.LatexComparer(1e-6, 20.0)\n"
        "print(comparer.equal('2x', '5x - 3x'), 'torch' in sys.modules, comparer.pid)\n"
    )
    # A user's module must not replace one of sympy's.
    (tmp_path / "mpmath.py").write_text("raise RuntimeError\n")
    output = subprocess.run(
        [sys.executable, "-W", "error", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=True,
    )
    assert output.stderr == ""
    started, equal, torch_loaded, pid = output.stdout.split()
    assert (started, equal, torch_loaded) == ("started", "True", "False")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_threads_get_their_own_replies(comparer):
    golds = [f"{n} x" for n in range(2, 14)]
    replies: dict[str, list[bool]] = {}

    def ask(gold: str) -> None:
        replies[gold] = [comparer.equal(gold, f"x + {n} x") for n in range(1, 13)]

    threads = [threading.Thread(target=ask, args=(gold,)) for gold in golds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, gold in enumerate(golds):  # (place + 2) x is x + (place + 1) x
        assert replies[gold] == [n == place + 1 for n in range(1, 13)]


def test_a_forked_child_has_its_own_worker(short):
    assert short.equal("x", "x")
    first = short.pid
    with warnings.catch_warnings(), short._lock:  # as if another thread was asking just then
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter to the child
        child = os.fork()
        if child == 0:
            right = short.equal("2x", "5x - 3x") and short.pid != first
            short.close()
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert short.pid == first
    assert short.equal("2x", "3x - x")
    assert short.pid == first


@pytest.mark.parametrize(
    "script, message",
    [
        ("raise SystemExit(3)", "ended with code 3"),
        ('print(\'{"error": "No module named math_verify"}\')', "No module named math_verify"),
    ],
)
def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch, short, script, message):
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(latex, "_SCRIPT", tmp_path / "worker.py")
    with pytest.raises(ValueError, match=message):
        short.equal("x", "x")


def test_prints_do_not_reach_the_replies(tmp_path, monkeypatch, short):
    noisy = SCRIPT.read_text().replace(
        "    gold = _parse(", "    print('noise')\n    os.write(1, b'noise')\n    gold = _parse(", 1
    )
    assert "noise" in noisy
    (tmp_path / "worker.py").write_text(noisy)
    monkeypatch.setattr(latex, "_SCRIPT", tmp_path / "worker.py")
    assert short.equal("2x", "5x - 3x")


def test_a_formula_loses_its_dollar_signs_and_upright_letters():
    assert worker.as_maths("$2 \\sqrt { 221 }$") == "2 \\sqrt { 221 }"
    assert worker.as_maths("\\(x\\)") == "x"
    assert worker.as_maths("\\$5x") == "5x"
    assert worker.as_maths("1 + \\frac{1}{\\mathrm{e}}") == "1 + \\frac{1}{{e}}"
    assert worker.as_maths("E_3") == "E_{3}"
