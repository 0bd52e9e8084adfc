"""Command-line options that are settings under a shorter name, beside `key=value` for all others.

Nothing here imports a model or data: parsing and `--help` are quick.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from vicur.settings.familiar import answer_for

if TYPE_CHECKING:  # reading settings is for the command, after parsing
    from vicur.settings.schema import Layer, Schema

COLUMN = "data.columns."


@dataclass(frozen=True)
class Option:
    """An option of a command that is one of its settings.

    Attributes:
        flag: e.g. "--max-new-tokens".
        setting: e.g. "sampling.max_new_tokens".
        help: shown by --help.
        choices: the values it takes, if they are few.
        metavar: stands for the value in the help.
        switch: whether it is given without a value, for true.
    """

    flag: str
    setting: str
    help: str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    switch: bool = False

    @property
    def dest(self) -> str:
        """Where argparse keeps the value; no destination of another kind looks like it."""
        return f"setting {self.setting}"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare it."""
        if self.switch:
            parser.add_argument(self.flag, dest=self.dest, action="store_const", const="true", help=self.help)
            return
        metavar = self.metavar or (None if self.choices else self.flag.removeprefix("--").upper())
        parser.add_argument(self.flag, dest=self.dest, choices=self.choices, metavar=metavar, help=self.help)


DATA_OPTIONS = (
    Option("--system-prompt", "data.system_prompt", "system prompt put before every problem"),
    Option("--image-dir", "data.image_dir", "folder that paths of images and videos start from"),
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
    """`--column OURS=THEIRS`, any number of times."""
    parser.add_argument(
        "--column",
        action="append",
        dest="column_pairs",
        default=[],
        metavar="OURS=THEIRS",
        help="column that a field is read from, e.g. answer=label; may be repeated",
    )


def layers_of(
    schema: Schema[Any], options: Mapping[str, Any], declared: Iterable[Option], rest: Sequence[str]
) -> list[Layer]:
    """The settings given on a command line: those of options, then those of `key=value`.

    Args:
        schema: of the command's settings.
        options: values by destination, as argparse has them.
        declared: the options that are settings.
        rest: overrides, as `as_overrides` makes them.

    Raises:
        SettingsError: a value cannot be read.
    """
    layers = []
    for option in declared:
        value = options[option.dest]
        if value is not None:
            origin = option.flag if option.switch else f"{option.flag} {value}"
            layers.append(schema.override(f"{option.setting}={value}", origin))
    for pair in options.get("column_pairs", []):
        layers.append(schema.override(f"{COLUMN}{pair}", f"--column {pair}"))
    return [*layers, *schema.overrides(rest)]


class Parser(argparse.ArgumentParser):
    """Says which word was probably meant, among those that this command knows."""

    command = ""
    """Whose familiar names are answered: "train" or "eval"."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice is not None:
            message += nearest(choice[1], re.findall(r"[\w.-]+", choice[2]))
        super().error(message)

    def refuse(self, word: str) -> NoReturn:
        """End with the usage and a sentence about an option that the command does not have."""
        self.error(f"unrecognized arguments: {word}{self.suggestion(word)}")

    def suggestion(self, word: str) -> str:
        """What was probably meant by an option that the command does not have, to be put after it."""
        flag = word.partition("=")[0]
        answer = answer_for(flag, self.command)
        return f": {answer}" if answer is not None else nearest(flag, self.flags)

    @property
    def flags(self) -> list[str]:
        """All options of this command."""
        return [flag for action in self._actions for flag in action.option_strings]


def nearest(word: str, known: Sequence[str]) -> str:
    """A question after the known word that is most like another; "" if none is."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def canonical(words: Sequence[str]) -> list[str]:
    """Arguments as the parsers expect them.

    `--max_new_tokens` becomes `--max-new-tokens`; a dotted setting and its value, `--a.b value`, become one
    word, so that no value is taken for a positional argument.
    """
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            found.append(word)
        elif "." not in flag:
            found.append(flag.replace("_", "-") + equals + value)
        elif equals:
            found.append(word)
        else:
            following = next(rest, None)
            found.append(word if following is None else f"{word}={following}")
    return found


def as_overrides(rest: Sequence[str], parser: Parser) -> list[str]:
    """What is left of a command line as overrides: `--key value`, `--key=value` and `key=value`."""
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
