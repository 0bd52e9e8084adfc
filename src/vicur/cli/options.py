"""Command-line options that are settings under a shorter name, beside `key=value` for all others.

Nothing here imports a model or data: parsing and `--help` are quick.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from vicur.settings.familiar import answer_for
from vicur.wording import printable


@dataclass(frozen=True)
class Option:
    """A short option of a command for one of its settings.

    Attributes:
        flag: e.g. "--max-new-tokens".
        setting: e.g. "sampling.max_new_tokens".
        help: text for --help.
        choices: the values it takes, if they are few.
        metavar: placeholder for the value in the help.
        switch: whether it is given without a value, for true.
        many: whether it takes several values, for a list.
        repeated: whether it may be given several times, with a value each, for a list.
    """

    flag: str
    setting: str
    help: str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    switch: bool = False
    many: bool = False
    repeated: bool = False

    @property
    def dest(self) -> str:
        """The destination of the value in argparse's namespace, distinct from all other destinations."""
        return f"setting {self.setting}"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare it in a parser."""
        if self.switch:
            parser.add_argument(self.flag, dest=self.dest, action="store_const", const="true", help=self.help)
            return
        metavar = self.metavar or (None if self.choices else self.flag.removeprefix("--").upper())
        count = "+" if self.many else None
        if self.repeated:
            parser.add_argument(
                self.flag,
                dest=self.dest,
                metavar=metavar,
                action="append",
                help=f"{self.help}; may be repeated",
            )
            return
        parser.add_argument(
            self.flag, dest=self.dest, choices=self.choices, metavar=metavar, nargs=count, help=self.help
        )

    def text(self, value: str | list[str]) -> str:
        """The value as written in an override."""
        return as_list(value) if isinstance(value, list) else value

    def origin(self, value: str | list[str]) -> str:
        """The option as it was typed."""
        if self.switch:
            return self.flag
        return f"{self.flag} {' '.join(value) if isinstance(value, list) else value}"


@dataclass(frozen=True)
class Switch:
    """An option without a value that is no setting, such as --dry-run."""

    flag: str
    help: str

    @property
    def dest(self) -> str:
        """The destination in argparse's namespace of the flag that says whether it was given."""
        return f"switch {self.flag}"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare it in a parser."""
        parser.add_argument(self.flag, dest=self.dest, action="store_true", help=self.help)


def as_list(words: Sequence[str]) -> str:
    """Words as the value of a list in an override; each stays a text, whatever it looks like."""
    return json.dumps(list(words))


DTYPES = ("float32", "bfloat16")
"""Choices of a compute dtype."""
OVERWRITE = Option("--overwrite", "overwrite", "replace output files that exist", switch=True)
JSON = Switch("--json", "print JSON")
NAMES = Option("--names", "names", "a name for each of them in tables and figures", many=True)
DATA_OPTIONS = (
    Option("--system-prompt", "data.system_prompt", "system prompt of every problem"),
    Option("--image-dir", "data.image_dir", "folder that paths of images and videos are relative to"),
    Option(
        "--bad-rows",
        "data.bad_rows",
        "what to do with unreadable rows: stop (default), or skip and count them",
        choices=("error", "skip"),
    ),
)
PIXEL_OPTIONS = (
    Option("--min-pixels", "data.min_pixels", "lower bound on pixels per image after resizing"),
    Option("--max-pixels", "data.max_pixels", "upper bound on pixels per image after resizing"),
)


def add_column_option(parser: argparse.ArgumentParser) -> None:
    """`--column FIELD=COLUMN`, any number of times."""
    parser.add_argument(
        COLUMN,
        action="append",
        dest="column_pairs",
        default=[],
        metavar="FIELD=COLUMN",
        help="column that a field is read from, e.g. answer=label; may be repeated",
    )


class Parser(argparse.ArgumentParser):
    """Says which word was probably meant, among those that this command knows."""

    command = ""
    """The words of the command; decides which names of other libraries are answered."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a text; argparse itself ignores that it cannot be written."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice is not None:
            message += nearest(choice[1], re.findall(r"[\w.-]+", choice[2]))
        super().error(printable(message))

    def refuse(self, word: str) -> NoReturn:
        """End with the usage and a sentence about an option that the command does not have."""
        # What follows the option is not shown: it may be an address with a password in it.
        self.error(f"unrecognized arguments: {word.partition('=')[0]}{self.suggestion(word)}")

    def suggestion(self, word: str) -> str:
        """A hint at the option that was probably meant, to follow the message about an unknown one."""
        flag = word.partition("=")[0]
        answer = answer_for(flag, self.command)
        return f": {answer}" if answer is not None else nearest(flag, self.flags)

    @property
    def flags(self) -> list[str]:
        """All options of this command."""
        return [flag for action in self._actions for flag in action.option_strings]


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """A question after the known word that is most like another; "" if none is, by difflib's ratio."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


COLUMN, GRID = "--column", "--grid"
_SETTING = re.compile(r"[a-z_]+(\.\w+)*=")


def canonical(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line in two parts: options and words as argparse reads them, and settings as `key=value`.

    `--max_new_tokens` becomes `--max-new-tokens`. A dotted setting and its value, `--a.b value`, become one
    word, so that no setting is taken for the word behind a command.
    """
    flags: list[str] = []
    settings: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in (COLUMN, GRID) and not equals:  # its value looks like a setting
            flags += [word, *itertools.islice(rest, 1)]
        elif _SETTING.match(word):
            settings.append(word)
        elif not flag.startswith("--"):
            flags.append(word)
        elif "." not in flag:
            flags.append(flag.replace("_", "-") + equals + value)
        elif equals:
            settings.append(word)
        else:
            following = next(rest, None)
            (flags if following is None else settings).append(
                word if following is None else f"{word}={following}"
            )
    return flags, settings


def as_overrides(rest: Sequence[str], parser: Parser) -> list[str]:
    """The rest of a command line as overrides: `--key value`, `--key=value` and `key=value`."""
    overrides: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if "=" in word:
            overrides.append(word)
        elif not word.startswith("--"):
            parser.error(f"expected key=value, got {word}{nearest(word, parser.flags)}")
        elif words and not words[0].startswith("--"):
            overrides.append(f"{word}={words.pop(0)}")
        else:
            parser.error(f"{word} needs a value, as in {word}=VALUE{parser.suggestion(word)}")
    return overrides
