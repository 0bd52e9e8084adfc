"""Names say what they hold, and docstrings, comments and messages are plain English."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vicur"
FILES = sorted(SOURCE.rglob("*.py"))

NAMES = {"found", "own", "one", "said", "told", "given", "wanted", "chosen", "shown", "siblings"}
"""Names of variables, arguments and functions that do not say what they hold."""

PHRASES = {
    r"\bsiblings?\b": "group size, or the responses to a problem",
    r"\bpacked rows?\b": "packed sequence",
    r"\b(told|untold)\b": "reported, decided, distinguished",
    r"\bmend(s|ed)?\b": "fix, remedy",
    r"\bso many\b": "that many, N",
    r"\b(go|goes|went) on\b": "continue, resume",
    r"\b(whoever|somebody|nobody)\b": "name the actor, or use the passive",
    r"\bstands? (for|in|at|there|before|behind|apart|where|nowhere|outside)\b": "is, represents, precedes",
    r"\bas it stands\b": "unchanged",
    r"\bnats a token\b": "nats per token",
    r"\bin the \w+'?s? eyes\b|\bin the eyes of\b": "scored by, under",
    r"\bgive another\b": "choose another",
    r"\bwhat is not\b": "anything that is not",
    r"\bshall\b": "must, is to",
    r"\b(go|goes) together\b": "can be combined, match",
    r"\b(one|row|option) a line\b": "one per line",
    r"\btak(e|es|ing) the place of\b": "replace",
    r"\bspells? out\b": "encodes, holds",
}
"""Patterns, and what to write instead."""

FRAGMENTS = {
    r"(Of|That|Who|Whose|In which|To which|For which|By which) ": "a noun phrase or a sentence",
    r"As `?\w+`?[.,]": "a sentence, such as: Same as `name`.",
}
"""Beginnings of docstrings that do not stand alone."""


def bound_names(tree):
    """Name and line of everything that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def docstrings(tree):
    """Text and line of every string that is a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value), node.lineno


def texts(source):
    """Text and line of every string and comment that has two words or more."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value, node.lineno
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def name_faults(source):
    return [f"{line}: the name {name}" for name, line in bound_names(ast.parse(source)) if name in NAMES]


def phrase_faults(source):
    return [
        f"{line}: {match.group()!r}; write: {better}"
        for text, line in texts(source)
        for phrase, better in PHRASES.items()
        if (match := re.search(phrase, " ".join(text.split()), re.IGNORECASE))
    ]


def fragment_faults(source):
    faults = []
    for text, line in docstrings(ast.parse(source)):
        for beginning, better in FRAGMENTS.items():
            if match := re.match(beginning, text.strip()):
                faults.append(f"{line}: begins with {match.group()!r}; write: {better}")
        for entry in text.splitlines():
            if re.match(r"^\s+[*\w]+(, [*\w]+)*: (of|that|who|as of) ", entry):
                faults.append(f"{line}: {entry.strip()!r} has no noun")
    return faults


@pytest.mark.parametrize("faults_of", [name_faults, phrase_faults, fragment_faults])
def test_the_package_is_written_in_plain_english(faults_of):
    faults = [
        f"{file.relative_to(SOURCE)}:{fault}"
        for file in FILES
        for fault in faults_of(file.read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


BAD = '''
def read(given):
    """Of the run.

    Args:
        given: of the user.
    """
    for own in given:  # what stands for nothing
        raise ValueError("the siblings were told so")
'''


@pytest.mark.parametrize("faults_of, count", [(name_faults, 2), (phrase_faults, 3), (fragment_faults, 2)])
def test_faults_are_noticed(faults_of, count):
    assert len(faults_of(BAD)) == count
